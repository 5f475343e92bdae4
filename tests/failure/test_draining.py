"""Does a worker that an operator drains finish what it has and take nothing more, until it is brought back? A real one."""

from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.errors import NotFound
from app.ids import new_id
from app.jobs.draining import WorkerEnded, drain, undrain
from app.queue.streams import JobQueue
from app.settings import Settings
from tests.support.jobs import open_lease, submit_and_nominate
from tests.support.stack import NULL_ENGINE, WORKER, running, wait_for, wait_until_ended

SLOW = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.02"}
LIVE = "SELECT incarnation FROM workers WHERE ended_at IS NULL"
WHO = {"actor": "operator:ann", "reason": "a new driver"}


async def live(engine: AsyncEngine) -> UUID:
    async with engine.connect() as conn:
        found = await conn.scalar(text(LIVE))
        assert isinstance(found, UUID)
        return found


async def set_drained(engine: AsyncEngine, incarnation: UUID, *, is_drained: bool) -> None:
    async with engine.begin() as conn:
        assert await (drain if is_drained else undrain)(conn, incarnation, **WHO)


async def test_it_ends_what_it_has_takes_nothing_more_and_comes_back(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    with running(WORKER, environment, tmp_path, **SLOW) as worker:
        begun = await submit_and_nominate(engine, settings, queue, 4, max_tokens=200)
        await wait_for(engine, "SELECT count(*) = 4 FROM jobs WHERE attempt > 0")
        incarnation = await live(engine)
        await set_drained(engine, incarnation, is_drained=True)
        await wait_for(
            engine, "SELECT renewed_at > drain_requested_at AND state = 'draining' FROM workers WHERE ended_at IS NULL"
        )
        async with engine.connect() as conn:
            assert await conn.scalar(text("SELECT count(*) FROM jobs WHERE status = 'running'")), "it has something"
        later = await submit_and_nominate(engine, settings, queue, 3, max_tokens=5)
        assert await wait_until_ended(engine, begun) == {"succeeded": 4}, "what it had goes on"
        # Two renewals and a bell later it would have taken them.
        seen = "SELECT renewed_at > now() - interval '1 s' AND stats->>'jobs' = '0' FROM workers WHERE ended_at IS NULL"
        await wait_for(engine, seen)
        async with engine.connect() as conn:
            assert await conn.scalar(
                text("SELECT bool_and(attempt = 0) FROM jobs WHERE id = ANY(:ids)"), {"ids": later}
            )
        assert worker.process.poll() is None
        await set_drained(engine, incarnation, is_drained=False)
        assert await wait_until_ended(engine, later) == {"succeeded": 3}
        await wait_for(engine, "SELECT state = 'ready' FROM workers WHERE ended_at IS NULL")
    async with engine.connect() as conn:
        acts = (await conn.execute(text("SELECT actor, action, target FROM audit_log ORDER BY id"))).all()
    name = incarnation.hex
    assert acts == [("operator:ann", "worker.drain", name), ("operator:ann", "worker.undrain", name)]


async def test_an_engine_that_dies_does_not_bring_a_drained_worker_back(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    with running(WORKER, environment, tmp_path, **SLOW) as worker:
        (begun,) = await submit_and_nominate(engine, settings, queue, 1, max_tokens=200)
        await wait_for(engine, "SELECT count(*) = 1 FROM jobs WHERE status = 'running'")
        first = await live(engine)
        await set_drained(engine, first, is_drained=True)
        for child in worker.children():
            child.kill()
        await wait_for(engine, "SELECT count(*) = 2 FROM workers")
        await wait_for(
            engine, "SELECT drain_requested_at IS NOT NULL AND state = 'draining' FROM workers WHERE ended_at IS NULL"
        )
        assert await live(engine) != first
        await wait_for(engine, "SELECT renewed_at > started_at FROM workers WHERE ended_at IS NULL")
        async with engine.connect() as conn:
            assert await conn.scalar(text("SELECT status FROM jobs")) == "queued", "another worker may run it"
        await set_drained(engine, await live(engine), is_drained=False)
        assert await wait_until_ended(engine, [begun]) == {"succeeded": 1}


async def test_only_a_live_worker_can_be_drained_and_only_once(engine: AsyncEngine, queue: JobQueue) -> None:
    async with engine.begin() as conn:
        incarnation = await open_lease(conn)
        assert await drain(conn, incarnation, **WHO)
        assert not await drain(conn, incarnation, **WHO)
        assert await conn.scalar(text("SELECT count(*) FROM audit_log")) == 1
        assert await conn.scalar(text("SELECT state FROM workers")) == "draining"
        await conn.execute(text("UPDATE workers SET ended_at = now(), state = 'ended'"))
        with pytest.raises(WorkerEnded):
            await undrain(conn, incarnation, **WHO)
        with pytest.raises(NotFound):
            await drain(conn, new_id(), **WHO)
