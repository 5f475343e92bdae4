"""What do most failure tests need? A tenant, a model, and an open queue."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.queue.streams import JobQueue
from app.redis import Redis
from tests.support.jobs import POOL, seed


@pytest.fixture
async def queue(engine: AsyncEngine, redis: Redis) -> JobQueue:
    """The pool's queue on the test's own Redis, with the tenant `acme` and the model in the database."""
    await seed(engine)
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    return queue
