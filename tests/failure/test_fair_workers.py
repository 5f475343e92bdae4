"""Do caps and room by tier hold with real workers, also when one is killed and Redis forgets everything?"""

import asyncio
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.submit import nominate
from app.queue.streams import JobQueue
from app.settings import Settings
from tests.support.jobs import submit
from tests.support.stack import MAINTENANCE, NULL_ENGINE, SHORT_LEASE, WORKER, running, wait_for, wait_until_ended

SLOW = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.01"}
SNAIL = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.2"}  # for what mustn't end before something happens to it
RUNNING = "SELECT count(*) = :n FROM jobs WHERE status = 'running' AND tier = :tier"


async def most_running(engine: AsyncEngine, seen: list[int]) -> None:
    while True:
        async with engine.connect() as conn:
            seen.append(int(await conn.scalar(text("SELECT count(*) FROM jobs WHERE status = 'running'")) or 0))
        await asyncio.sleep(0.01)


async def test_a_cap_holds_through_a_killed_worker_and_a_lost_redis(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET max_running_jobs = 2"))
    seen: list[int] = []
    watching = asyncio.create_task(most_running(engine, seen))
    with (
        running(MAINTENANCE, environment, tmp_path),
        running(WORKER, environment, tmp_path, **SNAIL, **SHORT_LEASE) as first,
    ):
        accepted = await submit(engine, settings, count=8, max_tokens=30)
        ids = [each.job_id for each in accepted]
        assert await nominate(queue, accepted)
        await wait_for(engine, RUNNING, n=2, tier="standard")
        first.kill_all()
        await queue.redis.flushdb()
        with running(WORKER, environment, tmp_path, **SLOW), running(WORKER, environment, tmp_path, **SLOW):
            assert await wait_until_ended(engine, ids) == {"succeeded": 8}
            watching.cancel()
            assert max(seen) == 2
            async with asyncio.timeout(30):  # the workers say so at once, and maintenance what they couldn't
                while await queue.redis.exists(queue.keys.running, queue.keys.busy):
                    await asyncio.sleep(0.05)


async def test_an_interactive_job_runs_in_a_worker_that_is_full_of_batch_work(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    full = SLOW | {"PENSTOCK_MAX_NUM_SEQS": "2", "PENSTOCK_DRAIN_GRACE_S": "0.1"}
    with running(WORKER, environment, tmp_path, **full) as worker:
        batch = await submit(engine, settings, count=6, tier="batch", max_tokens=900)
        assert await nominate(queue, batch)
        await wait_for(engine, RUNNING, n=3, tier="batch")
        urgent = await submit(engine, settings, tier="interactive", max_tokens=5)
        assert await nominate(queue, urgent)
        assert await wait_until_ended(engine, [urgent[0].job_id]) == {"succeeded": 1}
        async with engine.connect() as conn:
            assert await conn.scalar(text("SELECT bool_and(finished_at IS NULL) FROM jobs WHERE tier = 'batch'"))
        assert worker.terminate() == 0
