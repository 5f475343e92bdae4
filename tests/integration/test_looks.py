"""Does a look keep its connection, commit what it does, and survive the loss of it?"""

import asyncio
import contextlib
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

import app.looks
from app.db import create_engine, has_lost_connection, looking
from app.looks import Looks
from app.quotas.keys import ensure_tenant
from app.settings import Settings
from tests.support.jobs import seed
from workers.maintenance.outlook import LOOK

WHO = text("SELECT pg_backend_pid() AS pid, CAST(:word AS text) AS word")

PREPARED = text(
    "SELECT name FROM pg_prepared_statements WHERE statement LIKE '%shared_from%' AND statement NOT LIKE '%LIKE%'"
)
FILL = text("""
    INSERT INTO jobs (id, tenant_id, pool, model, tier, status, prompt_tokens, max_tokens)
    SELECT gen_random_uuid(), 'acme', 'tiny', 'tiny', 'standard', 'queued', 5, 8 FROM generate_series(1, 20000)
""")


async def pid(looks: Looks) -> int:
    (row,) = await looks.rows(WHO, {"word": "a"})
    assert row.word == "a"
    return int(row.pid)


async def kill(engine: AsyncEngine, pid: int) -> None:
    async with engine.connect() as conn:
        await conn.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})


async def test_a_look_sees_what_others_committed_and_holds_no_transaction(engine: AsyncEngine) -> None:
    async with Looks(engine) as looks:
        assert await looks.rows(text("SELECT 1 FROM tenants")) == []
        async with engine.begin() as conn:
            await ensure_tenant(conn, "acme")
        assert [row.id for row in await looks.rows(text("SELECT id FROM tenants"))] == ["acme"]
        own = await pid(looks)
        async with engine.connect() as conn:
            state = await conn.scalar(text("SELECT state FROM pg_stat_activity WHERE pid = :pid"), {"pid": own})
        assert state == "idle"


async def test_one_connection_is_kept_and_given_back_at_the_end(engine: AsyncEngine) -> None:
    async with Looks(engine) as looks:
        assert len({await pid(looks) for _ in range(3)}) == 1
        assert engine.pool.checkedout() == 1  # type: ignore[attr-defined]
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await pid(looks)
    assert engine.pool.checkedout() == 0, "outside of its context it keeps none"  # type: ignore[attr-defined]


async def test_looks_at_once_take_turns(engine: AsyncEngine) -> None:
    async with Looks(engine) as looks:
        found = await asyncio.gather(*(looks.rows(WHO, {"word": str(i)}) for i in range(20)))
    assert [row.word for [row] in found] == [str(i) for i in range(20)]


async def test_after_a_lost_connection_the_next_look_has_another(engine: AsyncEngine) -> None:
    async with Looks(engine) as looks:
        first = await pid(looks)
        await kill(engine, first)
        with pytest.raises(DBAPIError) as caught:
            await pid(looks)
        assert has_lost_connection(caught.value)
        assert await pid(looks) != first


async def test_an_error_of_the_statement_costs_only_that_look(engine: AsyncEngine) -> None:
    async with Looks(engine) as looks:
        with pytest.raises(DBAPIError, match="division by zero"):
            await looks.rows(text("SELECT 1 / :zero"), {"zero": 0})
        await pid(looks)


async def test_nobody_takes_the_answer_to_a_look_that_was_given_up(engine: AsyncEngine) -> None:
    async with Looks(engine) as looks:
        await pid(looks)
        slow = asyncio.create_task(looks.rows(text("SELECT pg_sleep(20), 'late' AS word")))
        async with engine.connect() as conn:
            while not await conn.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")):
                await conn.rollback()
                await asyncio.sleep(0.01)
        slow.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await slow
        await asyncio.wait_for(pid(looks), 15)


@pytest.mark.parametrize("size", [1, 2])
async def test_a_pool_that_is_too_small_to_spare_a_connection_keeps_none(
    engine: AsyncEngine, settings: Settings, size: int
) -> None:
    """An API process with one connection kept it for its looks, and refused every request."""
    small = {"database_pool_size": size, "database_timeout_s": 10.0}
    own = create_engine(settings.model_copy(update=small), application_name="penstock-tests")
    try:
        async with Looks(own) as looks, contextlib.AsyncExitStack() as held:
            await pid(looks)
            for _ in range(size):
                await held.enter_async_context(own.connect())
    finally:
        await own.dispose()


async def test_a_look_that_was_planned_while_a_table_was_empty_reads_indexes_soon_after_it_has_filled(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 60,000 jobs in the queue each look took 70 ms of Postgres, five times a second, until statistics were taken."""
    await seed(engine)
    monkeypatch.setattr(app.looks, "PLANS_FOR_S", 0.5)
    async with Looks(engine) as looks:
        async with looking(engine).connect() as conn:
            await conn.execute(text("VACUUM ANALYZE jobs"))  # believed: there is nothing in it
        await looks.rows(LOOK)
        async with engine.begin() as conn:
            await conn.execute(FILL)
        await asyncio.sleep(0.6)
        await looks.rows(LOOK)
        [[name]] = await looks.rows(PREPARED)
        [[[shown]]] = await looks.rows(text(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE {name}"))
    assert not [each["Node Type"] for each in nodes(shown["Plan"]) if is_whole_read_of_jobs(each)], shown


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(each for child in plan.get("Plans", []) for each in nodes(child))]


def is_whole_read_of_jobs(node: dict[str, Any]) -> bool:
    return bool(node["Node Type"] == "Seq Scan" and node["Relation Name"] == "jobs")
