"""What do the API's tests stand on? An app with its lifespan run, a model of bytes, two tenants and their keys; no worker."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.api.runtime import Runtime
from app.jobs.models import Model
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.api import HandWorker, Submit, Tenant, make_tenant, register_bytes, running


@pytest.fixture
async def model(engine: AsyncEngine) -> Model:
    return await register_bytes(engine)


@pytest.fixture
async def tenant(engine: AsyncEngine, settings: Settings) -> Tenant:
    return await make_tenant(engine, settings, "acme")


@pytest.fixture
async def other_tenant(engine: AsyncEngine, settings: Settings) -> Tenant:
    return await make_tenant(engine, settings, "rival")


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
async def client(app: FastAPI, model: Model, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends `tenant`'s key."""
    async with running(app, tenant.auth) as client:
        yield client


@pytest.fixture
def runtime(app: FastAPI, client: httpx.AsyncClient) -> Runtime:
    runtime = app.state.runtime
    assert isinstance(runtime, Runtime)
    return runtime


@pytest.fixture
async def epoch(redis: Redis, model: Model) -> JobQueue:
    """The model's queue, open: this Redis remembers it."""
    queue = JobQueue(redis, model.pool)
    await queue.open_epoch("test")
    return queue


@pytest.fixture
def worker(engine: AsyncEngine, redis: Redis, model: Model) -> HandWorker:
    return HandWorker(engine, redis, model.pool)


@pytest.fixture
def submit(client: httpx.AsyncClient) -> Submit:
    """Submit a job that must be taken; return its object."""

    async def submitted(**body: Any) -> dict[str, Any]:
        answer = await client.post("/v1/jobs", json={"prompt": "Once upon a time"} | body)
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    return submitted
