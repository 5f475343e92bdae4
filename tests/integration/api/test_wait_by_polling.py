"""Does a request that waits learn of an end that no event told it of, also without Redis?"""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from app.api.main import create_app
from app.api.runtime import Runtime
from app.api.waiting import EndWatch
from app.embedded import EmbeddedRedis
from app.jobs.models import Model
from app.settings import Settings
from tests.support.api import LONG, HandWorker, Submit, Tenant, running, until_seated


@pytest.fixture(autouse=True)
def quick_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EndWatch, "poll_every_s", 0.02)


async def test_polling_finds_an_end_that_nobody_told(
    app: FastAPI, client: httpx.AsyncClient, submit: Submit, worker: HandWorker, runtime: Runtime
) -> None:
    job = await submit()
    waiting = asyncio.create_task(client.get(job["urls"]["self"], headers=LONG))
    await until_seated(app)
    await worker.finish(job, announce=False)
    assert (await asyncio.wait_for(waiting, 20)).json()["status"] == "succeeded"


@pytest.fixture
async def without_redis(
    private_redis: EmbeddedRedis, settings: Settings, model: Model, tenant: Tenant
) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """A client of an app whose Redis is gone."""
    app = create_app(settings.model_copy(update={"redis_url": private_redis.url}))
    async with running(app, tenant.auth) as client:
        await asyncio.wait_for(app.state.runtime.watch.subscribed.wait(), 20)
        private_redis.stop()
        yield client, app


async def test_without_redis_jobs_are_taken_read_awaited_and_cancelled(
    without_redis: tuple[httpx.AsyncClient, FastAPI], worker: HandWorker
) -> None:
    client, app = without_redis
    answer = await client.post("/v1/jobs", json={"prompt": "Once"})
    assert answer.status_code == 202
    job = answer.json()
    waiting = asyncio.create_task(client.get(job["urls"]["self"], headers=LONG))
    await until_seated(app)
    await worker.start(job)
    seen = (await client.get(job["urls"]["self"])).json()
    assert (seen["status"], seen["progress"]) == ("running", None)
    assert (await client.post(job["urls"]["cancel"])).status_code == 202
    await worker.finish(seen, announce=False, status="cancelled", choices=None)
    ended = (await asyncio.wait_for(waiting, 20)).json()
    assert ended["status"] == "cancelled"
    assert ended["id"] == job["id"]
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
