"""Do operators, and only they, manage tenants, keys, budgets and prices over HTTP; and is each tenant held to what they say?"""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.jobs.models import Model
from app.quotas.tables import audit_log
from app.settings import Settings
from tests.support.api import HandWorker, Submit, Tenant, assert_problem, make_tenant, register_bytes, running
from tests.support.audit import assert_audit_clean

NO_BUDGET = "00000000-0000-7000-8000-000000000000"
TENANTS = "/v1/admin/tenants"
DAY = {"metric": "total_tokens", "period": "day", "limit": 1000}
CALLS: list[tuple[str, str, Any]] = [
    ("GET", TENANTS, None),
    ("POST", TENANTS, {"id": "new"}),
    ("GET", f"{TENANTS}/acme", None),
    ("PATCH", f"{TENANTS}/acme", {"weight": 2}),
    ("POST", f"{TENANTS}/acme/suspend", {"reason": "x"}),
    ("POST", f"{TENANTS}/acme/resume", {"reason": "x"}),
    ("GET", f"{TENANTS}/acme/keys", None),
    ("POST", f"{TENANTS}/acme/keys", {}),
    ("GET", "/v1/admin/keys/000000000000", None),
    ("PATCH", "/v1/admin/keys/000000000000", {"name": "x"}),
    ("POST", "/v1/admin/keys/000000000000/rotate", {}),
    ("POST", "/v1/admin/keys/000000000000/revoke", None),
    ("GET", f"{TENANTS}/acme/budgets", None),
    ("POST", f"{TENANTS}/acme/budgets", DAY),
    ("GET", f"/v1/admin/budgets/{NO_BUDGET}", None),
    ("PATCH", f"/v1/admin/budgets/{NO_BUDGET}", {"limit": 1}),
    ("POST", f"/v1/admin/budgets/{NO_BUDGET}/retire", None),
    ("GET", "/v1/admin/models/bytes", None),
    ("PATCH", "/v1/admin/models/bytes", {"input_price": 1}),
]


class HandClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def monotonic(self) -> float:
        return self.time_s

    def now(self) -> float:
        return self.time_s


@pytest.fixture
async def admin(
    app: FastAPI, client: httpx.AsyncClient, engine: AsyncEngine, settings: Settings
) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends an operator's key."""
    operator = await make_tenant(engine, settings, "ops", scopes=["admin"])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=operator.auth) as admin:
        yield admin


async def done(admin: httpx.AsyncClient, method: str, path: str, body: Any = None, status: int = 200) -> dict[str, Any]:
    answer = await admin.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


async def acts(engine: AsyncEngine) -> list[tuple[str, str, str]]:
    async with engine.connect() as conn:
        found = await conn.execute(
            select(audit_log.c.actor, audit_log.c.action, audit_log.c.target)
            .where(audit_log.c.actor != "test")
            .order_by(audit_log.c.id)
        )
        return [(row.actor.split("/")[0], row.action, row.target) for row in found]


def in_new_app(settings: Settings, tenant: Tenant) -> Any:
    """As another API process sees it, which remembers nothing yet."""
    return running(create_app(settings), tenant.auth)


async def test_only_operators_may_enter_and_nothing_happens_for_others(
    app: FastAPI, client: httpx.AsyncClient, admin: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    async with running(app) as stranger:
        for method, path, body in CALLS:
            assert_problem(await stranger.request(method, path, json=body), 401, "unauthenticated")
            assert_problem(await client.request(method, path, json=body), 403, "forbidden", "lacks the scope admin")
    assert await acts(engine) == []


async def test_a_tenant_from_its_making_to_its_suspension(admin: httpx.AsyncClient, engine: AsyncEngine) -> None:
    made = await done(admin, "POST", TENANTS, {"id": "fresh", "weight": 3, "tiers": ["batch"]}, 201)
    assert (made["object"], made["weight"], made["tiers"], made["max_queued_jobs"]) == ("tenant", 3, ["batch"], None)
    assert "whsec" not in str(made)
    assert await done(admin, "GET", f"{TENANTS}/fresh") == made
    twice = await admin.post(TENANTS, json={"id": "fresh"})
    assert assert_problem(twice, 409, "already_exists", "'fresh'")["param"] == "id"
    changed = await done(admin, "PATCH", f"{TENANTS}/fresh", {"max_queued_jobs": 4, "token_burst": 9})
    assert changed == made | {"max_queued_jobs": 4, "token_burst": 9}
    assert await done(admin, "PATCH", f"{TENANTS}/fresh", {"max_queued_jobs": None, "token_burst": None}) == made
    assert (await done(admin, "POST", f"{TENANTS}/fresh/suspend", {"reason": "unpaid"}))["suspended_at"]
    listed = await done(admin, "GET", f"{TENANTS}?state=suspended")
    assert [each["id"] for each in listed["data"]] == ["fresh"]
    assert await done(admin, "POST", f"{TENANTS}/fresh/resume", {"reason": "paid"}) == made
    assert await acts(engine) == [
        ("key:ops", "tenant.create", "fresh"),
        ("key:ops", "tenant.change", "fresh"),
        ("key:ops", "tenant.change", "fresh"),
        ("key:ops", "tenant.suspend", "fresh"),
        ("key:ops", "tenant.resume", "fresh"),
    ]


async def test_lists_come_in_pages_that_hold_each_thing_once(admin: httpx.AsyncClient) -> None:
    for name in ("d", "b", "e", "c"):
        await done(admin, "POST", TENANTS, {"id": name}, 201)
    for period in ("minute", "hour", "day", "month", "total"):
        await done(admin, "POST", f"{TENANTS}/d/budgets", DAY | {"period": period}, 201)
        await done(admin, "POST", f"{TENANTS}/d/keys", {}, 201)
    for path, total in ((TENANTS, 6), (f"{TENANTS}/d/keys", 5), (f"{TENANTS}/d/budgets", 5)):
        found: list[str] = []
        cursor = ""
        while True:
            page = await done(admin, "GET", f"{path}?limit=2{cursor}")
            assert len(page["data"]) <= 2
            found += [each["id"] for each in page["data"]]
            if not page["has_more"]:
                assert page["next_cursor"] is None
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert len(found) == len(set(found)) == total
        assert found == sorted(found)
        for query in (
            "limit=0",
            "limit=x",
            "cursor=!",
            "cursor=AAAA",
            "cursor=" + "a" * 200,
            "page=2",
            "limit=1&limit=2",
        ):
            assert_problem(await admin.get(f"{path}?{query}"), 422, "invalid_request")


async def test_what_is_not_there_is_not_found(admin: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
    names = ["nobody", "NOBODY", "%00", "a%00b", "..%2f", "a" * 500, "%F0%9F%92%A9", "-", "a%0A"]
    for method, path, body in CALLS:
        if "acme" not in path:
            continue
        for name in names:
            with subtests.test(path=path, name=name[:20]):
                gone = path.replace("acme", name)
                assert_problem(await admin.request(method, gone, json=body), 404, "not_found")
    for prefix in ("000000000000", "x", "%00", "0" * 500):
        assert_problem(await admin.get(f"/v1/admin/keys/{prefix}"), 404, "not_found")
        assert_problem(await admin.patch(f"/v1/admin/keys/{prefix}", json={"name": "x"}), 404, "not_found")
        assert_problem(await admin.post(f"/v1/admin/keys/{prefix}/rotate", json={}), 404, "not_found")
        assert_problem(await admin.post(f"/v1/admin/keys/{prefix}/revoke"), 404, "not_found")
    for budget in (NO_BUDGET, "1", "%00", NO_BUDGET.replace("-", ""), "{" + NO_BUDGET + "}"):
        assert_problem(await admin.get(f"/v1/admin/budgets/{budget}"), 404, "not_found")
        assert_problem(await admin.patch(f"/v1/admin/budgets/{budget}", json={"limit": 1}), 404, "not_found")
        assert_problem(await admin.post(f"/v1/admin/budgets/{budget}/retire"), 404, "not_found")
    for model in ("nothing", "%00", "a/b/c", "x" * 300):
        assert_problem(await admin.get(f"/v1/admin/models/{model}"), 404, "unknown_model")
        assert_problem(await admin.patch(f"/v1/admin/models/{model}", json={"input_price": 1}), 404, "unknown_model")


async def test_hostile_bodies_are_refused_by_field_and_change_nothing(
    admin: httpx.AsyncClient, engine: AsyncEngine, subtests: pytest.Subtests
) -> None:
    key = f"/v1/admin/keys/{admin.headers['authorization'].split('_')[1]}"
    cases: list[tuple[str, str, Any, str]] = [
        ("PATCH", key, {}, ""),
        ("PATCH", key, {"name": "a\x00"}, "name"),
        ("PATCH", key, {"name": None}, "name"),
        ("PATCH", key, {"scopes": []}, "scopes"),
        ("PATCH", key, {"tenant": "acme"}, "tenant"),
        ("PATCH", key, {"prefix": "000000000000"}, "prefix"),
        ("PATCH", key, {"requests_per_minute": 0}, "requests_per_minute"),
        ("PATCH", key, {"expires_at": 4102444800}, "expires_at"),
        ("PATCH", key, {"expires_at": "4102444800"}, "expires_at"),
        ("PATCH", key, {"expires_at": "2030-01-31T12:00:00"}, "expires_at"),
        ("PATCH", key, {"expires_at": "2030-02-31T12:00:00Z"}, "expires_at"),
        ("PATCH", key, {"expires_at": "2020-01-31T12:00:00Z"}, "expires_at"),
        ("PATCH", key, {"expires_at": "2999-01-31T12:00:00Z"}, "expires_at"),
        ("PATCH", key, {"expires_at": "0001-01-01T00:00:00+14:00"}, "expires_at"),
        ("PATCH", key, {"expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at"),
        ("POST", TENANTS, {"id": "x", "weight": 10**400}, "weight"),
        ("POST", TENANTS, {"id": "x'; DROP TABLE tenants; --"}, "id"),
        ("POST", TENANTS, {"id": "x", "display_name": "a\x00"}, "display_name"),
        ("POST", TENANTS, {"id": "x", "max_queued_tokens": 10**15 + 1}, "max_queued_tokens"),
        ("POST", TENANTS, {"id": ["x"]}, "id"),
        ("POST", TENANTS, {}, "id"),
        ("PATCH", f"{TENANTS}/acme", {}, ""),
        ("PATCH", f"{TENANTS}/acme", {"weight": None}, "weight"),
        ("PATCH", f"{TENANTS}/acme", {"webhook_secret": "whsec_x"}, "webhook_secret"),
        ("PATCH", f"{TENANTS}/acme", {"tiers": ["batch", "gold"]}, "tiers[1]"),
        ("POST", f"{TENANTS}/acme/suspend", {}, "reason"),
        ("POST", f"{TENANTS}/acme/suspend", {"reason": "\x1b]0;x\x07"}, "reason"),
        ("POST", f"{TENANTS}/acme/keys", {"scopes": ["admin", "*"]}, "scopes[1]"),
        ("POST", f"{TENANTS}/acme/keys", {"expires_in_s": -1}, "expires_in_s"),
        ("POST", f"{TENANTS}/acme/keys", {"tenant": "ops"}, "tenant"),
        ("POST", f"{TENANTS}/acme/budgets", DAY | {"limit": 1.5}, "limit"),
        ("POST", f"{TENANTS}/acme/budgets", DAY | {"thresholds": [50, 101]}, "thresholds[1]"),
        ("POST", f"{TENANTS}/acme/budgets", DAY | {"key": "000000000000"}, "key"),
        ("POST", f"{TENANTS}/acme/budgets", DAY | {"tenant": "ops"}, "tenant"),
        ("PATCH", "/v1/admin/models/bytes", {"input_price": 10**10 + 1}, "input_price"),
        ("PATCH", "/v1/admin/models/bytes", {"fallback": "bytes"}, "fallback"),
        ("PATCH", "/v1/admin/models/bytes", {"fallback": "nothing"}, "fallback"),
        ("PATCH", "/v1/admin/models/bytes", {}, ""),
    ]
    for method, path, body, param in cases:
        with subtests.test(path=path, body=str(body)[:40]):
            answer = await admin.request(method, path, json=body)
            problem = assert_problem(answer, 422, "invalid_request")
            assert problem.get("param", "") == param
            assert param in problem["detail"]
    for body in (b"", b"[]", b'{"id": NaN}', b"\xff", b'{"id": "\\ud800"}'):
        answer = await admin.post(TENANTS, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in {400, 422}, answer.text
    assert_problem(await admin.post(TENANTS, content=b"x" * 70_000), 413, "body_too_large")
    assert_problem(
        await admin.post(TENANTS, content=b"id=x", headers={"Content-Type": "text/plain"}),
        415,
        "unsupported_media_type",
    )
    assert await acts(engine) == []


async def test_a_key_from_its_making_to_its_end(
    app: FastAPI, admin: httpx.AsyncClient, settings: Settings, model: Model, engine: AsyncEngine
) -> None:
    made = await done(
        admin, "POST", f"{TENANTS}/acme/keys", {"name": "n", "scopes": ["jobs:read"], "requests_per_minute": 5}, 201
    )
    assert (made["tenant"], made["scopes"], made["requests_per_minute"], made["state"]) == (
        "acme", ["jobs:read"], 5, "valid",
    )  # fmt: skip
    assert made["token"].startswith(f"pk_{made['prefix']}_")
    fresh = await done(admin, "POST", f"/v1/admin/keys/{made['prefix']}/rotate", {"overlap_s": 60})
    assert (fresh["id"], fresh["old_prefix"]) == (made["id"], made["prefix"])
    again = await admin.post(f"/v1/admin/keys/{made['prefix']}/rotate", json={})
    assert_problem(again, 409, "key_ended", f"its prefix is {fresh['prefix']} now")
    async with running(create_app(settings)) as elsewhere:
        for token in (made["token"], fresh["token"]):
            auth = {"Authorization": f"Bearer {token}"}
            assert (await elsewhere.get("/v1/jobs", headers=auth)).status_code == 200
            assert_problem(await elsewhere.post("/v1/jobs", json={}, headers=auth), 403, "forbidden")
    listed = await done(admin, "GET", f"{TENANTS}/acme/keys")
    assert made["token"] not in str(listed)
    assert [each["state"] for each in listed["data"]] == ["valid", "valid"]
    revoked = await done(admin, "POST", f"/v1/admin/keys/{fresh['prefix']}/revoke")
    assert revoked["state"] == "revoked"
    assert await done(admin, "POST", f"/v1/admin/keys/{fresh['prefix']}/revoke") == revoked
    async with running(create_app(settings)) as elsewhere:
        for token in (made["token"], fresh["token"]):
            auth = {"Authorization": f"Bearer {token}"}
            assert_problem(await elsewhere.get("/v1/jobs", headers=auth), 401, "unauthenticated")
    assert [action for _, action, _ in await acts(engine)] == ["key.create", "key.rotate", "key.revoke"]


async def test_a_key_is_changed_and_its_token_may_what_it_says_now(
    admin: httpx.AsyncClient, settings: Settings, model: Model, engine: AsyncEngine
) -> None:
    """Its name, scopes, expiry and rates were what they were made as: another expiry was a new secret, anything else a new key."""
    made = await done(admin, "POST", f"{TENANTS}/acme/keys", {"name": "n", "scopes": ["jobs:read"]}, 201)
    path, auth = f"/v1/admin/keys/{made['prefix']}", {"Authorization": f"Bearer {made['token']}"}
    assert await done(admin, "GET", path) == {name: value for name, value in made.items() if name != "token"}
    wanted = {
        "name": "nightly import", "scopes": ["jobs:write", "jobs:read"], "expires_at": "2030-01-31T13:00:00.5+01:00",
        "requests_per_minute": 1,
    }  # fmt: skip
    changed = await done(admin, "PATCH", path, wanted)
    assert changed == {name: value for name, value in made.items() if name != "token"} | {
        "name": "nightly import", "scopes": ["jobs:read", "jobs:write"], "expires_at": "2030-01-31T12:00:00.500000Z",
        "requests_per_minute": 1,
    }  # fmt: skip
    assert await done(admin, "PATCH", path, wanted) == changed
    async with running(create_app(settings)) as elsewhere:
        body = {"prompt": "Once", "max_tokens": 4}
        assert (await elsewhere.post("/v1/jobs", json=body, headers=auth)).status_code == 202
        assert_problem(await elsewhere.post("/v1/jobs", json=body, headers=auth), 429, "rate_limited")
    assert (await done(admin, "PATCH", path, {"expires_at": None, "requests_per_minute": None}))["expires_at"] is None
    async with engine.connect() as conn:
        told = list(await conn.scalars(select(audit_log.c.detail).where(audit_log.c.action == "key.change")))
    assert told == [
        {
            "name": ["n", "nightly import"], "scopes": [["jobs:read"], ["jobs:read", "jobs:write"]],
            "expires_at": [None, "2030-01-31T12:00:00.500000Z"], "requests_per_minute": [None, 1],
        },
        {"expires_at": ["2030-01-31T12:00:00.500000Z", None], "requests_per_minute": [1, None]},
    ]  # fmt: skip
    await done(admin, "POST", f"{path}/revoke")
    assert_problem(await admin.patch(path, json={"name": "again"}), 409, "key_ended", "is revoked")
    assert (await done(admin, "GET", path))["name"] == "nightly import"


async def test_the_secret_before_is_believed_for_five_seconds_more_at_most(
    engine: AsyncEngine, settings: Settings, model: Model, tenant: Tenant
) -> None:
    clock = HandClock()
    async with running(create_app(settings, clock), tenant.auth) as client:
        assert (await client.get("/v1/jobs")).status_code == 200
        async with engine.begin() as conn:
            await conn.execute(
                text("UPDATE api_keys SET old_prefix = prefix, old_hash = hash, prefix = 'ffffffffffff', hash = 'x',"
                     " old_until = now() - interval '1 second'")
            )  # fmt: skip
        clock.time_s += 4.99
        assert (await client.get("/v1/jobs")).status_code == 200
        clock.time_s += 0.01
        assert_problem(await client.get("/v1/jobs"), 401, "unauthenticated")


async def test_a_budget_from_its_making_to_its_retirement(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, submit: Submit, worker: HandWorker, engine: AsyncEngine
) -> None:
    made = await done(admin, "POST", f"{TENANTS}/acme/budgets", DAY | {"limit": 30}, 201)
    assert made["window"] | {"start": 0, "end": 0} == {"start": 0, "end": 0, "used": 0, "reserved": 0, "remaining": 30}
    twice = assert_problem(await admin.post(f"{TENANTS}/acme/budgets", json=DAY), 409, "already_exists")
    assert twice["budget_id"] == made["id"]
    job = await submit(max_tokens=10)  # 16 tokens of prompt
    path = f"/v1/admin/budgets/{made['id']}"
    assert (await done(admin, "GET", path))["window"]["reserved"] == 26
    await worker.finish(job)
    window = (await done(admin, "GET", path))["window"]
    assert (window["used"], window["reserved"], window["remaining"]) == (23, 0, 7)
    lowered = await done(admin, "PATCH", path, {"limit": 20, "thresholds": [90]})
    assert (lowered["limit"], lowered["thresholds"], lowered["window"]["remaining"]) == (20, [90], 0)
    assert_problem(await client.post("/v1/jobs", json={"prompt": "a", "max_tokens": 1}), 429, "budget_exhausted")
    retired = await done(admin, "POST", f"{path}/retire")
    assert retired["retired_at"]
    assert await done(admin, "POST", f"{path}/retire") == retired
    assert_problem(await admin.patch(path, json={"limit": 1}), 409, "budget_retired")
    assert (await done(admin, "GET", f"{TENANTS}/acme/budgets"))["data"] == []
    assert [each["id"] for each in (await done(admin, "GET", f"{TENANTS}/acme/budgets?state=any"))["data"]] == [
        made["id"]
    ]
    await submit()
    await assert_audit_clean(engine, None)
    assert [action for _, action, _ in await acts(engine)] == ["budget.create", "budget.change", "budget.retire"]


async def test_a_models_price_also_where_its_name_has_slashes(admin: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await register_bytes(engine, name="org/other-model")
    path = "/v1/admin/models/org/other-model"
    changed = await done(admin, "PATCH", path, {"input_price": 5, "fallback": "bytes"})
    assert (changed["input_price"], changed["output_price"], changed["fallback"]) == (5, 0, "bytes")
    assert await done(admin, "GET", path) == changed


# --- what it means for a tenant --------------------------------------------------------------------------------------


async def test_a_tenant_keeps_to_its_tiers(
    admin: httpx.AsyncClient, settings: Settings, tenant: Tenant, other_tenant: Tenant
) -> None:
    await done(admin, "PATCH", f"{TENANTS}/acme", {"tiers": ["standard", "batch"]})
    async with in_new_app(settings, tenant) as client:
        refused = await client.post("/v1/jobs", json={"prompt": "a", "tier": "interactive"})
        problem = assert_problem(refused, 403, "tier_not_allowed", "it may use standard, batch")
        assert (problem["param"], problem["allowed"]) == ("tier", ["standard", "batch"])
        quoted = await client.post("/v1/jobs/quote", json={"prompt": "a", "tier": "interactive"})
        assert (quoted.json()["outcome"], quoted.json()["code"]) == ("rejected", "tier_not_allowed")
        assert (await client.post("/v1/jobs", json={"prompt": "a"})).status_code == 202
        other = await client.post("/v1/jobs", json={"prompt": "a", "tier": "interactive"}, headers=other_tenant.auth)
        assert other.status_code == 202


async def test_a_request_keeps_to_its_tenants_maxima(
    admin: httpx.AsyncClient, settings: Settings, tenant: Tenant, other_tenant: Tenant
) -> None:
    await done(admin, "PATCH", f"{TENANTS}/acme", {"max_prompt_tokens": 4, "max_output_tokens": 20})
    bodies: list[tuple[dict[str, Any], str, int]] = [
        ({"prompt": "12345", "max_tokens": 1}, "prompt", 4),
        ({"prompt": [1, 2, 3, 4, 5], "max_tokens": 1}, "prompt", 4),
        ({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}, "messages", 4),
        ({"prompt": "1234", "max_tokens": 21}, "max_tokens", 20),
        ({"prompt": "1234", "max_tokens": 7, "n": 3}, "max_tokens", 20),
        ({"prompt": "1234"}, "max_tokens", 20),  # the default is larger
    ]
    async with in_new_app(settings, tenant) as client:
        for body, param, limit in bodies:
            problem = assert_problem(await client.post("/v1/jobs", json=body), 400, "over_tenant_limit", f"{param}: ")
            assert (problem["param"], problem["limit"]) == (param, limit)
            own = body | {"max_tokens": 1}
            assert (await client.post("/v1/jobs", json=own, headers=other_tenant.auth)).status_code == 202
        assert (await client.post("/v1/jobs", json={"prompt": "1234", "max_tokens": 20})).status_code == 202
        assert (await client.post("/v1/jobs", json={"prompt": "1", "max_tokens": 10, "n": 2})).status_code == 202


async def test_the_fallback_is_held_to_the_same_maxima(
    admin: httpx.AsyncClient, settings: Settings, tenant: Tenant, engine: AsyncEngine
) -> None:
    await register_bytes(engine, name="other")
    await done(admin, "PATCH", f"{TENANTS}/acme", {"max_output_tokens": 5})
    async with in_new_app(settings, tenant) as client:
        body = {"prompt": "a", "model": "bytes", "fallback_model": "other", "max_tokens": 6}
        assert_problem(await client.post("/v1/jobs", json=body), 400, "over_tenant_limit")


async def test_a_full_queue_says_how_full_and_when_to_come_back(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, submit: Submit, worker: HandWorker, other_tenant: Tenant
) -> None:
    await done(admin, "PATCH", f"{TENANTS}/acme", {"max_queued_jobs": 1})
    job = await submit()
    refused = await client.post("/v1/jobs", json={"prompt": "a"})
    problem = assert_problem(refused, 429, "queue_limit_reached", "1 jobs of this tenant wait")
    assert (problem["reason"], problem["limit"], problem["queued"], problem["retryable"]) == (
        "max_queued_jobs", 1, 1, True,
    )  # fmt: skip
    assert 1 <= int(refused.headers["retry-after"]) <= 4
    other = await client.post("/v1/jobs", json={"prompt": "a"}, headers=other_tenant.auth)
    assert other.status_code == 202
    await worker.start(job)
    await submit()


async def test_a_suspended_tenant_submits_nothing_and_sees_its_jobs_run_on(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, submit: Submit, worker: HandWorker, other_tenant: Tenant
) -> None:
    """At once, in an API that remembers the tenant's key from before; a replay is no submission."""
    body = {"prompt": "Once upon a time"}
    first = await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
    waiting = await submit()
    await done(admin, "POST", f"{TENANTS}/acme/suspend", {"reason": "unpaid"})
    assert_problem(await client.post("/v1/jobs", json=body), 403, "tenant_suspended", "suspended")
    replay = await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert (replay.status_code, replay.json()["id"]) == (202, first.json()["id"])
    assert (await client.post("/v1/jobs", json=body, headers=other_tenant.auth)).status_code == 202
    await worker.finish(first.json())
    assert (await client.get(f"/v1/jobs/{first.json()['id']}")).json()["status"] == "succeeded"
    assert (await client.post(waiting["urls"]["cancel"])).json()["status"] == "cancelled"
    await done(admin, "POST", f"{TENANTS}/acme/resume", {"reason": "paid"})
    await submit()


async def test_a_suspension_is_refused_before_the_prompt_is_counted(
    admin: httpx.AsyncClient, settings: Settings, tenant: Tenant
) -> None:
    await done(admin, "POST", f"{TENANTS}/acme/suspend", {"reason": "x"})
    async with in_new_app(settings, tenant) as client:
        body = {"prompt": "a", "model": "no-such-model"}
        assert_problem(await client.post("/v1/jobs", json=body), 403, "tenant_suspended")
