"""What do most failure tests need? A tenant, a model, an open queue, and an audit at their end."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.queue.streams import JobQueue
from app.redis import Redis
from tests.support.audit import assert_audit_clean
from tests.support.jobs import POOL, seed


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Tests look into the event streams as readers do, and announce themselves to nobody."""
    return environment | {"PENSTOCK_UNREAD_EVENT_INTERVAL_S": "0.05"}


@pytest.fixture
async def queue(engine: AsyncEngine, redis: Redis) -> AsyncIterator[JobQueue]:
    """The pool's queue on the test's own Redis, with the tenant `acme` and the model in the database; audited at the end."""
    await seed(engine)
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    yield queue
    await assert_audit_clean(engine, redis)
