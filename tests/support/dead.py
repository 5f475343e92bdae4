"""Jobs that die, by hand: started and given back until they are given up."""

from collections.abc import Sequence
from random import Random
from uuid import UUID

from sqlalchemy import Row, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs import rescue, store
from app.jobs.dead.edit import Edit
from app.jobs.dead.resolve import Order, Requeued, requeue
from app.jobs.finish import Ending, finish
from app.jobs.notices import Used
from app.jobs.store import Cause, Fate, GivenBack
from app.jobs.submit import Accepted
from app.jobs.tables import dead_letters
from app.queue.streams import Nomination
from tests.support.jobs import POOL, open_lease

DEADLY = Fate(max_attempts=1, max_worker_losses=1, max_solo_crashes=1, retry_base_s=60, retry_cap_s=300)
CRASH = {
    "reason": "the engine's process died with exit status -11; the end of its log:",
    "log_tail": "loading 12 of 40\nSegmentation fault at 0x7f00deadbeef\n",
}
CHOICES = [{"index": 0, "text": "the end", "finish_reason": "stop"}]
ORDER = Order("test:ann", "the cause is removed")


async def start_again(engine: AsyncEngine, *job_ids: UUID, pool: str = POOL) -> list[store.StartedJob]:
    """Start these queued jobs, whatever their gen."""
    async with engine.begin() as conn:
        rows = await conn.execute(
            text("SELECT id, gen, tier, tenant_id FROM jobs WHERE id = ANY(:ids)"), {"ids": list(job_ids)}
        )
        nominated = [Nomination(row.id, row.gen, row.tier, row.tenant_id, 1) for row in rows]
        return await store.start(conn, await open_lease(conn, ttl_s=600, pool=pool), nominated)


async def kill(
    engine: AsyncEngine, jobs: Sequence[Accepted] | Sequence[UUID], cause: Cause = "engine_crash", *,
    detail: dict | None = None, pool: str = POOL,
) -> list[UUID]:  # fmt: skip
    """Let each of these queued jobs die at its next attempt."""
    ids = [each if isinstance(each, UUID) else each.job_id for each in jobs]
    started = await start_again(engine, *ids, pool=pool)
    assert len(started) == len(ids)
    given = [
        GivenBack(each.job_id, each.attempt, cause, CRASH if detail is None else detail, Used(16, 0, 3))
        for each in started
    ]
    async with engine.begin() as conn:
        # As if it had been tried alone: only that convicts.
        await conn.execute(text("UPDATE jobs SET lane = 'solo' WHERE id = ANY(:ids)"), {"ids": ids})
        rescued = await rescue.give_back(conn, given, DEADLY, Random(1))
    assert sorted(rescued.ended) == sorted((job_id, "dead") for job_id in ids)
    return ids


async def send_back(engine: AsyncEngine, job_id: UUID, order: Order = ORDER, edit: Edit | None = None) -> Requeued:
    async with engine.begin() as conn:
        return await requeue(conn, job_id, order, edit)


async def succeed(engine: AsyncEngine, job_id: UUID, *, pool: str = POOL) -> None:
    """Start the queued job and finish it well."""
    (job,) = await start_again(engine, job_id, pool=pool)
    async with engine.begin() as conn:
        ending = Ending(job_id, job.attempt, "succeeded", choices=CHOICES, used=Used(16, 0, 3))
        assert await finish(conn, [ending]) == {job_id}


async def letters(engine: AsyncEngine) -> list[Row]:
    """All letters, in the order of their jobs and lives."""
    async with engine.connect() as conn:
        query = select(dead_letters).order_by(dead_letters.c.job_id, dead_letters.c.reservation)
        return list(await conn.execute(query))
