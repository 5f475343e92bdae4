"""With real processes: does a worker's lease say how fast it is, and does work that can't be done in time end before it is started?"""

from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.queue.streams import JobQueue
from app.settings import Settings
from tests.support.jobs import submit_and_nominate
from tests.support.stack import MAINTENANCE, NULL_ENGINE, WORKER, running, wait_for, wait_until_ended

SLOW = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.02", "PENSTOCK_MAX_NUM_SEQS": "4"}


async def test_a_full_worker_tells_its_rate_and_hopeless_jobs_end_unstarted(
    engine: AsyncEngine, queue: JobQueue, settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    with running(WORKER, environment, tmp_path, **SLOW), running(MAINTENANCE, environment, tmp_path):
        jobs = await submit_and_nominate(engine, settings, queue, 40, max_tokens=40, ignore_eos=True)
        await wait_for(
            engine,
            "SELECT EXISTS (SELECT 1 FROM workers WHERE CAST(stats->>'drain_tokens_per_s' AS float8) > 0 "
            "AND CAST(stats->>'seconds_per_token' AS float8) > 0 AND CAST(stats->>'load_s' AS float8) > 0)",
        )
        # 900 tokens of 0.02 s or more, in 4 s.
        hopeless = await submit_and_nominate(
            engine, settings, queue, 3, max_tokens=900, ignore_eos=True, deadline_s=4, tier="interactive"
        )
        assert await wait_until_ended(engine, hopeless) == {"expired": 3}
        assert await wait_until_ended(engine, jobs) == {"succeeded": 40}
    async with engine.connect() as conn:
        rows = (
            await conn.execute(
                text("SELECT attempt, error, finished_at < deadline_at AS early FROM jobs WHERE id = ANY(:ids)"),
                {"ids": hopeless},
            )
        ).all()
    assert {(row.attempt, row.error["code"], row.early) for row in rows} == {(0, "deadline_unreachable", True)}
