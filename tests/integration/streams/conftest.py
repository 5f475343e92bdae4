"""What do the tests of streams stand on? The API as a real process's parts, over real sockets, and a worker done by hand."""

from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.models import Model
from app.queue.events import EventLog
from app.redis import Redis
from app.settings import Settings
from tests.support.api import HandWorker, Tenant, make_tenant, register_bytes
from tests.support.streams import Served, serving


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """As in production, but for what a test would wait for."""
    return settings.model_copy(update={"stream_heartbeat_s": 0.2, "stream_stall_s": 1.0, "api_port": 0})


@pytest.fixture
async def model(engine: AsyncEngine) -> Model:
    return await register_bytes(engine)


@pytest.fixture
async def tenant(engine: AsyncEngine, settings: Settings) -> Tenant:
    return await make_tenant(engine, settings, "acme")


@pytest.fixture
async def served(settings: Settings, model: Model, tenant: Tenant) -> AsyncIterator[Served]:
    """An API that listens, in this process."""
    async with serving(settings) as served:
        yield served


@pytest.fixture
async def client(served: Served, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, headers=tenant.auth, timeout=30) as client:
        yield client


@pytest.fixture
def worker(engine: AsyncEngine, redis: Redis, model: Model) -> HandWorker:
    return HandWorker(engine, redis, model.pool)


@pytest.fixture
def log(redis: Redis) -> EventLog:
    return EventLog(redis, ttl_s=600, max_entries=10_000)
