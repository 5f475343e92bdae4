"""Does a key open what it should, nothing else, and not for long after it was revoked?"""

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.api.runtime import KnownKeys, Runtime
from app.jobs.models import Model
from app.quotas.key_acts import revoke_key
from app.settings import Settings
from tests.support.api import Submit, Tenant, assert_problem, make_tenant, running

ROUTES = [
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/job_" + "0" * 32),
    ("POST", f"/v1/jobs/job_{'0' * 32}/cancel"),
    ("GET", "/v1/models"),
]


class HandClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def monotonic(self) -> float:
        return self.time_s

    def now(self) -> float:
        return self.time_s


async def test_every_route_wants_a_good_key(
    client: httpx.AsyncClient, tenant: Tenant, subtests: pytest.Subtests
) -> None:
    stranger = "pk_" + "0" * 12 + "_" + "x" * 43
    wrong = [
        "", "Bearer", "Bearer ", "Basic YTpi", f"Token {tenant.token}", tenant.token, "Bearer x", "Bearer pk_",
        f"Bearer {stranger}", f"Bearer {tenant.token}x", f"Bearer {tenant.token[:-1]}", f"Bearer {tenant.token.upper()}",
        "Bearer pk_\x00", "Bearer pk_" + "0" * 12 + "_\x00", "Bearer " + "x" * 10_000, "Bearer pk_é",
    ]  # fmt: skip
    for method, path in ROUTES:
        for given in wrong:
            with subtests.test(path=path, given=given[:30]):
                headers = [(b"authorization", given.encode("latin-1"))]
                answer = await client.request(method, path, headers=headers)  # type: ignore[arg-type]
                problem = assert_problem(answer, 401, "unauthenticated")
                assert answer.headers["www-authenticate"] == "Bearer"
                assert tenant.token not in answer.text
                assert problem["retryable"] is False
        del client.headers["authorization"]
        assert_problem(await client.request(method, path), 401, "unauthenticated")
        client.headers["authorization"] = tenant.auth["Authorization"]


async def test_the_scheme_s_case_doesn_t_matter(client: httpx.AsyncClient, tenant: Tenant) -> None:
    answer = await client.get("/v1/models", headers={"Authorization": f"bearer {tenant.token}"})
    assert answer.status_code == 200


async def test_authentication_comes_before_the_body(client: httpx.AsyncClient) -> None:
    headers = {"Authorization": "Bearer nobody", "Content-Type": "text/plain", "Content-Length": "999999999"}
    assert_problem(await client.post("/v1/jobs", content=b"x", headers=headers), 401, "unauthenticated")


async def test_a_key_opens_what_its_scopes_say(
    client: httpx.AsyncClient, engine: AsyncEngine, settings: Settings, submit: Submit
) -> None:
    job = await submit()
    reader = (await make_tenant(engine, settings, "acme", scopes=["jobs:read"])).auth
    writer = (await make_tenant(engine, settings, "acme", scopes=["jobs:write"])).auth
    for path in ("/v1/jobs", job["urls"]["self"], "/v1/models"):
        assert (await client.get(path, headers=reader)).status_code == 200
        assert_problem(await client.get(path, headers=writer), 403, "forbidden", "jobs:read")
    for path in ("/v1/jobs", job["urls"]["cancel"]):
        problem = assert_problem(
            await client.post(path, json={"prompt": "a"}, headers=reader), 403, "forbidden", "jobs:write"
        )
        assert problem["scope"] == "jobs:write"
    assert (await client.post("/v1/jobs", json={"prompt": "a"}, headers=writer)).status_code == 202
    assert (await client.post(job["urls"]["cancel"], headers=writer)).status_code == 200


async def test_an_expired_key_says_so(client: httpx.AsyncClient, engine: AsyncEngine, settings: Settings) -> None:
    expired = await make_tenant(engine, settings, "acme", expires_in_s=-1)
    assert_problem(await client.get("/v1/jobs", headers=expired.auth), 401, "unauthenticated", "expired")


async def test_a_revoked_key_is_believed_for_five_seconds_at_most(
    engine: AsyncEngine, settings: Settings, model: Model, tenant: Tenant
) -> None:
    clock = HandClock()
    async with running(create_app(settings, clock), tenant.auth) as client:
        assert (await client.get("/v1/jobs")).status_code == 200
        async with engine.begin() as conn:
            assert (await revoke_key(conn, tenant.token.split("_")[1], actor="test")).state == "revoked"
        clock.time_s += 4.99
        assert (await client.get("/v1/jobs")).status_code == 200
        clock.time_s += 0.01
        assert_problem(await client.get("/v1/jobs"), 401, "unauthenticated")


async def test_a_known_key_costs_no_query(client: httpx.AsyncClient, app: FastAPI, runtime: Runtime) -> None:
    asked: list[str] = []

    @event.listens_for(runtime.engine.sync_engine, "before_cursor_execute")
    def _note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    for _ in range(3):
        await client.get("/v1/jobs")
    assert sum("api_keys" in statement for statement in asked) == 1


async def test_the_memory_for_keys_is_bounded(client: httpx.AsyncClient, runtime: Runtime) -> None:
    await client.get("/v1/jobs")
    (key, _) = next(iter(runtime.known_keys._keys.values()))
    known = KnownKeys(HandClock(), most=2)
    for digest in (b"a", b"b"):
        known.put(digest, key)
    assert known.get(b"a") is key
    known.put(b"c", key)
    assert [known.get(digest) for digest in (b"a", b"b", b"c")] == [key, None, key]
