"""Does maintenance end when it is told to, whatever its loops are doing?"""

import asyncio
from pathlib import Path
from random import Random

from sqlalchemy.ext.asyncio import AsyncEngine

from app.queue.streams import JobQueue
from app.redis import Redis
from tests.support.audit import assert_audit_clean
from tests.support.jobs import POOL, seed
from tests.support.stack import MAINTENANCE, running


async def test_sigterm_always_ends_maintenance(
    engine: AsyncEngine, redis: Redis, environment: dict[str, str], tmp_path: Path
) -> None:
    """redis-py took now and then a cancel for its own timeout, and the loop that it was in went on for ever."""
    await seed(engine)
    await JobQueue(redis, POOL).open_epoch("test")
    random = Random(1)
    for _ in range(5):
        # Busier than by default, so that few tries suffice; the code path is the same.
        busy = {"PENSTOCK_SWEEP_EVERY_S": "0.01", "PENSTOCK_EXPIRE_EVERY_S": "0.01"}
        with running(MAINTENANCE, environment, tmp_path, **busy) as process:
            async with asyncio.timeout(60):
                while "maintenance_ready" not in process.log.read_text():
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.3 + random.random() / 2)  # somewhere in its rounds
            assert await asyncio.to_thread(process.terminate) == 0
    await assert_audit_clean(engine, redis)
