"""A worker without its loops: real servers, a real engine process, steps that tests make themselves."""

from collections.abc import AsyncIterator
from random import Random

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tokenizers import Tokenizer

from app.clock import SystemClock
from app.queue.events import EventLog
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.jobs import BUNDLE, ENCODER, FILES, POOL, open_lease, seed
from workers.engine.config import EngineConfig
from workers.engine.process import EngineProcess
from workers.generation.canary import Canary
from workers.generation.context import WorkerContext


@pytest.fixture
async def worker(engine: AsyncEngine, redis: Redis, settings: Settings) -> AsyncIterator[WorkerContext]:
    await seed(engine)
    async with engine.begin() as conn:
        incarnation = await open_lease(conn, ttl_s=600)
    child = await EngineProcess.start(EngineConfig(engine="null", null_step_s=0.02))
    yield WorkerContext(
        settings=settings,
        clock=SystemClock(),
        db=engine,
        queue=JobQueue(redis, POOL),
        events=EventLog(redis, ttl_s=60, max_entries=1000),
        random=Random(1),
        model_name=POOL,
        engine=child,
        tokenizer=Tokenizer.from_str(BUNDLE.tokenizer_json),
        tokenizer_hash=FILES.hash,
        encoder=ENCODER,
        incarnation=incarnation,
        canary=Canary(child, "null", timeout_s=10),
    )
    child.kill()
    await child.stop(0)
