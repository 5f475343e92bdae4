"""Is an end counted once, when its transaction is over, and not if that is rolled back or lost?"""

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.observe.ends import count_ends, note_ends

SUCCEEDED = ("succeeded", "standard", "tiny")


@pytest.fixture
def registry(engine: AsyncEngine) -> CollectorRegistry:
    registry = CollectorRegistry()
    count_ends(engine, registry)
    return registry


def counted(registry: CollectorRegistry) -> float:
    labels = dict(zip(("status", "tier", "model"), SUCCEEDED, strict=True))
    return registry.get_sample_value("penstock_jobs_total", labels) or 0.0


async def test_what_is_committed_is_counted_once(engine: AsyncEngine, registry: CollectorRegistry) -> None:
    async with engine.begin() as conn:
        note_ends(conn, [SUCCEEDED, SUCCEEDED])
        await conn.execute(text("SELECT 1"))
    assert counted(registry) == 2
    async with engine.begin() as conn:  # the same connection again
        await conn.execute(text("SELECT 1"))
    assert counted(registry) == 2


async def test_what_is_rolled_back_is_not_counted(engine: AsyncEngine, registry: CollectorRegistry) -> None:
    async with engine.connect() as conn:
        await conn.execute(text("SELECT 1"))
        note_ends(conn, [SUCCEEDED])
        await conn.rollback()
    async with engine.begin() as conn:
        await conn.execute(text("SELECT 1"))
    assert counted(registry) == 0


async def test_what_is_rolled_back_to_a_savepoint_is_not_counted(
    engine: AsyncEngine, registry: CollectorRegistry
) -> None:
    """Ends that Postgres refused and that were then made apart were counted twice."""
    async with engine.begin() as conn:
        note_ends(conn, [SUCCEEDED])
        async with conn.begin_nested() as refused:
            note_ends(conn, [SUCCEEDED, SUCCEEDED])
            await refused.rollback()
        async with conn.begin_nested():
            note_ends(conn, [SUCCEEDED])
    async with engine.begin() as conn:
        await conn.execute(text("SELECT 1"))
    assert counted(registry) == 2


async def test_a_commit_that_fails_is_not_counted(engine: AsyncEngine, registry: CollectorRegistry) -> None:
    async def fail() -> None:
        async with engine.begin() as conn:
            note_ends(conn, [SUCCEEDED])
            await _break_at_commit(conn)

    with pytest.raises(DBAPIError):
        await fail()
    assert counted(registry) == 0


async def test_a_connection_that_is_lost_counts_nothing(engine: AsyncEngine, registry: CollectorRegistry) -> None:
    async def lose() -> None:
        async with engine.begin() as conn:
            note_ends(conn, [SUCCEEDED])
            await conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(DBAPIError):
        await lose()
    assert counted(registry) == 0


async def test_where_nobody_counts_nothing_is_kept(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        note_ends(conn, [SUCCEEDED])
        assert not [name for name in conn.info if str(name).startswith("penstock")]


async def _break_at_commit(conn: AsyncConnection) -> None:
    await conn.execute(text("CREATE TABLE late (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    await conn.execute(text("INSERT INTO late VALUES (1), (1)"))
