"""Does `Prefer: wait` answer as soon as an event tells of the job's end, and never hang?"""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.api.runtime import Runtime
from app.api.waiting import EndWatch
from app.embedded import EmbeddedRedis
from app.jobs.models import Model
from app.settings import Settings
from tests.support.api import LONG, HandWorker, Submit, Tenant, running, until, until_seated


@pytest.fixture(autouse=True)
def no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests hear, they hear by the event."""
    monkeypatch.setattr(EndWatch, "poll_every_s", 3600)


@pytest.fixture
async def hearing(runtime: Runtime) -> Runtime:
    """The app, with its subscription made."""
    await asyncio.wait_for(runtime.watch.subscribed.wait(), 20)
    return runtime


async def test_an_event_wakes_a_get(
    client: httpx.AsyncClient, app: FastAPI, submit: Submit, worker: HandWorker, hearing: Runtime
) -> None:
    job = await submit()
    waiting = asyncio.create_task(client.get(job["urls"]["self"], headers=LONG))
    await until_seated(app)
    await worker.finish(job)
    answer = await asyncio.wait_for(waiting, 20)
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=50"
    assert hearing.watch.num_seated == 0


async def test_an_event_wakes_a_post_with_200(
    app: FastAPI, client: httpx.AsyncClient, engine: AsyncEngine, worker: HandWorker, hearing: Runtime
) -> None:
    posting = asyncio.create_task(client.post("/v1/jobs", json={"prompt": "Once"}, headers=LONG))
    await until_seated(app)
    (job,) = (await client.get("/v1/jobs")).json()["data"]
    await worker.finish(job)
    answer = await asyncio.wait_for(posting, 20)
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.json()["choices"][0]["text"] == " there was"
    assert answer.headers["location"] == job["urls"]["self"]
    assert answer.headers["preference-applied"] == "wait=50"


async def test_a_cancel_wakes_who_waits(
    app: FastAPI, client: httpx.AsyncClient, submit: Submit, hearing: Runtime
) -> None:
    job = await submit()
    waiting = asyncio.create_task(client.get(job["urls"]["self"], headers=LONG))
    await until_seated(app)
    await client.post(job["urls"]["cancel"])
    assert (await asyncio.wait_for(waiting, 20)).json()["status"] == "cancelled"


async def test_an_end_before_the_wait_is_answered_at_once(
    client: httpx.AsyncClient, submit: Submit, worker: HandWorker, hearing: Runtime
) -> None:
    job = await submit()
    await worker.finish(job)
    answer = await asyncio.wait_for(client.get(job["urls"]["self"], headers=LONG), 20)
    assert answer.json()["status"] == "succeeded"


async def test_when_the_time_is_over_the_job_is_shown_as_it_is(
    client: httpx.AsyncClient, submit: Submit, hearing: Runtime
) -> None:
    answer = await client.post("/v1/jobs", json={"prompt": "Once"}, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.headers["preference-applied"] == "wait=1"
    again = await client.get(answer.headers["location"], headers={"Prefer": "wait=0"})
    assert (again.status_code, again.headers["preference-applied"]) == (200, "wait=0")


async def test_waiting_for_nothing_is_a_404_at_once(
    client: httpx.AsyncClient, other_tenant: Tenant, submit: Submit, hearing: Runtime
) -> None:
    job = await submit()
    for path, headers in ((f"/v1/jobs/job_{'0' * 32}", LONG), (job["urls"]["self"], LONG | other_tenant.auth)):
        assert (await asyncio.wait_for(client.get(path, headers=headers), 20)).status_code == 404


async def test_one_too_many_is_answered_at_once(
    app: FastAPI, client: httpx.AsyncClient, submit: Submit, worker: HandWorker, hearing: Runtime
) -> None:
    """It is only a preference."""
    hearing.watch.max_seats = 1
    job = await submit()
    waiting = asyncio.create_task(client.get(job["urls"]["self"], headers=LONG))
    await until_seated(app)
    answer = await asyncio.wait_for(client.get(job["urls"]["self"], headers=LONG), 20)
    assert answer.json()["status"] == "queued"
    assert "preference-applied" not in answer.headers
    await worker.finish(job)
    await asyncio.wait_for(waiting, 20)


async def test_a_release_sends_everybody_back(
    app: FastAPI, client: httpx.AsyncClient, submit: Submit, hearing: Runtime
) -> None:
    jobs = [await submit() for _ in range(3)]
    waiting = [asyncio.create_task(client.get(job["urls"]["self"], headers=LONG)) for job in jobs]
    await until_seated(app, 3)
    hearing.watch.release()
    for answer in await asyncio.wait_for(asyncio.gather(*waiting), 20):
        assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    late = await asyncio.wait_for(client.get(jobs[0]["urls"]["self"], headers=LONG), 20)
    assert late.json()["status"] == "queued"


async def test_who_hangs_up_leaves_the_seat(
    app: FastAPI, client: httpx.AsyncClient, tenant: Tenant, submit: Submit, hearing: Runtime
) -> None:
    job = await submit()
    hung_up = asyncio.Event()
    sent = []

    async def receive() -> dict[str, str]:
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    path = job["urls"]["self"]
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "scheme": "http", "http_version": "1.1", "server": ("test", 80), "client": ("test", 1),
        "headers": [(b"authorization", tenant.auth["Authorization"].encode()), (b"prefer", b"wait=50")],
    }  # fmt: skip
    serving = asyncio.create_task(app(scope, receive, send))  # type: ignore[arg-type]
    await until_seated(app)
    hung_up.set()
    await asyncio.wait_for(serving, 20)
    assert hearing.watch.num_seated == 0


async def test_a_wait_is_cut_to_the_limit(client: httpx.AsyncClient, submit: Submit, worker: HandWorker) -> None:
    job = await submit()
    await worker.finish(job)
    for wanted in ("61", "9" * 400):
        answer = await client.get(job["urls"]["self"], headers={"Prefer": f"wait={wanted}"})
        assert answer.headers["preference-applied"] == "wait=60"


async def test_a_redis_that_hangs_holds_up_no_submission(
    private_redis: EmbeddedRedis, settings: Settings, model: Model, tenant: Tenant, engine: AsyncEngine
) -> None:
    app = create_app(settings.model_copy(update={"redis_url": private_redis.url, "redis_timeout_s": 120.0}))
    async with running(app, tenant.auth) as client:
        await asyncio.wait_for(app.state.runtime.watch.subscribed.wait(), 20)
        assert (await client.post("/v1/jobs", json={"prompt": "Once"})).status_code == 202
        private_redis.pause()
        try:
            # Far less than the two minutes that Redis may take for a command.
            answer = await asyncio.wait_for(client.post("/v1/jobs", json={"prompt": "Once"}), 20)
        finally:
            private_redis.resume()
        assert answer.status_code == 202
        assert (await client.get(answer.headers["location"])).json()["id"] == answer.json()["id"]


async def test_the_subscription_comes_back_with_redis(
    private_redis: EmbeddedRedis, settings: Settings, model: Model, tenant: Tenant, engine: AsyncEngine
) -> None:
    app = create_app(settings.model_copy(update={"redis_url": private_redis.url}))
    async with running(app, tenant.auth) as client:
        watch = app.state.runtime.watch
        await asyncio.wait_for(watch.subscribed.wait(), 20)
        private_redis.stop()
        await until(lambda: not watch.subscribed.is_set())
        private_redis.start()
        await asyncio.wait_for(watch.subscribed.wait(), 20)
        worker = HandWorker(engine, app.state.runtime.redis, model.pool)
        job = (await client.post("/v1/jobs", json={"prompt": "Once"})).json()
        waiting = asyncio.create_task(client.get(job["urls"]["self"], headers=LONG))
        await until_seated(app)
        await worker.finish(job)
        assert (await asyncio.wait_for(waiting, 20)).json()["status"] == "succeeded"
