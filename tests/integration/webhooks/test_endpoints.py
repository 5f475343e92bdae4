"""Do a tenant's endpoints get what they asked for, signed by their secrets, until they shouldn't any more? API, courier and Postgres."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from app.api.main import create_app
from app.clock import SystemClock
from app.db import database_now
from app.ids import endpoint_name, new_id, parse_name
from app.quotas.keys import rotate_webhook_secret
from app.settings import Settings
from app.webhooks.nominate import Rooms, nominate
from app.webhooks.outbox import Event, emit
from tests.support.api import Tenant, assert_problem, make_tenant, register_bytes, running
from tests.support.audit import assert_audit_clean
from tests.support.receiver import Received, Receiver, answer, receiver
from tests.support.webhooks import pass_time, secret, state, tries
from workers.webhooks.courier import Courier

ENDPOINTS = "/v1/webhook_endpoints"
DELIVERIES = "/v1/webhook_deliveries"
ROOMS = Rooms(again_after_s=60.0, most=1024, cautious=1024)
DAY_S = 86_400


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow_local": True, "webhook_timeout_s": 5.0, "webhook_lease_s": 10.0})


@pytest.fixture
async def server() -> AsyncIterator[Receiver]:
    async with receiver() as it:
        yield it


@pytest.fixture
async def rival(engine: AsyncEngine, settings: Settings) -> Tenant:
    return await make_tenant(engine, settings, "rival")


@pytest.fixture
async def client(engine: AsyncEngine, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    await register_bytes(engine)
    tenant = await make_tenant(engine, settings, "acme")
    async with running(create_app(settings), tenant.auth) as it:
        yield it


class Postman:
    """Makes all deliveries that are due, as dispatcher, RQ and courier do together."""

    def __init__(self, settings: Settings, engine: AsyncEngine) -> None:
        self._engine = engine
        self._courier = Courier(settings, SystemClock(), engine, Random(0))

    async def go(self) -> int:
        async with self._engine.begin() as conn:
            found = await nominate(conn, ROOMS, limit=100)
        for each in found:
            await self._courier.deliver(each)
        return len(found)


@pytest.fixture
async def postman(settings: Settings, engine: AsyncEngine) -> Postman:
    return Postman(settings, engine)


async def make(client: httpx.AsyncClient, url: str, **fields: Any) -> dict[str, Any]:
    made = await client.post(ENDPOINTS, json={"url": url, **fields})
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


async def tell(engine: AsyncEngine, *types: str, tenant: str = "acme", url: str | None = None) -> None:
    async with engine.begin() as conn:
        at = await database_now(conn)
        await emit(conn, [Event(tenant, each, at, {"n": n}, url=url) for n, each in enumerate(types)])


def verifies(secret: str, got: Received) -> bool:
    """By the package that receivers use."""
    try:
        Webhook(secret).verify(got.body, got.headers)
    except WebhookVerificationError:
        return False
    return True


def signatures(got: Received) -> list[str]:
    return got.headers["webhook-signature"].split(" ")


async def endpoint(client: httpx.AsyncClient, made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"{ENDPOINTS}/{made['id']}")).json()
    return found


async def deliveries(client: httpx.AsyncClient, **query: str) -> list[dict[str, Any]]:
    page = await client.get(DELIVERIES, params=query)
    assert page.status_code == 200, page.text
    found: list[dict[str, Any]] = page.json()["data"]
    return found


async def age(engine: AsyncEngine, made: dict[str, Any], seconds: float) -> None:
    """Let the endpoint have failed for so much longer."""
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "UPDATE webhook_endpoints SET failing_since = failing_since - make_interval(secs => :s) WHERE id = :id"
            ),
            {"s": seconds, "id": parse_name("we_", made["id"])},
        )


# --- who is told -----------------------------------------------------------------------------------------------------


async def test_each_endpoint_gets_what_its_filter_lets_through(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman, rival: Tenant
) -> None:
    for path, events in (
        ("/default", None),
        ("/all", ["*"]),
        ("/kind", ["batch.*", "job.dead"]),
        ("/one", ["job.started"]),
    ):
        await make(client, server.url(path), events=events)
    disabled = await make(client, server.url("/disabled"))
    await client.patch(f"{ENDPOINTS}/{disabled['id']}", json={"status": "disabled"})
    theirs = await client.post(ENDPOINTS, json={"url": server.url("/theirs")}, headers=rival.auth)
    assert theirs.status_code == 201
    await tell(engine, "job.started", "job.dead", "batch.completed", url=server.url("/own"))
    while await postman.go():
        pass
    got: dict[str, list[str]] = {}
    ids: dict[str, set[str]] = {}
    for each in server.received:
        kind = json.loads(each.body)["type"]
        got.setdefault(each.path, []).append(kind)
        ids.setdefault(kind, set()).add(each.headers["webhook-id"])
    assert {path: sorted(kinds) for path, kinds in got.items()} == {
        "/default": ["batch.completed", "job.dead"],
        "/all": ["batch.completed", "job.dead", "job.started"],
        "/kind": ["batch.completed", "job.dead"],
        "/one": ["job.started"],
        "/own": ["batch.completed", "job.dead", "job.started"],
    }
    assert all(len(each) == 1 for each in ids.values()), "one event, one id, whoever is told"


async def test_an_end_and_its_deliveries_are_one_transaction(
    client: httpx.AsyncClient, engine: AsyncEngine, settings: Settings, server: Receiver, postman: Postman
) -> None:
    await make(client, server.url("/"))
    body = {"prompt": "a", "max_tokens": 2, "metadata": {"order": "17"}}
    job = (await client.post("/v1/jobs", json=body)).json()
    assert await deliveries(client) == []
    cancelled = (await client.post(f"/v1/jobs/{job['id']}/cancel")).json()
    (waiting,) = await deliveries(client, job=job["id"])
    assert (waiting["type"], waiting["status"], waiting["job"]) == ("job.cancelled", "pending", job["id"])
    assert await postman.go() == 1
    (got,) = server.received
    event = json.loads(got.body)
    assert event["created_at"] == cancelled["finished_at"]
    assert event["created_at"].endswith("Z")
    shown = (await client.get(f"/v1/jobs/{job['id']}")).json()
    assert {name: event["data"][name] for name in ("id", "status", "model", "tier", "metadata")} == {
        name: shown[name] for name in ("id", "status", "model", "tier", "metadata")
    }
    assert event["data"]["usage"].keys() == shown["usage"].keys()
    await assert_audit_clean(engine, None)


async def test_a_rolled_back_event_is_told_to_nobody(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver
) -> None:
    await make(client, server.url("/"))
    async with engine.connect() as conn:
        assert await emit(conn, [Event("acme", "job.dead", await database_now(conn), {})]) == 1
        await conn.rollback()
    assert await deliveries(client) == []


async def test_a_second_death_of_a_job_is_told_too_but_each_once(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver
) -> None:
    """Deliveries were unique by job, type and URL once: the death after a requeue was swallowed."""
    await make(client, server.url("/"))
    job_id = new_id()
    for reservation in (1, 1, 2):
        async with engine.begin() as conn:
            at = await database_now(conn)
            event = Event("acme", "job.dead", at, {}, job_id=job_id, url=server.url("/"), reservation=reservation)
            await emit(conn, [event])
    assert len(await deliveries(client, job=f"job_{job_id.hex}")) == 4


async def test_a_budgets_threshold_is_told_to_the_tenants_endpoints(
    client: httpx.AsyncClient, engine: AsyncEngine, settings: Settings, server: Receiver, postman: Postman
) -> None:
    await make(client, server.url("/"), events=["budget.threshold"])
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO budgets (id, tenant_id, metric, period, hard_limit) VALUES (:id, 'acme', 'requests', 'day', 5)"
            ),
            {"id": new_id()},
        )
    answers = [await client.post("/v1/jobs", json={"prompt": "a", "max_tokens": 1}) for _ in range(5)]
    assert [each.status_code for each in answers] == [202] * 5
    await postman.go()
    events = [json.loads(each.body) for each in server.received]
    assert [(each["type"], each["data"]["threshold"], each["data"]["reserved"]) for each in events] == [
        ("budget.threshold", 80, 4),
        ("budget.threshold", 100, 5),
    ]
    assert all(each["data"]["window_start"].endswith("Z") for each in events)


# --- signatures ------------------------------------------------------------------------------------------------------


async def test_the_receivers_package_verifies_before_during_and_after_a_rotation(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    made = await make(client, server.url("/"))
    first = made["secret"]

    async def told() -> Received:
        await tell(engine, "job.dead")
        assert await postman.go() == 1
        return server.received[-1]

    before = await told()
    assert (verifies(first, before), len(signatures(before))) == (True, 1)
    rotated = (await client.post(f"{ENDPOINTS}/{made['id']}/rotate", json={"overlap_s": 3600})).json()
    second = rotated["secret"]
    assert second != first
    assert rotated["old_secret_until"] is not None
    during = await told()
    assert verifies(first, during)
    assert verifies(second, during)
    assert len(signatures(during)) == 2
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE webhook_endpoints SET old_until = now() - interval '1 s'"))
    after = await told()
    assert (verifies(first, after), verifies(second, after), len(signatures(after))) == (False, True, 1)
    assert (await endpoint(client, made))["old_secret_until"] is None
    third = (await client.post(f"{ENDPOINTS}/{made['id']}/rotate", json={"overlap_s": 0})).json()["secret"]
    at_once = await told()
    assert (verifies(second, at_once), verifies(third, at_once)) == (False, True)
    assert [verifies(third, Received("/", each.headers, each.body + b" ")) for each in server.received] == [False] * 4


async def test_the_secret_of_jobs_own_urls_is_rotated_too(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    first = await secret(engine)
    async with engine.begin() as conn:
        second = await rotate_webhook_secret(conn, "acme", overlap_s=60.0, actor="test")
    await tell(engine, "job.dead", url=server.url("/"))
    await postman.go()
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET old_webhook_until = now() - interval '1 s'"))
    await tell(engine, "job.dead", url=server.url("/"))
    await postman.go()
    during, after = server.received
    assert [verifies(each, during) for each in (first, second)] == [True, True]
    assert [verifies(each, after) for each in (first, second)] == [False, True]


async def test_a_secret_is_shown_once_and_belongs_to_its_endpoint(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    one, other = await make(client, server.url("/one")), await make(client, server.url("/other"))
    for path in (f"{ENDPOINTS}/{one['id']}", ENDPOINTS):
        assert "whsec_" not in (await client.get(path)).text
    await tell(engine, "job.dead")
    await postman.go()
    got = {each.path: each for each in server.received}
    assert [verifies(one["secret"], got[path]) for path in ("/one", "/other")] == [True, False]
    assert [verifies(other["secret"], got[path]) for path in ("/one", "/other")] == [False, True]
    key = base64.b64decode(one["secret"].removeprefix("whsec_"))
    assert len(key) == 32
    headers = got["/one"].headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + got["/one"].body
    assert signatures(got["/one"]) == [
        "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    ]


# --- ends of endpoints -----------------------------------------------------------------------------------------------


async def test_410_disables_at_once_and_gives_up_what_waits(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    made = await make(client, server.url("/"))
    server.answers["/"] = answer("500 Oh")
    await tell(engine, "job.dead")
    await postman.go()
    server.answers["/"] = answer("410 Gone")
    await tell(engine, "job.failed")
    await postman.go()
    found = await endpoint(client, made)
    assert found["status"] == "disabled"
    assert found["disabled_reason"] == "410: the endpoint says that it is gone for good"
    assert [(each["status"], each["error"]) for each in await deliveries(client)] == [
        ("failed", found["disabled_reason"])
    ] * 2
    await tell(engine, "job.expired")
    assert len(await deliveries(client)) == 2
    refused = await client.post(f"{ENDPOINTS}/{made['id']}/ping")
    assert_problem(refused, 409, "webhook_endpoint_disabled", "410")


async def test_five_days_of_failures_disable_and_the_owner_sees_why(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    made = await make(client, server.url("/"))
    server.answers["/"] = answer("503 Service Unavailable")

    async def fail() -> dict[str, Any]:
        await tell(engine, "job.dead")
        assert await postman.go() == 1
        return await endpoint(client, made)

    since = (await fail())["failing_since"]
    assert since is not None
    assert (await fail())["failing_since"] == since
    await age(engine, made, 4.9 * DAY_S)
    assert (await fail())["status"] == "enabled"
    # One success, and the days are counted anew.
    server.answers["/"] = answer("204 No Content")
    await tell(engine, "job.dead")
    await postman.go()
    assert (await endpoint(client, made))["failing_since"] is None
    server.answers["/"] = answer("503 Service Unavailable")
    await fail()
    await age(engine, made, 5 * DAY_S)
    found = await fail()
    assert found["status"] == "disabled"
    assert found["disabled_reason"].startswith("no try was accepted since ")
    assert found["disabled_reason"].endswith("; the last one: 503: the endpoint didn't accept it")
    assert {each["status"] for each in await deliveries(client)} == {"failed", "delivered"}
    # Its owner mends it, and sends what failed again.
    server.answers["/"] = answer("204 No Content")
    enabled = (await client.patch(f"{ENDPOINTS}/{made['id']}", json={"status": "enabled"})).json()
    assert (enabled["status"], enabled["disabled_reason"], enabled["failing_since"]) == ("enabled", None, None)
    failed = len(await deliveries(client, status="failed"))
    recovered = await client.post(f"{ENDPOINTS}/{made['id']}/recover", json={"since_s": 3600})
    assert recovered.json() == {"object": "webhook_recovery", "resent": failed}
    while await postman.go():
        pass
    assert {each["status"] for each in await deliveries(client)} == {"delivered"}


async def test_a_recovery_doesnt_wait_for_the_next_try_of_what_has_failed_once(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    made = await make(client, server.url("/"))
    server.answers["/"] = answer("503 Service Unavailable")
    await tell(engine, "job.dead")
    assert await postman.go() == 1
    (waiting,) = await deliveries(client, status="pending")
    assert (waiting["tries"], await postman.go()) == (1, 0), "its next try isn't due"
    await tell(engine, "job.dead")
    server.answers["/"] = answer("204 No Content")
    recovered = await client.post(f"{ENDPOINTS}/{made['id']}/recover", json={"since_s": 3600})
    assert recovered.json()["resent"] == 1, "what was never tried comes by itself"
    while await postman.go():
        pass
    assert [each["status"] for each in await deliveries(client)] == ["delivered"] * 2
    assert [each["tries"] for each in await deliveries(client)] == [1, 2]


async def test_a_delivery_that_was_written_while_its_endpoint_was_disabled_is_given_up(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    """The transaction that wrote it had read the endpoint a moment before."""
    await make(client, server.url("/"))
    await tell(engine, "job.dead")
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE webhook_endpoints SET status = 'disabled', disabled_reason = 'by its owner'"))
    assert await postman.go() == 0
    (found,) = await deliveries(client)
    assert (found["status"], found["error"], server.received) == ("failed", "by its owner", [])


async def test_what_was_handed_over_before_its_endpoint_was_disabled_isnt_sent(
    client: httpx.AsyncClient, engine: AsyncEngine, settings: Settings, server: Receiver
) -> None:
    made = await make(client, server.url("/"))
    await tell(engine, "job.dead")
    async with engine.begin() as conn:
        (handed,) = await nominate(conn, ROOMS, limit=10)
    # As by another worker, whose transaction has yet to give up what waits.
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE webhook_endpoints SET status = 'disabled'"))
    await Courier(settings, SystemClock(), engine, Random(0)).deliver(handed)
    assert server.received == []
    assert (await endpoint(client, made))["status"] == "disabled"
    assert [each["tries"] for each in await deliveries(client)] == [0]


async def test_a_deleted_endpoint_is_gone_but_its_history_isnt(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    made = await make(client, server.url("/"))
    await tell(engine, "job.dead")
    await postman.go()
    await tell(engine, "job.failed")
    gone = await client.delete(f"{ENDPOINTS}/{made['id']}")
    assert (gone.status_code, gone.json()) == (200, {"id": made["id"], "object": "webhook_endpoint", "deleted": True})
    assert (await client.delete(f"{ENDPOINTS}/{made['id']}")).status_code == 404
    assert (await client.get(ENDPOINTS)).json()["data"] == []
    await tell(engine, "job.expired")
    found = await deliveries(client, endpoint=made["id"])
    assert [(each["type"], each["status"]) for each in found] == [("job.failed", "failed"), ("job.dead", "delivered")]
    assert (await client.post(f"{DELIVERIES}/{found[0]['id']}/resend")).status_code == 404
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT secret FROM webhook_endpoints")) == ""


# --- history ---------------------------------------------------------------------------------------------------------


async def test_every_try_is_kept_and_can_be_sent_again_under_the_same_id(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    await make(client, server.url("/"))
    server.answers["/"] = answer("500 Oh")
    await tell(engine, "job.dead")
    for _ in range(12):
        await postman.go()
        await pass_time(engine, 200_000)
    (failed,) = await deliveries(client)
    assert (failed["status"], failed["tries"], failed["error"]) == ("failed", 10, "500: the endpoint didn't accept it")
    again = await client.post(f"{DELIVERIES}/{failed['id']}/resend")
    assert (again.status_code, again.json()["status"]) == (202, "pending")
    await postman.go()
    delivery_id = parse_name("wd_", failed["id"])
    assert delivery_id is not None
    row = await state(engine, delivery_id)
    assert (row.status, row.tries) == ("pending", 11), "a resend has the whole schedule before it"
    assert row.wait_s <= 6
    server.answers["/"] = answer("200 OK")
    await client.post(f"{DELIVERIES}/{failed['id']}/resend")
    await postman.go()
    story = (await client.get(f"{DELIVERIES}/{failed['id']}")).json()
    assert (story["status"], story["tries"], story["error"]) == ("delivered", 12, None)
    assert [each["http_status"] for each in story["tries_made"]] == [500] * 11 + [200]
    assert story["payload"] == json.loads(server.received[0].body)
    assert len(await tries(engine, delivery_id)) == len(server.received) == 12
    assert {each.headers["webhook-id"] for each in server.received} == {failed["event"]}
    await client.post(f"{DELIVERIES}/{failed['id']}/resend")  # one that was delivered, too
    await postman.go()
    assert len(server.received) == 13


async def test_a_ping_goes_the_way_of_all_events_whatever_the_filter(
    client: httpx.AsyncClient, server: Receiver, postman: Postman
) -> None:
    made = await make(client, server.url("/"), events=["job.dead"])
    pinged = await client.post(f"{ENDPOINTS}/{made['id']}/ping")
    assert pinged.status_code == 202
    assert await postman.go() == 1
    (got,) = server.received
    assert json.loads(got.body)["type"] == "webhook.ping"
    assert verifies(made["secret"], got)
    assert (await client.get(f"{DELIVERIES}/{pinged.json()['id']}")).json()["status"] == "delivered"


async def test_what_waits_goes_to_the_new_url(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    made = await make(client, server.url("/old"))
    await tell(engine, "job.dead")
    await client.patch(f"{ENDPOINTS}/{made['id']}", json={"url": server.url("/new"), "description": "moved"})
    await postman.go()
    assert [each.path for each in server.received] == ["/new"]


async def test_what_came_of_a_try_at_the_old_url_says_nothing_of_the_new_one(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    """The old place says 410, as those do that have moved; the answer came after the change, and disabled the endpoint for good."""
    made = await make(client, server.url("/old"))
    server.hold.add("/old")
    server.answers["/old"] = answer("410 Gone")
    await tell(engine, "job.dead")
    trying = asyncio.create_task(postman.go())
    await server.wait(1)
    await client.patch(f"{ENDPOINTS}/{made['id']}", json={"url": server.url("/new")})
    server.release()
    await trying
    found = await endpoint(client, made)
    assert (found["status"], found["failing_since"]) == ("enabled", None)
    (waiting,) = await deliveries(client)
    assert (waiting["status"], waiting["error"]) == ("pending", None)
    assert await postman.go() == 1, "at once, not when a failed try would be repeated"
    assert [each["status"] for each in await deliveries(client)] == ["delivered"]
    assert [each.path for each in server.received] == ["/old", "/new"]


async def test_a_success_that_began_before_anothers_failure_counts(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    """The endpoint wasn't failing yet when it began, so it was left failing: after five quiet days the next failure disabled it."""
    made = await make(client, server.url("/"))
    server.hold.add("/")
    await tell(engine, "job.dead")
    slow = asyncio.create_task(postman.go())
    await server.wait(1)
    server.hold.clear()
    server.answers["/"] = answer("503 Service Unavailable")
    await tell(engine, "job.failed")
    assert await postman.go() == 1
    assert (await endpoint(client, made))["failing_since"] is not None
    server.answers["/"] = answer("204 No Content")
    server.release()
    await slow
    assert (await endpoint(client, made))["failing_since"] is None


async def test_a_new_url_has_its_own_five_days(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, postman: Postman
) -> None:
    made = await make(client, server.url("/old"))
    server.answers["/old"] = server.answers["/new"] = answer("503 Service Unavailable")
    await tell(engine, "job.dead")
    await postman.go()
    await age(engine, made, 6 * DAY_S)
    same = await client.patch(f"{ENDPOINTS}/{made['id']}", json={"url": server.url("/old"), "description": "the same"})
    assert same.json()["failing_since"] is not None
    moved = await client.patch(f"{ENDPOINTS}/{made['id']}", json={"url": server.url("/new")})
    assert moved.json()["failing_since"] is None
    await tell(engine, "job.dead")
    await postman.go()
    assert (await endpoint(client, made))["status"] == "enabled"


# --- whose -----------------------------------------------------------------------------------------------------------


async def test_anothers_endpoints_and_deliveries_arent_there(
    client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver, rival: Tenant, postman: Postman
) -> None:
    made = await make(client, server.url("/"))
    await tell(engine, "job.dead")
    (mine,) = await deliveries(client)
    for method, path, body in (
        ("GET", f"{ENDPOINTS}/{made['id']}", None),
        ("PATCH", f"{ENDPOINTS}/{made['id']}", {"status": "disabled"}),
        ("DELETE", f"{ENDPOINTS}/{made['id']}", None),
        ("POST", f"{ENDPOINTS}/{made['id']}/rotate", {}),
        ("POST", f"{ENDPOINTS}/{made['id']}/ping", None),
        ("POST", f"{ENDPOINTS}/{made['id']}/recover", {"since_s": 60}),
        ("GET", f"{DELIVERIES}/{mine['id']}", None),
        ("POST", f"{DELIVERIES}/{mine['id']}/resend", None),
    ):
        refused = await client.request(method, path, json=body, headers=rival.auth)
        assert_problem(refused, 404, "not_found")
    for path in (ENDPOINTS, DELIVERIES, f"{DELIVERIES}?endpoint={made['id']}"):
        assert (await client.get(path, headers=rival.auth)).json()["data"] == []
    assert await endpoint(client, made) == {name: value for name, value in made.items() if name != "secret"}
    await postman.go()
    assert verifies(made["secret"], server.received[0])


async def test_what_cant_be_meant_is_refused(
    client: httpx.AsyncClient, engine: AsyncEngine, settings: Settings
) -> None:
    url = "https://hooks.example.com/"
    for body, param in (
        ({}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"url": url, "events": []}, "events"),
        ({"url": url, "events": ["job.sneezed"]}, "events"),
        ({"url": url, "secret": "whsec_mine"}, "secret"),
    ):
        refused = await client.post(ENDPOINTS, json=body)
        assert_problem(refused, 422, "invalid_request", param)
    made = await make(client, url)
    assert_problem(await client.patch(f"{ENDPOINTS}/{made['id']}", json={}), 422, "invalid_request")
    for query in ("endpoint=we_1", "job=x", "status=lost", "type=job.sneezed", "colour=red"):
        assert_problem(await client.get(f"{DELIVERIES}?{query}"), 422, "invalid_request", query.split("=")[0])
    for path in (f"{ENDPOINTS}/x", f"{DELIVERIES}/wd_1", f"{ENDPOINTS}/{endpoint_name(UUID(int=7))}"):
        assert_problem(await client.get(path), 404, "not_found")
    for _ in range(49):
        await make(client, url)
    assert_problem(await client.post(ENDPOINTS, json={"url": url}), 422, "invalid_request", "50")
    strict = create_app(settings.model_copy(update={"webhook_allow_local": False}))
    async with running(strict, dict(client.headers)) as other:
        refused = await other.post(ENDPOINTS, json={"url": "http://localhost:9000/"})
        assert_problem(refused, 422, "invalid_request", "PENSTOCK_WEBHOOK_ALLOW_LOCAL")


async def test_lists_page(client: httpx.AsyncClient, engine: AsyncEngine, server: Receiver) -> None:
    made = [await make(client, server.url(f"/{n}")) for n in range(3)]
    await tell(engine, "job.dead")
    for path, wanted in ((ENDPOINTS, [each["id"] for each in made]), (DELIVERIES, None)):
        found, cursor = [], None
        while True:
            page = (await client.get(path, params={"limit": 2} | ({"cursor": cursor} if cursor else {}))).json()
            found += [each["id"] for each in page["data"]]
            cursor = page["next_cursor"]
            if not page["has_more"]:
                break
        assert len(found) == len(set(found)) == 3
        assert wanted in (None, found)
