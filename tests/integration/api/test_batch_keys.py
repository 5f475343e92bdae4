"""Is a batch that is asked for twice under one Idempotency-Key made once?"""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.api import Tenant, assert_problem
from tests.support.batches import CHAT, chat_line, jsonl, upload

KEY = {"Idempotency-Key": "nightly-7"}


@pytest.fixture
async def body(client: httpx.AsyncClient) -> dict[str, Any]:
    file = await upload(client, jsonl([chat_line("a")]))
    return {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": "1", "b": "2"}}


async def num_batches(engine: AsyncEngine) -> int:
    async with engine.connect() as conn:
        return int(await conn.scalar(text("SELECT count(*) FROM batches")) or 0)


async def test_the_same_key_and_body_give_the_first_batch(
    client: httpx.AsyncClient, engine: AsyncEngine, body: dict[str, Any]
) -> None:
    first = await client.post("/v1/batches", json=body, headers=KEY)
    assert "Idempotency-Replayed" not in first.headers
    await client.post(f"/v1/batches/{first.json()['id']}/cancel")
    said_otherwise = body | {"metadata": {"b": "2", "a": "1"}, "tier": "batch"}
    for same in (body, said_otherwise):
        again = await client.post("/v1/batches", json=same, headers={"Idempotency-Key": '"nightly-7"'})
        assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")
        assert (again.json()["id"], again.json()["status"]) == (first.json()["id"], "cancelled")
    assert (await client.post("/v1/batches", json=body)).json()["id"] != first.json()["id"], "without a key"
    assert await num_batches(engine) == 2


async def test_another_body_under_the_same_key_is_refused(
    client: httpx.AsyncClient, engine: AsyncEngine, body: dict[str, Any]
) -> None:
    await client.post("/v1/batches", json=body, headers=KEY)
    other = await client.post("/v1/batches", json=body | {"completion_window": "1h"}, headers=KEY)
    assert_problem(other, 422, "idempotency_mismatch", "another body")
    assert await num_batches(engine) == 1


async def test_of_requests_at_once_one_makes_the_batch(
    client: httpx.AsyncClient, engine: AsyncEngine, body: dict[str, Any]
) -> None:
    answers = await asyncio.gather(*[client.post("/v1/batches", json=body, headers=KEY) for _ in range(8)])
    assert {each.status_code for each in answers} == {200}
    assert len({each.json()["id"] for each in answers}) == 1
    assert sum("Idempotency-Replayed" in each.headers for each in answers) == 7
    assert await num_batches(engine) == 1


async def test_a_key_is_its_tenants_own_and_a_replay_asks_for_no_file(
    client: httpx.AsyncClient, engine: AsyncEngine, body: dict[str, Any], other_tenant: Tenant
) -> None:
    first = await client.post("/v1/batches", json=body, headers=KEY)
    assert_problem(await client.post("/v1/batches", json=body, headers=KEY | other_tenant.auth), 404, "not_found")
    await client.post(f"/v1/batches/{first.json()['id']}/cancel")
    assert (await client.delete(f"/v1/files/{body['input_file_id']}")).status_code == 200
    again = await client.post("/v1/batches", json=body, headers=KEY)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


async def test_a_key_that_is_none_is_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await client.post("/v1/batches", json=body, headers={"Idempotency-Key": "x" * 256})
    assert_problem(answer, 422, "invalid_request", "Idempotency-Key")
