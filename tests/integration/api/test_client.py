"""Do the client and the real API understand each other?"""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from app.client import AsyncPenstock, Refused, TimedOut, texts
from app.queue.streams import JobQueue
from tests.support.api import HandWorker, Tenant, until_seated


@pytest.fixture
async def penstock(app: FastAPI, client: httpx.AsyncClient, tenant: Tenant) -> AsyncIterator[AsyncPenstock]:
    """The client, inside the running app."""
    async with AsyncPenstock("http://test", tenant.token, transport=httpx.ASGITransport(app)) as penstock:
        yield penstock


@pytest.fixture
async def rival(app: FastAPI, client: httpx.AsyncClient, other_tenant: Tenant) -> AsyncIterator[AsyncPenstock]:
    """Another tenant's."""
    async with AsyncPenstock("http://test", other_tenant.token, transport=httpx.ASGITransport(app)) as penstock:
        yield penstock


def has(app: FastAPI, path: str) -> bool:
    return any(getattr(route, "path", None) == path for route in app.state.all_routes)


async def test_a_job_is_submitted_once_waited_for_and_read(
    app: FastAPI, penstock: AsyncPenstock, epoch: JobQueue, worker: HandWorker
) -> None:
    job = await penstock.submit(idempotency_key="once", prompt="Once", metadata={"run": "7"})
    again = await penstock.submit(idempotency_key="once", prompt="Once", metadata={"run": "7"})
    assert again["id"] == job["id"]
    waiting = asyncio.create_task(penstock.wait(job))
    await until_seated(app)
    await worker.finish(dict(job))
    ended = await waiting
    assert (ended["status"], texts(ended)) == ("succeeded", [" there was"])
    assert [each["id"] async for each in penstock.list(status="succeeded", metadata={"run": "7"})] == [job["id"]]
    assert [each async for each in penstock.list(status="queued")] == []
    assert (await penstock.why(job))["object"] == "job.why"


async def test_pages_are_followed_through_all_jobs(penstock: AsyncPenstock, epoch: JobQueue) -> None:
    ids = [(await penstock.submit(prompt="Once"))["id"] for _ in range(5)]
    assert [job["id"] async for job in penstock.list(limit=3)] == ids[:1:-1]
    assert [job["id"] async for job in penstock.list()] == ids[::-1]


async def test_a_cancel_a_quote_and_a_wait_that_ends_early(penstock: AsyncPenstock, epoch: JobQueue) -> None:
    quote = await penstock.quote(prompt="Once", max_tokens=10)
    assert (quote["outcome"], quote["prompt_tokens"], quote["max_total_tokens"]) == ("accepted", 4, 14)
    job = await penstock.submit(prompt="Once")
    with pytest.raises(TimedOut):
        await penstock.wait(job, timeout_s=0.01)
    assert (await penstock.cancel(job))["status"] == "cancelled"
    assert (await penstock.wait(job))["status"] == "cancelled"
    await penstock.submit(idempotency_key="k", prompt="a")
    with pytest.raises(Refused) as raised:
        await penstock.submit(idempotency_key="k", prompt="b")
    assert raised.value.code == "idempotency_mismatch"


async def test_a_refusal_has_code_field_limit_and_whether_to_come_back(
    penstock: AsyncPenstock, rival: AsyncPenstock, epoch: JobQueue
) -> None:
    with pytest.raises(Refused) as raised:
        await penstock.submit(prompt="Once", temperature=3)
    error = raised.value
    assert (error.code, error.status, error.field, error.limit, error.retryable) == (
        "invalid_request", 422, "temperature", 2.0, False,
    )  # fmt: skip
    job = await penstock.submit(prompt="Once")
    for call in (rival.get(job), rival.cancel(job), rival.why(job)):
        with pytest.raises(Refused) as raised:
            await call
        assert raised.value.code == "not_found"


async def test_many_jobs_are_submitted_once(app: FastAPI, penstock: AsyncPenstock, epoch: JobQueue) -> None:
    if not has(app, "/v1/jobs/bulk"):
        pytest.skip("needs: bulk")
    jobs = [{"prompt": f"{number}"} for number in range(1500)]
    ids = await penstock.submit_many(jobs, idempotency_key="many")  # type: ignore[arg-type]
    assert len(set(ids)) == 1500
    assert await penstock.submit_many(jobs, idempotency_key="many") == ids  # type: ignore[arg-type]


async def test_an_ended_job_is_streamed_from_anywhere(
    app: FastAPI, penstock: AsyncPenstock, epoch: JobQueue, worker: HandWorker
) -> None:
    if not has(app, "/v1/jobs/{id}/events"):
        pytest.skip("needs: streams")
    job = await penstock.submit(prompt="Once")
    await worker.finish(dict(job))
    events = [event async for event in penstock.stream(job)]
    assert "".join(event.text for event in events) == " there was"
    assert (events[-1].kind, events[-1].status) == ("finished", "succeeded")
    for place, event in enumerate(events):
        assert [each.id async for each in penstock.stream(job, after=event.id)] == [
            each.id for each in events[place + 1 :]
        ]
