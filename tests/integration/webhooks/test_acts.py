"""Is it written down who made, changed, rotated, disabled and deleted an endpoint? In the act's own transaction, without its secrets."""

from collections.abc import AsyncIterator
from random import Random
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.clock import SystemClock
from app.db import database_now
from app.quotas.tables import audit_log
from app.settings import Settings
from app.webhooks.nominate import Rooms, nominate
from app.webhooks.outbox import Event, emit
from tests.support.api import Tenant, assert_problem, make_tenant, register_bytes, running
from tests.support.receiver import answer, receiver
from workers.webhooks.courier import Courier

ENDPOINTS = "/v1/webhook_endpoints"
URL = "https://hooks.example.com/services/T0/s3cr3t-path?token=hidden"


@pytest.fixture
async def tenant(engine: AsyncEngine, settings: Settings) -> Tenant:
    await register_bytes(engine)
    return await make_tenant(engine, settings, "acme")


@pytest.fixture
async def client(settings: Settings, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    async with running(create_app(settings.model_copy(update={"webhook_allow_local": True})), tenant.auth) as it:
        yield it


async def acts(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    query = select(audit_log.c.actor, audit_log.c.action, audit_log.c.target, audit_log.c.detail)
    query = query.where(audit_log.c.action.like("webhook_endpoint.%")).order_by(audit_log.c.id)
    async with engine.connect() as conn:
        return [tuple(row) for row in await conn.execute(query)]


async def test_each_change_of_an_endpoint_is_a_row_and_no_row_holds_a_secret(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    made = (await client.post(ENDPOINTS, json={"url": URL, "events": ["job.*"]})).json()
    place = f"{ENDPOINTS}/{made['id']}"
    other = "https://other.example.com/also-s3cr3t"
    assert (await client.patch(place, json={"url": other, "status": "disabled"})).status_code == 200
    rotated = (await client.post(f"{place}/rotate", json={"overlap_s": 60})).json()
    assert (await client.delete(place)).status_code == 200
    by, about = f"key:acme/{tenant.token[3:15]}", f"acme/{made['id']}"
    rows = await acts(engine)
    assert [row[:3] for row in rows] == [
        (by, f"webhook_endpoint.{act}", about) for act in ("create", "change", "rotate", "delete")
    ]
    assert [row[3] for row in rows] == [
        {"url": "https://hooks.example.com", "events": ["job.*"], "description": ""},
        {"url": "https://other.example.com", "status": "disabled"},
        {"overlap_s": 60},
        {},
    ]
    said = str(rows)
    assert not any(each in said for each in ("s3cr3t", "hidden", made["secret"], rotated["secret"]))


async def test_what_was_refused_leaves_no_row(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    nobody = f"{ENDPOINTS}/we_{'0' * 32}"
    assert_problem(await client.patch(nobody, json={"status": "enabled"}), 404, "not_found")
    assert_problem(await client.delete(nobody), 404, "not_found")
    assert_problem(await client.post(f"{nobody}/rotate", json={}), 404, "not_found")
    assert_problem(await client.post(ENDPOINTS, json={"url": "http://10.0.0.1/"}), 422, "invalid_request")
    assert await acts(engine) == []


async def test_an_endpoint_that_is_disabled_for_its_answers_is_an_act_of_penstock(
    client: httpx.AsyncClient, engine: AsyncEngine, settings: Settings
) -> None:
    local = settings.model_copy(update={"webhook_allow_local": True})
    async with receiver() as server:
        server.answers["/"] = answer("410 Gone")
        made = (await client.post(ENDPOINTS, json={"url": server.url()})).json()
        async with engine.begin() as conn:
            at = await database_now(conn)
            await emit(conn, [Event("acme", "job.succeeded", at, {"n": n}) for n in range(2)])
            due = await nominate(conn, Rooms(60.0, most=32, cautious=32), limit=10)
        courier = Courier(local, SystemClock(), engine, Random(0))
        for each in due:
            await courier.deliver(each)
    reason = {"reason": "410: the endpoint says that it is gone for good"}
    assert (await acts(engine))[1:] == [("penstock", "webhook_endpoint.disable", f"acme/{made['id']}", reason)]
