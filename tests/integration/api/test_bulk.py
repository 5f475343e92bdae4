"""Does a bulk leave what its jobs would have left one by one, all or nothing, once a key; does a refusal name the job and the field?"""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.bulk_documents import MAX_BULK_JOBS, BulkObject
from app.api.runtime import Runtime
from app.ids import new_id
from app.jobs.timekeeping import forget_keys
from app.queue.streams import JobQueue
from app.quotas.tables import api_keys, budgets, tenants
from tests.support.api import HandWorker, Submit, Tenant, assert_problem
from tests.support.audit import assert_audit_clean

# What a row may have in it that COPY's text format must escape, and JSON, and both.
AWKWARD: list[dict[str, Any]] = [
    {"prompt": r"\N", "metadata": {"a\tb": "c\nd\\.\r", r"\N": "\u2028\x07"}},
    {"prompt": "\\.\n\\.\n", "stop": ["\\", "\t"], "seed": 2**63 - 1},
    {"prompt": [0, 255, 10, 92], "max_tokens": 12, "n": 2, "tier": "interactive", "deadline_s": 60.5, "logprobs": 2},
    {"messages": [{"role": "user", "content": "größer “\\u0000”"}], "temperature": 0, "logit_bias": {"3": -1.5}},
    {"prompt": "x", "webhook": {"url": "https://example.com/a?b=%5C", "events": ["job.dead"]}, "on_budget": "wait"},
    {"prompt": "y", "response_format": {"type": "json_object"}},
    *({"prompt": f"number {number}", "tier": "batch", "seed": number} for number in range(6)),
]
ROWS = """
    SELECT to_jsonb(j) - ARRAY['id', 'created_at', 'eligible_at', 'deadline_at'] AS job,
           round(extract(epoch FROM j.deadline_at - j.created_at)::numeric, 3) AS deadline,
           i.request, i.sampling, i.prompt_ids, i.tokenizer_hash
    FROM jobs j JOIN job_inputs i ON i.job_id = j.id WHERE j.id = ANY(CAST(:ids AS uuid[]))
    ORDER BY array_position(CAST(:ids AS uuid[]), j.id)
"""


async def bulk(client: httpx.AsyncClient, *jobs: dict[str, Any], **headers: str) -> list[str]:
    """Submit jobs that must be taken; return their ids."""
    answer = await client.post("/v1/jobs/bulk", json={"jobs": jobs}, headers=headers)
    assert answer.status_code == 202, answer.text
    BulkObject.model_validate(answer.json())
    ids: list[str] = answer.json()["job_ids"]
    assert len(ids) == len(jobs)
    return ids


async def num_jobs(engine: AsyncEngine) -> int:
    async with engine.connect() as conn:
        return int((await conn.execute(text("SELECT count(*) FROM jobs"))).scalar_one())


async def assert_nothing_written(engine: AsyncEngine) -> None:
    async with engine.connect() as conn:
        for table in ("jobs", "job_inputs", "idempotency_keys", "ledger"):
            assert await conn.scalar(text(f"SELECT count(*) FROM {table}")) == 0, table


async def test_a_bulk_leaves_the_rows_that_its_jobs_would_have_left_one_by_one(
    client: httpx.AsyncClient, engine: AsyncEngine, epoch: JobQueue
) -> None:
    alone = []
    for each in AWKWARD:
        answer = await client.post("/v1/jobs", json=each)
        assert answer.status_code == 202, answer.text
        alone.append(answer.json()["id"])
    claimed = {each.place: each for each in await epoch.claim("test", max_jobs=20, room=10**6)}
    together = await bulk(client, *AWKWARD)
    async with engine.connect() as conn:
        one_by_one, copied = [
            (await conn.execute(text(ROWS), {"ids": [each.removeprefix("job_") for each in ids]})).all()
            for ids in (alone, together)
        ]
    assert len(copied) == len(AWKWARD)
    for asked, left, right in zip(AWKWARD, one_by_one, copied, strict=True):
        if "seed" not in asked:  # drawn
            assert left.sampling.pop("seed") != right.sampling.pop("seed")
        assert tuple(left) == tuple(right)
    again = {each.place: each for each in await epoch.claim("test", max_jobs=20, room=10**6)}
    assert {(each.place, each.cost, each.tenant, each.gen) for each in claimed.values()} == {
        (each.place, each.cost, each.tenant, each.gen) for each in again.values()
    }
    await assert_audit_clean(engine, None)


async def test_a_large_bulk_is_nominated_whole_and_in_its_order(client: httpx.AsyncClient, epoch: JobQueue) -> None:
    ids = await bulk(client, *({"prompt": f"{number}", "max_tokens": 1} for number in range(600)))
    claimed = await epoch.claim("test", max_jobs=600, room=10**6)
    assert ["job_" + each.job_id.hex for each in claimed] == ids


async def test_a_key_stands_for_all_of_them(
    client: httpx.AsyncClient, other_tenant: Tenant, engine: AsyncEngine, epoch: JobQueue
) -> None:
    jobs = [{"prompt": f"{number}"} for number in range(20)]
    first = await client.post("/v1/jobs/bulk", json={"jobs": jobs}, headers={"Idempotency-Key": "k"})
    again = await client.post("/v1/jobs/bulk", json={"jobs": jobs}, headers={"Idempotency-Key": '"k"'})
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert await num_jobs(engine) == 20
    for other in (jobs[:-1], jobs[::-1], jobs[:1]):
        answer = await client.post("/v1/jobs/bulk", json={"jobs": other}, headers={"Idempotency-Key": "k"})
        assert_problem(answer, 422, "idempotency_mismatch")
    one = await client.post("/v1/jobs", json=jobs[0], headers={"Idempotency-Key": "k"})
    assert_problem(one, 422, "idempotency_mismatch")
    theirs = await client.post(
        "/v1/jobs/bulk", json={"jobs": jobs}, headers=other_tenant.auth | {"Idempotency-Key": "k"}
    )
    assert set(theirs.json()["job_ids"]).isdisjoint(first.json()["job_ids"])
    assert await num_jobs(engine) == 40


async def test_a_bulk_of_one_and_a_job_alone_are_not_the_same_under_a_key(client: httpx.AsyncClient) -> None:
    await client.post("/v1/jobs", json={"prompt": "a"}, headers={"Idempotency-Key": "k"})
    answer = await client.post("/v1/jobs/bulk", json={"jobs": [{"prompt": "a"}]}, headers={"Idempotency-Key": "k"})
    assert_problem(answer, 422, "idempotency_mismatch")


async def test_bulks_with_one_key_at_once_make_their_jobs_once(
    client: httpx.AsyncClient, engine: AsyncEngine, epoch: JobQueue
) -> None:
    jobs = [{"prompt": f"{number}"} for number in range(12)]
    answers = await asyncio.gather(
        *(client.post("/v1/jobs/bulk", json={"jobs": jobs}, headers={"Idempotency-Key": "k"}) for _ in range(6))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({tuple(answer.json()["job_ids"]) for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert await num_jobs(engine) == 12
    assert (await epoch.depth())["standard"].jobs == 12


async def test_the_key_is_kept_until_the_last_of_them_has_ended_for_long(
    client: httpx.AsyncClient, engine: AsyncEngine, worker: HandWorker
) -> None:
    first, last = await bulk(client, {"prompt": "a"}, {"prompt": "b"}, **{"Idempotency-Key": "k"})

    async def forgotten_after_end_of(name: str) -> int:
        await worker.finish((await client.get(f"/v1/jobs/{name}")).json())
        async with engine.begin() as conn:
            await conn.execute(text("UPDATE idempotency_keys SET created_at = now() - interval '1 hour'"))
            await conn.execute(
                text("UPDATE jobs SET finished_at = now() - interval '1 hour' WHERE finished_at IS NOT NULL")
            )
            return await forget_keys(conn, ttl_s=60)

    assert await forgotten_after_end_of(first) == 0
    assert await forgotten_after_end_of(last) == 1


async def test_a_refusal_names_the_jobs_and_the_fields(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    good = {"prompt": "a"}
    answer = await client.post(
        "/v1/jobs/bulk",
        json={"jobs": [good, {"prompt": "a", "max_tokens": 0, "x": 1}, good, {"prompt": [-1]}, [], {"prompt": ""}]},
    )
    problem = assert_problem(answer, 422, "invalid_request", "jobs[1].max_tokens: must be")
    assert problem["param"] == "jobs[1].max_tokens"
    assert {each["field"]: each["message"] for each in problem["errors"]} == {
        "jobs[1].max_tokens": "must be greater than or equal to 1",
        "jobs[1].x": "isn't a known field",
        "jobs[3].prompt[0]": "must be greater than or equal to 0",
        "jobs[4]": "must be a JSON object",
        "jobs[5].prompt": "must not be empty",
    }
    await assert_nothing_written(engine)


REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"prompt": "x" * 4096}, 422, "prompt_too_long", "jobs[2].prompt"),
    ({"prompt": "x" * 4000, "max_tokens": 97}, 422, "prompt_too_long", "jobs[2].max_tokens"),
    ({"prompt": [256]}, 422, "invalid_request", "jobs[2].prompt"),
    ({"prompt": "x", "n": 17}, 422, "invalid_request", "jobs[2].n"),
    ({"prompt": "x", "model": "gpt-9"}, 404, "unknown_model", "jobs[2].model"),
    ({"prompt": "x", "on_budget": "truncate"}, 400, "not_in_bulk", "jobs[2].on_budget"),
    ({"prompt": "x", "on_budget": "fallback"}, 400, "not_in_bulk", "jobs[2].on_budget"),
    ({"prompt": "x", "fallback_model": "other"}, 400, "not_in_bulk", "jobs[2].fallback_model"),
    ({"prompt": "x", "webhook": {"url": "https://127.0.0.1/"}}, 422, "invalid_request", "jobs[2].webhook.url"),
    ({"prompt": "x", "metadata": {f"{n}": "" for n in range(2000)}}, 422, "invalid_request", "jobs[2].metadata"),
]


@pytest.mark.parametrize(("job", "status", "code", "field"), REFUSED, ids=[f"{each[2]} {each[3]}" for each in REFUSED])
async def test_one_job_that_is_refused_refuses_all(
    client: httpx.AsyncClient, engine: AsyncEngine, job: dict[str, Any], status: int, code: str, field: str
) -> None:
    answer = await client.post("/v1/jobs/bulk", json={"jobs": [{"prompt": "a"}, {"prompt": "b"}, job]})
    problem = assert_problem(answer, status, code, field)
    assert problem["param"] == field
    await assert_nothing_written(engine)


@pytest.mark.parametrize("body", [{}, {"jobs": []}, {"jobs": {}}, {"jobs": [{"prompt": "a"}] * (MAX_BULK_JOBS + 1)}])
async def test_the_list_has_1_to_1000_jobs(
    client: httpx.AsyncClient, engine: AsyncEngine, body: dict[str, Any]
) -> None:
    problem = assert_problem(await client.post("/v1/jobs/bulk", json=body), 422, "invalid_request", "1 to 1000")
    assert problem["param"] == "jobs"
    await assert_nothing_written(engine)


async def test_what_the_tenant_may_not_is_told_of_the_first_such_job(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            update(tenants).where(tenants.c.id == "acme").values(tiers=["standard"], max_prompt_tokens=3)
        )
    jobs = [{"prompt": "a"}, {"prompt": "a", "tier": "batch"}]
    refused = assert_problem(await client.post("/v1/jobs/bulk", json={"jobs": jobs}), 403, "tier_not_allowed")
    assert refused["param"] == "jobs[1].tier"
    jobs = [{"prompt": "a"}, {"prompt": "abcd"}]
    refused = assert_problem(await client.post("/v1/jobs/bulk", json={"jobs": jobs}), 400, "over_tenant_limit")
    assert refused["param"] == "jobs[1].prompt"
    await assert_nothing_written(engine)


async def test_a_budget_holds_all_of_them_or_none(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            insert(budgets).values(id=new_id(), tenant_id="acme", metric="total_tokens", period="total", hard_limit=100)
        )
    each = {"prompt": "x" * 5, "max_tokens": 5}
    refused = await client.post("/v1/jobs/bulk", json={"jobs": [each] * 11}, headers={"Idempotency-Key": "k"})
    assert_problem(refused, 429, "budget_exhausted")
    await assert_nothing_written(engine)
    await bulk(client, *[each] * 10, **{"Idempotency-Key": "k"})
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT reserved FROM budget_windows")) == 100
        assert await conn.scalar(text("SELECT count(*) FROM ledger WHERE kind = 'reserve'")) == 10
    await assert_audit_clean(engine, None)


async def test_those_that_may_wait_for_a_budget_do(
    client: httpx.AsyncClient, engine: AsyncEngine, epoch: JobQueue
) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            insert(budgets).values(id=new_id(), tenant_id="acme", metric="total_tokens", period="day", hard_limit=100)
        )
    ids = await bulk(client, *[{"prompt": "x" * 5, "max_tokens": 5, "on_budget": "wait"}] * 15)
    async with engine.connect() as conn:
        held = (await conn.execute(text("SELECT id FROM jobs WHERE held_by IS NOT NULL ORDER BY id"))).scalars().all()
    assert ["job_" + each.hex for each in held] == ids[10:]
    claimed = await epoch.claim("test", max_jobs=20, room=10**6)
    assert ["job_" + each.job_id.hex for each in claimed] == ids[:10]
    await assert_audit_clean(engine, None)


async def test_rates_take_the_sum_once_and_nothing_for_a_refusal(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            update(api_keys)
            .where(api_keys.c.tenant_id == "acme")
            .values(requests_per_minute=60, tokens_per_minute=1000, token_burst=500)
        )
    each = {"prompt": "x" * 5, "max_tokens": 5}
    answer = await client.post("/v1/jobs/bulk", json={"jobs": [each] * 20})
    assert answer.status_code == 202
    assert answer.headers["ratelimit"] == '"key-requests";r=40;t=1, "key-tokens";r=300;t=1'
    limited = await client.post("/v1/jobs/bulk", json={"jobs": [each] * 50})
    assert_problem(limited, 429, "rate_limited")
    assert_problem(await client.post("/v1/jobs/bulk", json={"jobs": [each] * 61}), 422, "exceeds_burst", "jobs: ")
    assert await num_jobs(engine) == 20


async def test_caps_hold_for_all_of_them(client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit) -> None:
    async with engine.begin() as conn:
        await conn.execute(update(tenants).where(tenants.c.id == "acme").values(max_queued_jobs=10))
    await submit()
    jobs = [{"prompt": "a"}] * 10
    assert_problem(await client.post("/v1/jobs/bulk", json={"jobs": jobs}), 429, "queue_limit_reached")
    never = assert_problem(await client.post("/v1/jobs/bulk", json={"jobs": jobs * 2}), 400, "over_tenant_limit")
    assert never["param"] == "jobs"
    await bulk(client, *jobs[:9])


async def test_admissions_are_counted_a_job_each(client: httpx.AsyncClient, runtime: Runtime) -> None:
    await bulk(client, *[{"prompt": "a"}] * 7)
    assert (
        runtime.metrics.registry.get_sample_value(
            "penstock_admissions_total", {"decision": "accepted", "reason": "room"}
        )
        == 7
    )
