"""Do operators, and only they, see and resolve dead letters over HTTP?"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.runtime import Runtime
from app.ids import job_name, new_id
from app.jobs.models import Model
from app.jobs.tables import jobs
from app.queue.events import ChoiceDelta, JobEvent, Publication
from app.queue.streams import JobQueue
from app.quotas.tables import audit_log, budgets
from app.redis import Redis
from app.settings import Settings
from tests.support.api import LONG, Submit, Tenant, assert_problem, job_id_of, make_tenant, running, until_seated
from tests.support.audit import assert_audit_clean
from tests.support.dead import kill, succeed

PATH = "/v1/admin/dead-letters"
NOBODY = "job_" + "0" * 32


@pytest.fixture
async def operator(engine: AsyncEngine, settings: Settings) -> Tenant:
    return await make_tenant(engine, settings, "ops", scopes=["admin"])


@pytest.fixture
async def admin(app: FastAPI, client: httpx.AsyncClient, operator: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends an operator's key."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=operator.auth) as admin:
        yield admin


@pytest.fixture
async def dead(engine: AsyncEngine, submit: Submit, model: Model):
    """Makes jobs that died; their names, oldest first."""

    async def made(count: int = 1, **body: Any) -> list[str]:
        ids: list[UUID] = [job_id_of(await submit(**body)) for _ in range(count)]
        for job_id in ids:  # one after the other: each has its time
            await kill(engine, [job_id], pool=model.pool)
        return [job_name(job_id) for job_id in ids]

    return made


async def test_only_a_key_with_the_scope_admin_may_enter(
    app: FastAPI, client: httpx.AsyncClient, admin: httpx.AsyncClient, dead: Any
) -> None:
    (name,) = await dead()
    body = {"ids": [name], "reason": "x"}
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", PATH, {}), ("GET", f"{PATH}/groups", {}), ("GET", f"{PATH}/{name}", {}),
        ("POST", f"{PATH}/requeue", {"json": body}), ("POST", f"{PATH}/discard", {"json": body}),
    ]  # fmt: skip
    async with running(app) as stranger:
        for method, path, options in calls:
            assert_problem(await stranger.request(method, path, **options), 401, "unauthenticated")
            refused = await client.request(method, path, **options)
            assert_problem(refused, 403, "forbidden", "lacks the scope admin", "--scope admin")
            assert (await admin.request(method, path, **options)).status_code == 200


async def test_an_operators_key_opens_no_tenants_jobs(admin: httpx.AsyncClient) -> None:
    assert_problem(await admin.get("/v1/jobs"), 403, "forbidden", "jobs:read")


async def test_pages_lead_through_all_letters_of_all_tenants(admin: httpx.AsyncClient, dead: Any) -> None:
    names = await dead(5)
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await admin.get(PATH, params=query)).json()
        seen += [each["id"] for each in page["data"]]
        if not page["has_more"]:
            break
        query["cursor"] = page["next_cursor"]
    assert page["next_cursor"] is None
    assert seen == names[::-1]
    letter = page["data"][0]
    assert (letter["tenant"], letter["pool"], letter["reason"], letter["resolution"]) == (
        "acme", "bytes", "engine_crashes", None,
    )  # fmt: skip
    kinds = (await admin.get(f"{PATH}/groups")).json()["data"]
    assert [(each["count"], each["fingerprint"], len(each["ids"])) for each in kinds] == [(5, letter["fingerprint"], 5)]
    for wanted, count in (
        ({"tenant": "acme"}, 5), ({"tenant": "rival"}, 0), ({"pool": "bytes", "reason": "engine_crashes"}, 5),
        ({"fingerprint": letter["fingerprint"]}, 5), ({"state": "requeued"}, 0), ({"state": "any"}, 5),
        ({"died_before": letter["died_at"]}, 0), ({"died_after": letter["died_at"]}, 4),
    ):  # fmt: skip
        assert len((await admin.get(PATH, params=wanted)).json()["data"]) == count, wanted


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=101", "limit=1&limit=2", "cursor=x", "cursor=" + "_" * 35, "state=dead", "tenant=No", "pool=%00",
        "reason=A", "fingerprint=%20", "died_after=yesterday", "tenannt=acme", "%00=1",
    ],
)  # fmt: skip
async def test_a_wrong_query_is_refused(admin: httpx.AsyncClient, query: str) -> None:
    assert_problem(await admin.get(f"{PATH}?{query}"), 422, "invalid_request")
    if "cursor" not in query:
        assert_problem(await admin.get(f"{PATH}/groups?{query}"), 422, "invalid_request")


async def test_the_story_hides_the_prompt_unless_it_is_asked_for(
    admin: httpx.AsyncClient, dead: Any, runtime: Runtime, engine: AsyncEngine
) -> None:
    (name,) = await dead(prompt="a secret wish")
    told = JobEvent(
        kind="tokens", attempt=1, deltas=[ChoiceDelta(choice=0, offset=0, token_ids=[1, 2], text="half a te")]
    )
    await runtime.events.publish([Publication(UUID(name.removeprefix("job_")), 2, told)])
    hidden = await admin.get(f"{PATH}/{name}")
    story = hidden.json()
    assert "secret" not in hidden.text
    assert "half a te" not in hidden.text
    assert story["private"] is None
    assert story["evidence"]["attempts"][0]["detail"]["reason"].startswith("the engine's process died")
    assert story["job"]["status"] == "dead"
    shown = (await admin.get(f"{PATH}/{name}?prompts=true")).json()
    assert shown["private"] == {"request": {"prompt": "a secret wish"}, "texts": ["half a te"]}
    async with engine.connect() as conn:
        (act,) = (await conn.execute(select(audit_log).where(audit_log.c.action == "dead_letter.show_prompts"))).all()
    assert act.target == name
    assert act.actor.startswith("key:ops/")
    assert_problem(await admin.get(f"{PATH}/{NOBODY}"), 404, "not_found")
    assert_problem(await admin.get(f"{PATH}/nonsense"), 404, "not_found")
    assert_problem(await admin.get(f"{PATH}/{name}?prompts=yes"), 422, "invalid_request")
    assert_problem(await admin.get(f"{PATH}/{name}?prompt=true"), 422, "invalid_request")


async def test_jobs_are_sent_back_and_their_owner_sees_them_wait(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, dead: Any, epoch: JobQueue, engine: AsyncEngine, redis: Redis
) -> None:
    names = await dead(3)
    answer = await admin.post(f"{PATH}/requeue", json={"ids": [*names[:2], NOBODY], "reason": "it is mended"})
    result = answer.json()
    assert answer.status_code == 200
    assert result["done"] == names[:2]
    assert [(each["id"], each["code"]) for each in result["refused"]] == [(NOBODY, "not_found")]
    job = (await client.get(f"/v1/jobs/{names[0]}")).json()
    assert (job["status"], job["error"], job["finished_at"], job["attempts"]) == ("queued", None, None, 1)
    assert await epoch.known_gens([UUID(name.removeprefix("job_")) for name in names]) == [2, 2, 1]
    again = (await admin.post(f"{PATH}/requeue", json={"ids": names, "reason": "it is mended"})).json()
    assert again["done"] == names[2:]
    assert {each["code"] for each in again["refused"]} == {"already_resolved"}
    assert "was requeued by key:ops/" in again["refused"][0]["detail"]
    story = (await admin.get(f"{PATH}/{names[0]}")).json()
    assert (story["resolution"], story["resolution_reason"]) == ("requeued", "it is mended")
    await assert_audit_clean(engine, redis)


async def test_who_waits_for_a_job_that_was_sent_back_gets_its_new_end(
    app: FastAPI, admin: httpx.AsyncClient, client: httpx.AsyncClient, dead: Any, engine: AsyncEngine, model: Model
) -> None:
    (name,) = await dead()
    assert (await client.get(f"/v1/jobs/{name}", headers=LONG)).json()["status"] == "dead"
    await admin.post(f"{PATH}/requeue", json={"ids": [name], "reason": "it is mended"})
    waiting = asyncio.create_task(client.get(f"/v1/jobs/{name}", headers=LONG))
    await until_seated(app)
    await succeed(engine, UUID(name.removeprefix("job_")), pool=model.pool)
    job = (await waiting).json()
    assert (job["status"], job["attempts"], job["choices"][0]["text"]) == ("succeeded", 2, "the end")


async def test_a_group_is_resolved_in_pages(admin: httpx.AsyncClient, dead: Any, engine: AsyncEngine) -> None:
    names = await dead(5)
    group = (await admin.get(PATH)).json()["data"][0]["fingerprint"]
    done: list[str] = []
    body: dict[str, Any] = {"filter": {"fingerprint": group, "pool": "bytes"}, "limit": 2, "reason": "it is mended"}
    while True:
        answer = (await admin.post(f"{PATH}/requeue", json=body)).json()
        done += answer["done"]
        if answer["next_cursor"] is None:
            break
        body["cursor"] = answer["next_cursor"]
    assert done == names
    assert (await admin.post(f"{PATH}/discard", json={"filter": {"tenant": "acme"}, "reason": "x"})).json()[
        "done"
    ] == []
    await assert_audit_clean(engine, None)


async def test_what_is_discarded_stays_dead(admin: httpx.AsyncClient, client: httpx.AsyncClient, dead: Any) -> None:
    (name,) = await dead()
    discarded = await admin.post(f"{PATH}/discard", json={"ids": [name, name], "reason": "nobody wants it"})
    assert discarded.json()["done"] == [name]
    again = (await admin.post(f"{PATH}/requeue", json={"ids": [name], "reason": "x"})).json()
    assert [each["code"] for each in again["refused"]] == ["already_resolved"]
    assert (await client.get(f"/v1/jobs/{name}")).json()["status"] == "dead"
    assert (await admin.get(PATH)).json()["data"] == []


async def test_a_job_is_changed_as_it_is_sent_back(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, dead: Any, engine: AsyncEngine
) -> None:
    (name,) = await dead(deadline_s=1000)
    body = {"ids": [name], "reason": "smaller", "changes": {"max_tokens": 3, "tier": "batch", "stop": ["\n"]}}
    assert (await admin.post(f"{PATH}/requeue", json=body | {"clear_deadline": True})).json()["done"] == [name]
    job = (await client.get(f"/v1/jobs/{name}")).json()
    assert (job["tier"], job["deadline_at"]) == ("batch", None)
    async with engine.connect() as conn:
        assert await conn.scalar(select(jobs.c.max_tokens)) == 3
        detail = await conn.scalar(select(audit_log.c.detail).where(audit_log.c.action == "dead_letter.requeue"))
    assert detail["changed"]["tier"] == ["standard", "batch"]
    await assert_audit_clean(engine, None)


async def test_a_full_budget_leaves_the_letter_open(admin: httpx.AsyncClient, dead: Any, engine: AsyncEngine) -> None:
    (name,) = await dead()
    row = {"id": new_id(), "tenant_id": "acme", "metric": "requests", "period": "total", "hard_limit": 0}
    async with engine.begin() as conn:
        await conn.execute(budgets.insert().values(row))
    result = (await admin.post(f"{PATH}/requeue", json={"ids": [name], "reason": "x"})).json()
    assert (result["done"], result["refused"][0]["code"]) == ([], "budget_exhausted")
    assert "the budget of 0 requests can't hold" in result["refused"][0]["detail"]
    assert [each["id"] for each in (await admin.get(PATH)).json()["data"]] == [name]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "reason: is required"),
    ({"reason": "x"}, "give exactly one of ids and filter"),
    ({"reason": "x", "ids": [NOBODY], "filter": {"pool": "p"}}, "give exactly one of ids and filter"),
    ({"reason": "x", "ids": []}, "ids: "),
    ({"reason": "x", "ids": [NOBODY] * 101}, "ids: "),
    ({"reason": "x", "ids": ["nonsense"]}, "ids[0]: "),
    ({"reason": "x", "filter": {}}, "name at least one of pool, tenant, reason and fingerprint"),
    ({"reason": "x", "filter": {"pool": "p"}, "limit": 101}, "limit: "),
    ({"reason": "x", "filter": {"pool": "\x00"}}, "filter.pool: "),
    ({"reason": "x", "ids": [NOBODY], "cursor": NOBODY}, "cursor: goes with filter only"),
    ({"reason": " ", "ids": [NOBODY]}, "reason: must say something"),
    ({"reason": "x" * 501, "ids": [NOBODY]}, "reason: "),
    ({"reason": "x", "ids": [NOBODY], "why": 1}, "why: isn't a known field"),
]
WRONG_REQUEUES: list[tuple[dict[str, Any], str]] = [
    ({"reason": "x", "ids": [NOBODY], "changes": {"prompt": "y"}}, "changes.prompt: isn't a known field"),
    ({"reason": "x", "ids": [NOBODY], "changes": {"temperature": 3}}, "changes.temperature: "),
    ({"reason": "x", "filter": {"pool": "p"}, "changes": {"tier": "batch"}}, "changes: need exactly one id"),
    ({"reason": "x", "ids": [NOBODY], "deadline_s": 0}, "deadline_s: "),
    (
        {"reason": "x", "ids": [NOBODY], "deadline_s": 5, "clear_deadline": True},
        "clear_deadline: can't go with deadline_s",
    ),
]


@pytest.mark.parametrize("action", ["requeue", "discard"])
async def test_a_wrong_body_is_refused(admin: httpx.AsyncClient, action: str) -> None:
    for body, said in WRONG + (WRONG_REQUEUES if action == "requeue" else []):
        assert_problem(await admin.post(f"{PATH}/{action}", json=body), 422, "invalid_request", said)
    assert_problem(await admin.post(f"{PATH}/{action}", content=b"{"), 400, "malformed_body")
    assert_problem(await admin.post(f"{PATH}/{action}", content=b" " * 65_537), 413, "body_too_large")


async def test_changes_of_what_isnt_there_or_isnt_dead_are_problems(admin: httpx.AsyncClient, dead: Any) -> None:
    body = {"reason": "x", "ids": [NOBODY], "changes": {"tier": "batch"}}
    assert_problem(await admin.post(f"{PATH}/requeue", json=body), 404, "not_found")
    (name,) = await dead()
    body |= {"ids": [name]}
    wrong = body | {"changes": {"model": "unheard-of"}}
    assert_problem(await admin.post(f"{PATH}/requeue", json=wrong), 404, "unknown_model")
    too_long = body | {"changes": {"max_tokens": 100_000}}
    assert_problem(await admin.post(f"{PATH}/requeue", json=too_long), 422, "prompt_too_long")
    assert (await admin.post(f"{PATH}/requeue", json=body)).json()["done"] == [name]
    assert_problem(await admin.post(f"{PATH}/requeue", json=body), 409, "already_resolved")


async def test_letters_of_before_can_be_shown(admin: httpx.AsyncClient, dead: Any, engine: AsyncEngine) -> None:
    """A letter that the first schema wrote has no signature, and a fingerprint in words."""
    (name,) = await dead()
    async with engine.begin() as conn:
        await conn.execute(
            text("UPDATE dead_letters SET signature = '', fingerprint = 'bytes:engine_crashes', evidence = '{}'")
        )
    assert (await admin.get(f"{PATH}/{name}")).json()["evidence"] == {}
    found = (await admin.get(PATH, params={"fingerprint": "bytes:engine_crashes"})).json()["data"]
    assert [each["id"] for each in found] == [name]
