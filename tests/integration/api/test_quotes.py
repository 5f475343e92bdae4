"""Does a quote say what the submission is then answered with?"""

from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.runtime import Runtime
from app.redis import Redis
from tests.support.api import MODEL, register_bytes

BODY = {"prompt": "abcd", "max_tokens": 6}  # 4 tokens of prompt, 10 in all


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("UPDATE tenants SET suspended_at = now()", "tenant_suspended"),
        ("UPDATE tenants SET tiers = '{batch}'", "tier_not_allowed"),
        ("UPDATE tenants SET max_queued_jobs = 0", "queue_limit_reached"),
        ("UPDATE tenants SET max_queued_tokens = 9", "over_tenant_limit"),
        ("UPDATE tenants SET tokens_per_minute = 9", "exceeds_burst"),
        (
            f"INSERT INTO breakers (model, state, retry_at) VALUES ('{MODEL}', 'open', now() + interval '20 s')",
            "model_unavailable",
        ),
    ],
)
async def test_a_quote_names_the_refusal(
    client: httpx.AsyncClient, engine: AsyncEngine, runtime: Runtime, statement: str, code: str
) -> None:
    async with engine.begin() as conn:
        await conn.execute(text(statement))
    quoted = (await client.post("/v1/jobs/quote", json=BODY)).json()
    assert (quoted["outcome"], quoted["code"], quoted["forecast"]) == ("rejected", code, None)
    refused = (await client.post("/v1/jobs", json=BODY)).json()
    assert refused["code"] == code
    if "retry_after_s" not in refused:  # else both are drawn
        assert quoted["detail"] == refused["detail"]


async def test_a_quote_takes_nothing_of_a_rate_and_says_when_it_is_used_up(
    client: httpx.AsyncClient, engine: AsyncEngine, redis: Redis
) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET requests_per_minute = 1"))

    async def quote() -> Any:
        return (await client.post("/v1/jobs/quote", json=BODY)).json()

    assert [(await quote())["outcome"] for _ in range(3)] == ["accepted"] * 3
    assert await redis.keys("rate:*") == []
    assert (await client.post("/v1/jobs", json=BODY)).status_code == 202
    quoted = await quote()
    assert (quoted["outcome"], quoted["code"]) == ("rejected", "rate_limited")
    assert 1 <= quoted["retry_after_s"] <= 76  # a minute at most, and up to a quarter and a second more


async def test_a_quote_goes_to_the_fallback_of_a_model_that_rests(
    client: httpx.AsyncClient, engine: AsyncEngine, runtime: Runtime
) -> None:
    await register_bytes(engine, name="spare")
    async with engine.begin() as conn:
        await conn.execute(
            text("INSERT INTO breakers (model, state, retry_at) VALUES (:m, 'open', now() + interval '20 s')"),
            {"m": MODEL},
        )
    body = BODY | {"model": MODEL, "fallback_model": "spare"}
    quoted = (await client.post("/v1/jobs/quote", json=body)).json()
    assert (quoted["outcome"], quoted["model"], quoted["requested_model"]) == ("accepted", "spare", MODEL)
