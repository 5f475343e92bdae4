"""In which order is it written? Shown by a kill between two steps, with nobody there to repair."""

import asyncio
import signal
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.submit import nominate
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.jobs import POOL, seed, submit
from tests.support.stack import NULL_ENGINE, WORKER, running, wait_until_ended


async def test_a_claim_that_was_not_decided_is_still_nominated(
    engine: AsyncEngine, settings: Settings, redis: Redis, environment: dict[str, str], tmp_path: Path
) -> None:
    """The sweep would bring lost nominations back, too, ten seconds later and at the end: no maintenance runs here."""
    await seed(engine)
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    accepted = await submit(engine, settings, count=3)
    ids = [each.job_id for each in accepted]
    assert await nominate(queue, accepted)
    with running(WORKER, environment, tmp_path, **NULL_ENGINE, PENSTOCK_KILL_POINT="worker.after_claim") as worker:
        assert await asyncio.to_thread(worker.process.wait, 60) == -signal.SIGKILL
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT bool_and(status = 'queued' AND attempt = 0) FROM jobs"))
    assert await queue.known_gens(ids) == [1] * 3
    assert (await queue.depth())["standard"].jobs == 3
    assert await queue.renominate(idle_s=0.0) == 3
    with running(WORKER, environment, tmp_path, **NULL_ENGINE):
        assert await wait_until_ended(engine, ids) == {"succeeded": 3}
    await assert_audit_clean(engine, redis)
