"""Is a job stopped at once where it waits, by request where it runs, and never twice?"""

import httpx
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import new_id
from app.queue.keys import CANCEL_CHANNEL
from app.queue.streams import JobQueue
from app.quotas.tables import budget_windows, budgets
from app.redis import Redis
from tests.support.api import HandWorker, Submit, Tenant, assert_problem, job_id_of


async def test_a_waiting_job_is_cancelled_at_once_with_its_refund(
    client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit, epoch: JobQueue
) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            insert(budgets).values(
                id=new_id(), tenant_id="acme", metric="total_tokens", period="total", hard_limit=1000
            )
        )
    job = await submit()
    assert (await epoch.depth())["standard"].jobs == 1
    answer = await client.post(job["urls"]["cancel"])
    assert answer.status_code == 200
    cancelled = answer.json()
    assert (cancelled["status"], cancelled["attempts"]) == ("cancelled", 0)
    assert cancelled["finished_at"] is not None
    assert (await epoch.depth())["standard"].jobs == 0
    async with engine.connect() as conn:
        window = (await conn.execute(select(budget_windows.c.used, budget_windows.c.reserved))).one()
    assert tuple(window) == (0, 0)

    again = await client.post(job["urls"]["cancel"])
    assert (again.status_code, again.json()) == (200, cancelled)


async def test_a_running_job_s_worker_is_asked(
    client: httpx.AsyncClient, redis: Redis, submit: Submit, worker: HandWorker
) -> None:
    job = await submit()
    await worker.start(job)
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(CANCEL_CHANNEL)
        assert (await pubsub.get_message(timeout=10))["type"] == "subscribe"
        answer = await client.post(job["urls"]["cancel"])
        assert answer.status_code == 202
        asked = answer.json()
        assert asked["status"] == "running"
        assert asked["cancel_requested_at"] is not None
        told = await pubsub.get_message(timeout=10)
    assert told["data"] == job_id_of(job).hex.encode()

    again = await client.post(job["urls"]["cancel"])
    assert (again.status_code, again.json()) == (202, asked)
    await worker.finish(asked, status="cancelled", choices=None)
    ended = await client.post(job["urls"]["cancel"])
    assert (ended.status_code, ended.json()["status"]) == (200, "cancelled")


async def test_what_ended_otherwise_stays(
    client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit, worker: HandWorker
) -> None:
    job = await submit()
    await worker.finish(job)
    problem = assert_problem(await client.post(job["urls"]["cancel"]), 409, "already_ended", "succeeded")
    assert problem["job_status"] == "succeeded"
    assert (await client.get(job["urls"]["self"])).json()["status"] == "succeeded"
    async with engine.connect() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM usage"))).scalar_one() == 1


async def test_nobody_cancels_for_others(client: httpx.AsyncClient, other_tenant: Tenant, submit: Submit) -> None:
    job = await submit()
    assert_problem(await client.post(job["urls"]["cancel"], headers=other_tenant.auth), 404, "not_found")
    assert (await client.get(job["urls"]["self"])).json()["status"] == "queued"
