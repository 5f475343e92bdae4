"""Does a look keep its connection, commit what it does, and survive the loss of it?"""

import asyncio
import contextlib

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import has_lost_connection
from app.looks import Looks
from app.quotas.keys import ensure_tenant

WHO = text("SELECT pg_backend_pid() AS pid, CAST(:word AS text) AS word")


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
        await asyncio.wait_for(pid(looks), 5)
