"""Does a submission keep to the rate limits of its key and tenant, and does each answer say how they stand?"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import insert, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.api.runtime import Runtime
from app.embedded import EmbeddedRedis
from app.ids import new_id
from app.jobs.models import Model
from app.quotas.limits import Limits, Rate, Rates
from app.quotas.tables import api_keys, budgets, tenants
from app.redis import Redis
from app.settings import Settings
from tests.support.api import Tenant, assert_problem, make_tenant, register_bytes, running

RATE_HEADERS = {
    "ratelimit-policy", "ratelimit", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests", "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
}  # fmt: skip
BODY = {"prompt": "x" * 10, "max_tokens": 20, "n": 2}  # 50 tokens


async def limit_key(engine: AsyncEngine, **limits: int) -> None:
    async with engine.begin() as conn:
        await conn.execute(update(api_keys).where(api_keys.c.tenant_id == "acme").values(**limits))


async def limit_tenant(engine: AsyncEngine, **limits: int) -> None:
    async with engine.begin() as conn:
        await conn.execute(update(tenants).where(tenants.c.id == "acme").values(**limits))


async def num_jobs(engine: AsyncEngine) -> int:
    async with engine.connect() as conn:
        return int((await conn.execute(text("SELECT count(*) FROM jobs"))).scalar_one())


def rate_headers_of(answer: httpx.Response) -> set[str]:
    return RATE_HEADERS & set(answer.headers)


async def test_limits_come_with_the_key_in_the_one_query(
    client: httpx.AsyncClient, engine: AsyncEngine, runtime: Runtime
) -> None:
    await limit_key(engine, requests_per_minute=60, tokens_per_minute=1000, token_burst=500)
    await limit_tenant(engine, requests_per_minute=600, request_burst=30)
    await client.get("/v1/jobs")
    ((key, _),) = runtime.known_keys._keys.values()
    assert key.limits == Limits(Rates(Rate(60, 60), Rate(1000, 500)), Rates(Rate(600, 30), None))


async def test_without_limits_nothing_is_said_and_nothing_written(client: httpx.AsyncClient, redis: Redis) -> None:
    answer = await client.post("/v1/jobs", json=BODY)
    assert answer.status_code == 202
    assert rate_headers_of(answer) == set()
    assert await redis.keys("rate:*") == []


async def test_a_202_says_what_is_left(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await limit_key(engine, requests_per_minute=60, tokens_per_minute=1000, token_burst=500)
    await limit_tenant(engine, requests_per_minute=60, request_burst=30)
    answer = await client.post("/v1/jobs", json=BODY)
    assert answer.status_code == 202
    assert rate_headers_of(answer) == RATE_HEADERS
    assert answer.headers["ratelimit-policy"] == (
        '"key-requests";q=60;w=60, "key-tokens";q=500;qu="tokens";w=30, "tenant-requests";q=30;w=30'
    )
    assert answer.headers["ratelimit"] == '"key-requests";r=59;t=1, "key-tokens";r=450;t=1, "tenant-requests";r=29;t=1'
    assert answer.headers["x-ratelimit-limit-requests"] == "30"
    assert answer.headers["x-ratelimit-remaining-requests"] == "29"
    assert answer.headers["x-ratelimit-reset-requests"] == "1s"
    assert answer.headers["x-ratelimit-limit-tokens"] == "500"
    assert answer.headers["x-ratelimit-remaining-tokens"] == "450"
    assert answer.headers["x-ratelimit-reset-tokens"] == "3s"


async def test_a_429_names_the_limit_and_when_to_come_back(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await limit_key(engine, requests_per_minute=1, request_burst=60)
    await limit_tenant(engine, tokens_per_minute=1, token_burst=80)
    assert (await client.post("/v1/jobs", json=BODY)).status_code == 202
    refused = await client.post("/v1/jobs", json=BODY)
    problem = assert_problem(refused, 429, "rate_limited", "tenant", "1 tokens a minute", "80 at once")
    assert problem["retryable"] is True
    assert problem["policy"] == "tenant-tokens"
    assert problem["violated-policies"] == ["tenant-tokens"]
    assert problem["limit"] == 1
    # 50 + 50 - 80 at one a minute.
    assert 19 * 60 < problem["retry_after_s"] <= 20 * 60 * 1.25 + 2
    assert refused.headers["retry-after"] == str(problem["retry_after_s"])
    assert rate_headers_of(refused) == RATE_HEADERS
    assert refused.headers["x-ratelimit-remaining-tokens"] == "30"
    assert refused.headers["x-ratelimit-remaining-requests"] == "59", "a refusal takes nothing"
    assert await num_jobs(engine) == 1


async def test_a_job_that_can_never_pass_is_a_422(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await limit_key(engine, tokens_per_minute=6000, token_burst=49)
    problem = assert_problem(
        await client.post("/v1/jobs", json=BODY), 422, "exceeds_burst", "50 tokens", "49", "API key"
    )
    assert (problem["param"], problem["policy"], problem["limit"]) == ("max_tokens", "key-tokens", 49)
    assert problem["retryable"] is False


async def test_a_replay_takes_nothing_also_when_the_limit_is_reached(
    client: httpx.AsyncClient, engine: AsyncEngine, redis: Redis
) -> None:
    await limit_key(engine, requests_per_minute=1)
    headers = {"Idempotency-Key": "k"}
    first = await client.post("/v1/jobs", json=BODY, headers=headers)
    levels = {key: await redis.get(key) for key in await redis.keys("rate:*")}
    for _ in range(3):
        again = await client.post("/v1/jobs", json=BODY, headers=headers)
        assert (again.status_code, again.json()) == (202, first.json())
        assert rate_headers_of(again) == set()
    assert {key: await redis.get(key) for key in await redis.keys("rate:*")} == levels
    assert_problem(await client.post("/v1/jobs", json=BODY), 429, "rate_limited", "1 requests a minute")


async def test_replays_at_once_take_for_one_job(client: httpx.AsyncClient, engine: AsyncEngine, redis: Redis) -> None:
    await limit_key(engine, requests_per_minute=1, request_burst=8)
    headers = {"Idempotency-Key": "k"}
    answers = await asyncio.gather(*(client.post("/v1/jobs", json=BODY, headers=headers) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    after = await client.post("/v1/jobs", json=BODY)
    # Of what was given back stays taken what leaked meanwhile: a small part of a request.
    assert after.headers["x-ratelimit-remaining-requests"] in {"5", "6"}


async def test_what_another_reason_refuses_takes_nothing(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await limit_key(engine, requests_per_minute=1, request_burst=3, tokens_per_minute=1, token_burst=150)
    async with engine.begin() as conn:
        await conn.execute(
            insert(budgets).values(id=new_id(), tenant_id="acme", metric="requests", period="total", hard_limit=1)
        )
    accepted = await client.post("/v1/jobs", json=BODY)
    assert accepted.headers["x-ratelimit-remaining-tokens"] == "100"
    for _ in range(4):
        refused = await client.post("/v1/jobs", json=BODY)
        assert_problem(refused, 429, "budget_exhausted")
        assert refused.headers["x-ratelimit-remaining-tokens"] == "100"
        assert refused.headers["x-ratelimit-remaining-requests"] == "2"
    assert_problem(await client.post("/v1/jobs", json=BODY | {"temperature": 9}), 422, "invalid_request")
    assert_problem(await client.post("/v1/jobs", json=BODY | {"model": "gpt-9"}), 404, "unknown_model")
    async with engine.begin() as conn:
        await conn.execute(budgets.delete())
        await conn.execute(text("DELETE FROM ledger"))
    again = await client.post("/v1/jobs", json=BODY)
    assert (again.status_code, again.headers["x-ratelimit-remaining-requests"]) == (202, "1")


async def test_a_tenants_limit_holds_over_all_its_keys(
    client: httpx.AsyncClient, engine: AsyncEngine, settings: Settings, other_tenant: Tenant
) -> None:
    await limit_tenant(engine, requests_per_minute=1, request_burst=2)
    second = (await make_tenant(engine, settings, "acme")).auth
    assert (await client.post("/v1/jobs", json=BODY)).status_code == 202
    assert (await client.post("/v1/jobs", json=BODY, headers=second)).status_code == 202
    for auth in ({}, second):
        assert_problem(await client.post("/v1/jobs", json=BODY, headers=auth), 429, "rate_limited", "this tenant")
    assert (await client.post("/v1/jobs", json=BODY, headers=other_tenant.auth)).status_code == 202


async def test_many_at_once_get_the_burst_and_no_more(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await limit_key(engine, requests_per_minute=1, request_burst=5)
    answers = await asyncio.gather(*(client.post("/v1/jobs", json=BODY) for _ in range(16)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [202] * 5 + [429] * 11
    assert await num_jobs(engine) == 5


async def test_reading_and_cancelling_are_not_limited(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await limit_key(engine, requests_per_minute=1)
    job = (await client.post("/v1/jobs", json=BODY)).json()
    for _ in range(3):
        assert (await client.get(job["urls"]["self"])).status_code == 200
    assert (await client.post(job["urls"]["cancel"])).status_code == 200


@pytest.fixture
async def on_private_redis(
    private_redis: EmbeddedRedis, settings: Settings, model: Model, tenant: Tenant
) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """A client of an app on a Redis that a test may stop."""
    app = create_app(settings.model_copy(update={"redis_url": private_redis.url}))
    async with running(app, tenant.auth) as client:
        await asyncio.wait_for(app.state.runtime.watch.subscribed.wait(), 20)
        yield client, app


async def test_without_redis_a_share_of_the_limit_holds(
    on_private_redis: tuple[httpx.AsyncClient, FastAPI], private_redis: EmbeddedRedis, engine: AsyncEngine
) -> None:
    client, app = on_private_redis
    await limit_key(engine, requests_per_minute=1, request_burst=6)
    assert (await client.post("/v1/jobs", json=BODY)).status_code == 202
    private_redis.stop()
    answers: list[Any] = [await client.post("/v1/jobs", json=BODY) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 429, 429]
    problem = assert_problem(answers[-1], 429, "rate_limited", "1 requests a minute", "share")
    # One a minute, half of it: 120 s.
    assert 100 < problem["retry_after_s"] <= 152
    assert answers[0].headers["ratelimit"].startswith('"key-requests";r=1;t=')
    assert app.state.runtime.rates.is_away
    # In Redis again, three are taken; it had been told of one, and has kept its memory or not.
    private_redis.start()
    async with asyncio.timeout(30):
        while app.state.runtime.rates.is_away:
            await client.post("/v1/jobs", json=BODY)
            await asyncio.sleep(0.05)
    answer = await client.post("/v1/jobs", json=BODY)
    assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (202, "2")


async def test_a_job_that_goes_to_its_fallback_model_takes_once(
    client: httpx.AsyncClient, engine: AsyncEngine, runtime: Runtime
) -> None:
    """Four find the model's last probe; three of them come too late for it, and take what the other model's job needs."""
    await register_bytes(engine, name="spare")
    runtime.catalog._read_at = None
    await limit_key(engine, requests_per_minute=1, request_burst=5)
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO breakers (model, state, retry_at, probes_left) VALUES ('bytes', 'half_open', now() + interval '20 s', 1)"
            )
        )
    body = BODY | {"model": "bytes", "fallback_model": "spare"}
    answers = await asyncio.gather(*(client.post("/v1/jobs", json=body) for _ in range(4)))
    assert sorted(answer.json().get("model", "") for answer in answers) == ["bytes"] + ["spare"] * 3
    assert {(await client.post("/v1/jobs", json=body)).status_code for _ in range(2)} in ({202, 429}, {429})
