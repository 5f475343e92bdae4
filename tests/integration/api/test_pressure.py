"""Does the API say no before the 202, with the reason and the time to come back, and yes to those who aren't the reason?"""

from datetime import datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.api.runtime import Runtime
from app.clock import SystemClock
from app.ids import new_id
from app.jobs.leases import Incarnation, register, renew
from app.jobs.models import Model
from app.queue.streams import JobQueue
from app.redis import RedisError
from app.settings import Settings
from tests.support.api import MODEL, Submit, Tenant, assert_problem, register_bytes, running

# 100 tokens.
BODY: dict[str, Any] = {"prompt": [65] * 16, "max_tokens": 84, "tier": "interactive"}


class ShiftedClock(SystemClock):
    """The machine's clock, and what a test adds to it."""

    shift_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.shift_s


@pytest.fixture
def clock() -> ShiftedClock:
    return ShiftedClock()


@pytest.fixture
def app(settings: Settings, clock: ShiftedClock) -> FastAPI:
    """An interactive job may wait for 10 s."""
    return create_app(settings.model_copy(update={"max_wait_interactive_s": 10.0}), clock)


async def worker_with(engine: AsyncEngine, pool: str = MODEL, **stats: Any) -> None:
    """A live worker whose lease says this."""
    incarnation = new_id()
    said = {"drain_tokens_per_s": 100.0, "token_yield": 1.0, "served_tokens_per_s": 100.0, "jobs": 3} | stats
    async with engine.begin() as conn:
        await register(conn, Incarnation(incarnation, pool, pool, "host", 1, "cpu", "hash"), ttl_s=600)
        await renew(conn, incarnation, ttl_s=600, state="ready", stats=said)


async def num_jobs(engine: AsyncEngine) -> int:
    async with engine.connect() as conn:
        return int(await conn.scalar(text("SELECT count(*) FROM jobs")) or 0)


async def fill(client: httpx.AsyncClient, runtime: Runtime, **body: Any) -> tuple[int, httpx.Response]:
    """Submit until it is refused; how many were taken, and the refusal."""
    for count in range(200):
        answer = await client.post("/v1/jobs", json=BODY | {"metadata": {"number": str(count)}} | body)
        if answer.status_code != 202:
            return count, answer
    raise AssertionError("never refused")


async def test_a_full_tier_is_a_503_that_says_when_there_is_room(
    client: httpx.AsyncClient, runtime: Runtime, engine: AsyncEngine, epoch: JobQueue, submit: Submit
) -> None:
    await worker_with(engine)
    await submit(**BODY)
    await runtime.loads.refresh()
    taken, answer = await fill(client, runtime)
    # 10 s at 100 tokens a second, a third of it held back: a job comes in behind at most 6 of 100 tokens, one of which is there.
    assert taken == 6
    problem = assert_problem(answer, 503, "overloaded", "interactive", "at most 10 s", "Nothing was written")
    assert problem["reason"] == "tier_wait"
    assert problem["retryable"] is True
    assert problem["figures"] == "redis"
    assert problem["predicted_s"] == pytest.approx(7, abs=0.1)
    assert answer.headers["retry-after"] == str(problem["retry_after_s"])
    assert 1 <= problem["retry_after_s"] <= 3
    assert await num_jobs(engine) == taken + 1
    # Another tier has its own room; what was accepted waits untouched.
    assert (await client.post("/v1/jobs", json=BODY | {"tier": "batch"})).status_code == 202


async def test_a_quote_says_when_the_job_would_start_and_that_there_is_no_room(
    client: httpx.AsyncClient, runtime: Runtime, engine: AsyncEngine, epoch: JobQueue, submit: Submit
) -> None:
    await worker_with(engine, paces={"interactive": 0.1})
    await submit(**BODY)
    await runtime.loads.refresh()
    before = runtime.clock.now()
    quoted = (await client.post("/v1/jobs/quote", json=BODY)).json()
    after = runtime.clock.now()
    assert (quoted["outcome"], quoted["code"], quoted["retry_after_s"]) == ("accepted", None, None)
    assert quoted["forecast"]["position"] == 2
    start, late, end = (
        datetime.fromisoformat(quoted["forecast"][name]).timestamp()
        for name in ("start_p50", "start_p95", "finish_p95")
    )
    assert before + 0.9 < start < after + 1.1, "100 tokens before it, 100 a second"
    assert start < late < end
    await fill(client, runtime)
    refused = (await client.post("/v1/jobs/quote", json=BODY)).json()
    assert (refused["outcome"], refused["code"], refused["forecast"]) == ("rejected", "overloaded", None)
    assert "at most 10 s" in refused["detail"]
    assert refused["retry_after_s"] >= 1
    elsewhere = (await client.post("/v1/jobs/quote", json=BODY | {"tier": "batch"})).json()
    assert elsewhere["outcome"] == "accepted"


async def test_those_who_are_refused_together_are_told_different_times(
    client: httpx.AsyncClient, runtime: Runtime, engine: AsyncEngine, epoch: JobQueue, submit: Submit
) -> None:
    await worker_with(engine)
    await submit(**BODY)
    await runtime.loads.refresh()
    await fill(client, runtime)
    told = []
    for number in range(10):
        answer = await client.post("/v1/jobs", json=BODY | {"metadata": {"another": str(number)}})
        assert answer.status_code == 503
        told.append(int(answer.headers["retry-after"]))
    # One job of 100 tokens falls free in a second.
    assert told[-1] - told[0] >= 7
    again = await client.post("/v1/jobs", json=BODY | {"metadata": {"another": "5"}})
    assert abs(int(again.headers["retry-after"]) - told[5]) <= 2


async def test_a_flooder_is_a_429_and_the_quiet_tenant_gets_in(
    client: httpx.AsyncClient,
    runtime: Runtime,
    engine: AsyncEngine,
    epoch: JobQueue,
    submit: Submit,
    other_tenant: Tenant,
) -> None:
    await worker_with(engine)
    assert (await client.post("/v1/jobs", json=BODY, headers=other_tenant.auth)).status_code == 202
    await submit(**BODY)
    await runtime.loads.refresh()
    _, answer = await fill(client, runtime)
    problem = assert_problem(answer, 429, "share_exceeded", "your own work")
    assert problem["reason"] == "share"
    assert 1 <= int(answer.headers["retry-after"]) <= 5
    await runtime.loads.refresh()
    assert (await client.post("/v1/jobs", json=BODY, headers=other_tenant.auth)).status_code == 202


async def test_a_replay_is_answered_however_full_it_is(
    client: httpx.AsyncClient, runtime: Runtime, engine: AsyncEngine, epoch: JobQueue
) -> None:
    await worker_with(engine)
    key = {"Idempotency-Key": "once"}
    first = await client.post("/v1/jobs", json=BODY, headers=key)
    await runtime.loads.refresh()
    await fill(client, runtime)
    again = await client.post("/v1/jobs", json=BODY, headers=key)
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]


async def test_the_fallback_takes_what_an_overloaded_model_cannot(
    client: httpx.AsyncClient, runtime: Runtime, engine: AsyncEngine, epoch: JobQueue
) -> None:
    await register_bytes(engine, name="spare")
    runtime.catalog._read_at = None
    await worker_with(engine)
    await client.post("/v1/jobs", json=BODY | {"model": MODEL})
    await runtime.loads.refresh()
    await fill(client, runtime, model=MODEL)
    answer = await client.post("/v1/jobs", json=BODY | {"model": MODEL, "fallback_model": "spare"})
    assert answer.status_code == 202
    assert (answer.json()["model"], answer.json()["requested_model"]) == ("spare", MODEL)


async def test_a_deadline_behind_too_much_work_is_refused_at_once(
    client: httpx.AsyncClient, runtime: Runtime, engine: AsyncEngine, epoch: JobQueue, submit: Submit
) -> None:
    await worker_with(engine)
    for _ in range(4):
        await submit(**BODY)
    await runtime.loads.refresh()
    answer = await client.post("/v1/jobs", json=BODY | {"deadline_s": 2})
    problem = assert_problem(answer, 503, "deadline_unreachable", "deadline_s")
    assert problem["reason"] == "deadline"
    assert problem["param"] == "deadline_s"
    assert 1 <= int(answer.headers["retry-after"]) <= 6
    assert (await client.post("/v1/jobs", json=BODY | {"deadline_s": 60})).status_code == 202


async def test_without_a_worker_jobs_are_taken_up_to_the_ceiling_in_tokens(
    settings: Settings, model: Model, tenant: Tenant, epoch: JobQueue
) -> None:
    app = create_app(settings.model_copy(update={"max_wait_interactive_s": 0.1, "max_queued_tokens_interactive": 1000}))
    async with running(app, tenant.auth) as client:
        assert (await client.post("/v1/jobs", json=BODY)).status_code == 202
        await app.state.runtime.loads.refresh()
        taken, answer = await fill(client, app.state.runtime)
        assert taken in {8, 9}
        problem = assert_problem(answer, 503, "overloaded", "1,000 tokens")
        assert problem["reason"] == "tier_tokens"


async def test_while_redis_is_away_postgres_counts_and_the_answer_says_so(
    client: httpx.AsyncClient,
    runtime: Runtime,
    engine: AsyncEngine,
    epoch: JobQueue,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def away(_: object) -> None:
        raise RedisError

    await worker_with(engine)
    for _ in range(7):
        await submit(**BODY)
    monkeypatch.setattr(runtime.loads, "_read_redis", away)
    await runtime.loads.refresh()
    _, answer = await fill(client, runtime)
    problem = assert_problem(answer, 503, "overloaded", "Redis doesn't answer")
    assert problem["figures"] == "postgres"


async def test_room_that_falls_free_goes_to_those_who_were_refused_before(
    client: httpx.AsyncClient,
    runtime: Runtime,
    engine: AsyncEngine,
    epoch: JobQueue,
    submit: Submit,
    clock: ShiftedClock,
) -> None:
    await worker_with(engine)
    jobs = [await submit(**BODY) for _ in range(3)]
    await runtime.loads.refresh()
    number, refused = await fill(client, runtime)
    for job in jobs[:2]:
        await client.post(job["urls"]["cancel"])
    await runtime.loads.refresh()
    newcomer = await client.post("/v1/jobs", json=BODY | {"metadata": {"new": "one"}})
    assert assert_problem(newcomer, 503, "overloaded")["reason"] == "booked"
    clock.shift_s += int(refused.headers["retry-after"])
    again = await client.post("/v1/jobs", json=BODY | {"metadata": {"number": str(number)}})
    assert again.status_code == 202, again.text


async def test_an_empty_queue_has_room_for_everybody(
    client: httpx.AsyncClient, runtime: Runtime, engine: AsyncEngine, epoch: JobQueue, submit: Submit
) -> None:
    await worker_with(engine)
    await submit(**BODY)
    await runtime.loads.refresh()
    await fill(client, runtime)
    for job in (await client.get("/v1/jobs", params={"limit": 100})).json()["data"]:
        await client.post(job["urls"]["cancel"])
    await runtime.loads.refresh()
    assert (await client.post("/v1/jobs", json=BODY | {"metadata": {"new": "one"}})).status_code == 202
