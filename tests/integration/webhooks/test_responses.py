"""Is the end of a background response told as OpenAI tells it, in the transaction that ends its job, to who wants it?"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from random import Random
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.clock import SystemClock
from app.jobs.finish import Ending, end_queued, finish
from app.jobs.notices import Used
from app.redis import Redis
from app.settings import Settings
from app.webhooks.tables import webhook_deliveries as d
from tests.support.api import HandWorker, Tenant, job_id_of, make_tenant, register_bytes, running
from tests.support.receiver import Receiver, receiver
from tests.support.webhooks import first
from workers.webhooks.courier import Courier


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow_local": True})


@pytest.fixture
async def tenant(engine: AsyncEngine, settings: Settings) -> Tenant:
    return await make_tenant(engine, settings, "acme")


@pytest.fixture
async def client(settings: Settings, engine: AsyncEngine, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    await register_bytes(engine)
    async with running(create_app(settings), tenant.auth) as client:
        yield client


@pytest.fixture
async def server() -> AsyncIterator[Receiver]:
    async with receiver() as it:
        yield it


@pytest.fixture
def worker(engine: AsyncEngine, redis: Redis) -> HandWorker:
    return HandWorker(engine, redis, "bytes")


async def endpoint(client: httpx.AsyncClient, server: Receiver, events: list[str] | None) -> dict[str, Any]:
    answer = await client.post("/v1/webhook_endpoints", json={"url": server.url("/"), "events": events})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def background(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """The job of a new response."""
    answer = await client.post("/v1/responses", json={"input": "Once", "background": True} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = (await client.get("/v1/jobs?limit=1")).json()["data"][0]
    assert answer.json()["id"] == "resp_" + found["id"].removeprefix("job_")
    return found


async def told(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as conn:
        return sorted(await conn.scalars(select(d.c.event_type)))


def choice(reason: str) -> list[dict[str, Any]]:
    return [{"index": 0, "text": " upon", "finish_reason": reason}]


ENDS: list[tuple[dict[str, Any], str]] = [
    ({"choices": choice("stop")}, "response.completed"),
    ({"choices": choice("length")}, "response.incomplete"),
    ({"status": "cancelled", "choices": choice("stop")}, "response.cancelled"),
    ({"status": "failed", "choices": None, "error": {"code": "x", "message": "y"}}, "response.failed"),
    ({"status": "expired", "choices": None, "error": {"code": "x", "message": "y"}}, "response.failed"),
    ({"status": "dead", "choices": None, "error": {"code": "x", "message": "y"}}, "response.failed"),
]


async def test_each_end_is_told_as_openais_client_reads_it(
    client: httpx.AsyncClient, engine: AsyncEngine, worker: HandWorker, server: Receiver, settings: Settings
) -> None:
    made = await endpoint(client, server, ["response.*"])
    courier = Courier(settings, SystemClock(), engine, Random(0))
    for ending, kind in ENDS:
        job = await background(client)
        await worker.finish(job, **ending)
        async with engine.connect() as conn:
            (row,) = (await conn.execute(select(d).where(d.c.job_id == job_id_of(job)))).all()
        await courier.deliver(first(row.id))
        got = server.received[-1]
        with openai.OpenAI(api_key="none", webhook_secret=made["secret"]) as face:
            event = face.webhooks.unwrap(got.body, got.headers)
        finished = (await client.get(f"/v1/jobs/{job['id']}")).json()["finished_at"]
        shown = (await client.get("/v1/responses/resp_" + job["id"].removeprefix("job_"))).json()
        assert (event.type, event.object, event.id) == (kind, "event", got.headers["webhook-id"])
        assert event.data.to_dict() == {"id": shown["id"]}  # type: ignore[union-attr]
        assert kind == f"response.{shown['status']}"
        assert isinstance(event.created_at, int)
        assert finished.startswith(_utc(event.created_at))


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")


async def test_whoever_cancels_it_or_lets_it_wait_is_told_too(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver
) -> None:
    await endpoint(client, server, ["response.cancelled", "response.failed"])
    job = await background(client)
    answer = await client.post("/v1/responses/resp_" + job["id"].removeprefix("job_") + "/cancel")
    assert answer.json()["status"] == "cancelled"
    assert await told(engine) == ["response.cancelled"]
    job = await background(client)
    async with engine.begin() as conn:
        await end_queued(conn, [job_id_of(job)], "expired")
    assert await told(engine) == ["response.cancelled", "response.failed"]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (None, ["job.succeeded", "response.completed"]),
        (["*"], ["job.started", "job.succeeded", "response.completed"]),
        (["job.*"], ["job.started", "job.succeeded"]),
        (["response.failed"], []),
        (["response.completed"], ["response.completed"]),
    ],
)
async def test_only_those_are_told_who_want_it(
    client: httpx.AsyncClient, engine: AsyncEngine, worker: HandWorker, server: Receiver,
    events: list[str] | None, expected: list[str],
) -> None:  # fmt: skip
    await endpoint(client, server, events)
    await worker.finish(await background(client))
    assert await told(engine) == expected


async def test_other_calls_and_other_tenants_have_no_such_events(
    client: httpx.AsyncClient, engine: AsyncEngine, worker: HandWorker, server: Receiver, settings: Settings
) -> None:
    other = await make_tenant(engine, settings, "rival")
    answer = await client.post(
        "/v1/webhook_endpoints", json={"url": server.url("/"), "events": ["response.*"]}, headers=other.auth
    )
    assert answer.status_code == 201
    await worker.finish(await background(client))
    assert await told(engine) == []
    await endpoint(client, server, ["response.*"])
    native = (await client.post("/v1/jobs", json={"prompt": "a"})).json()
    await worker.finish(native)
    deleted = await background(client)
    await client.delete("/v1/responses/resp_" + deleted["id"].removeprefix("job_"))
    await worker.finish(deleted)
    assert await told(engine) == []


async def test_an_end_that_is_rolled_back_isnt_told(
    client: httpx.AsyncClient, engine: AsyncEngine, worker: HandWorker, server: Receiver
) -> None:
    await endpoint(client, server, ["response.*"])
    job = await background(client)
    started = await worker.start(job)
    async with engine.connect() as conn, conn.begin() as transaction:
        ending = Ending(job_id_of(job), started.attempt, "succeeded", choice("stop"), used=Used(4, 0, 1))
        assert await finish(conn, [ending])
        assert await conn.scalar(select(d.c.event_type)) == "response.completed"
        await transaction.rollback()
    assert await told(engine) == []
