"""Does a caller see what a job was charged: the same in each answer, and as the budgets and the bill have it?"""

import json
from typing import Any

import httpx
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.job_documents import JobObject
from app.quotas.tables import ledger, usage
from app.webhooks.tables import webhook_deliveries
from tests.support.api import MODEL, HandWorker, Submit, job_id_of
from tests.support.audit import assert_audit_clean
from tests.support.budgets import add_budget, balance, set_price

HOOK = {"url": "https://example.com/hook", "events": ["job.started", "job.succeeded", "job.failed", "job.cancelled"]}
BODY = {"prompt": "abcd", "max_tokens": 9, "webhook": HOOK}


async def shown(client: httpx.AsyncClient, job: dict[str, Any]) -> int | None:
    """What the job and the list say of its cost."""
    read = (await client.get(job["urls"]["self"])).json()
    JobObject.model_validate(read)
    listed = (await client.get("/v1/jobs")).json()["data"]
    (in_list,) = [each for each in listed if each["id"] == job["id"]]
    assert in_list["cost_micros"] == read["cost_micros"]
    cost: int | None = read["cost_micros"]
    return cost


async def told(engine: AsyncEngine, job: dict[str, Any]) -> dict[str, int | None]:
    """What its webhooks say of its cost, by event."""
    async with engine.connect() as conn:
        rows = await conn.execute(
            select(webhook_deliveries.c.event_type, webhook_deliveries.c.body).where(
                webhook_deliveries.c.job_id == job_id_of(job)
            )
        )
        return {row.event_type: json.loads(row.body)["data"]["cost_micros"] for row in rows}


async def test_the_cost_is_what_the_budget_was_charged_and_the_bill_says(
    client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit, worker: HandWorker
) -> None:
    await set_price(engine, MODEL, 300_001, 1_500_000)
    budget = await add_budget(engine, 1000, "cost")
    job = await submit(**BODY)
    assert job["cost_micros"] is None
    assert await shown(client, job) is None
    # What it costs was settled at its reservation.
    await set_price(engine, MODEL, 0, 0)
    started = await worker.start(job)
    assert await shown(client, job) is None
    await worker.finish(job | {"status": "running"})
    cost = await shown(client, job)
    assert cost == 12  # 4 x 0.300001 + 7 x 1.5 = 11.700004, rounded up
    assert await balance(engine, budget) == [(cost, 0)]
    async with engine.connect() as conn:
        assert await conn.scalar(select(ledger.c.amount).where(ledger.c.kind == "settle")) == cost
        assert await conn.scalar(select(usage.c.cost_micros)) == cost
    assert await told(engine, job) == {"job.started": None, "job.succeeded": cost}
    assert started.attempt == 1
    await assert_audit_clean(engine, None)


async def test_a_job_that_nothing_is_billed_for_costs_0(
    client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit, worker: HandWorker
) -> None:
    await set_price(engine, MODEL, 1_000_000, 1_000_000)
    budget = await add_budget(engine, 1000, "cost")
    cancelled, failed = await submit(**BODY), await submit(**BODY)
    answer = await client.post(f"{cancelled['urls']['self']}/cancel")
    assert answer.json()["cost_micros"] == 0
    await worker.finish(failed, status="failed", choices=None, error={"code": "engine_error"}, billed=False)
    for job, event in ((cancelled, "job.cancelled"), (failed, "job.failed")):
        assert await shown(client, job) == 0
        assert (await told(engine, job))[event] == 0
    assert await balance(engine, budget) == [(0, 0)]
    await assert_audit_clean(engine, None)


async def test_without_a_price_nothing_is_said_of_costs(
    client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit, worker: HandWorker
) -> None:
    job = await submit(**BODY)
    # A price that is set while it waits isn't its.
    await set_price(engine, MODEL, 5, 5)
    await worker.finish(job)
    assert await shown(client, job) is None
    assert await told(engine, job) == {"job.started": None, "job.succeeded": None}
    # One price is a price.
    await set_price(engine, MODEL, 0, 1_000_000)
    priced = await submit(**BODY)
    await worker.finish(priced)
    assert await shown(client, priced) == 7


async def test_a_shared_result_costs_what_its_tenant_s_setting_says(
    client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit, worker: HandWorker
) -> None:
    await set_price(engine, MODEL, 0, 1_000_000)
    costs = []
    for bills in (True, False):
        async with engine.begin() as conn:
            await conn.execute(text("UPDATE tenants SET share_identical_s = 600, bill_shared = :b"), {"b": bills})
        leader = await submit(prompt=f"abcd{bills}", max_tokens=9, seed=1)
        await worker.finish(leader)
        follower = await submit(prompt=f"abcd{bills}", max_tokens=9, seed=1)
        assert follower["shared_from"] == leader["id"]
        assert await shown(client, follower) == follower["cost_micros"]
        costs.append((await shown(client, leader), follower["cost_micros"]))
    assert costs == [(7, 7), (7, 0)]
