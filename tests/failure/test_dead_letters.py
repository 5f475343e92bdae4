"""Does a job that was given up come back, once its cause is gone, as if it had been handed in anew? Real processes, real signals."""

import asyncio
import json
from pathlib import Path
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import job_name, new_id
from app.jobs.dead.resolve import Order, Requeued, requeue_one, tell_workers
from app.jobs.submit import nominate
from app.queue.dead import follow_obituaries
from app.queue.events import EventLog
from app.queue.streams import JobQueue
from app.quotas.tables import budget_windows, budgets
from app.redis import Redis
from app.settings import Settings
from app.webhooks.tables import webhook_deliveries
from tests.failure.test_worker_crashes import SLOW
from tests.support.audit import assert_audit_clean
from tests.support.dead import letters
from tests.support.jobs import POOL, seed, submit
from tests.support.receiver import receiver
from tests.support.stack import (
    MAINTENANCE,
    NULL_ENGINE,
    SHORT_LEASE,
    WORKER,
    assert_exactly_once,
    running,
    wait_for,
    wait_until_ended,
)

ONE_CHANCE = {"PENSTOCK_MAX_WORKER_LOSSES": "1"}
LOCAL = {"PENSTOCK_WEBHOOK_ALLOW_LOCAL": "true"}
DEAD = "SELECT count(*) = :n FROM dead_letters"


async def token_of(redis: Redis, job_id: UUID, attempt: int) -> None:
    """Until this attempt has brought a token."""
    log = EventLog(redis, ttl_s=60, max_entries=1000)
    async with asyncio.timeout(60):
        while not any(each.event.attempt == attempt and each.event.deltas for each in await log.read(job_id)):
            await asyncio.sleep(0.02)


async def test_a_job_that_died_twice_is_requeued_succeeds_and_is_billed_once(
    engine: AsyncEngine, settings: Settings, redis: Redis, environment: dict[str, str], tmp_path: Path
) -> None:
    await seed(engine)
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    row = {"id": new_id(), "tenant_id": "acme", "metric": "output_tokens", "period": "total", "hard_limit": 400}
    async with engine.begin() as conn:
        await conn.execute(budgets.insert().values(row))

    async def send_back(job_id) -> None:
        requeued = await requeue_one(engine.begin, job_id, Order("test:ann", "the cause is removed"))
        assert isinstance(requeued, Requeued)
        assert await tell_workers(lambda _: queue, [requeued])

    async with receiver() as hooks:
        webhook = {"url": hooks.url("/hook")}
        with (
            running(MAINTENANCE, environment, tmp_path, **ONE_CHANCE, **LOCAL),
            running("workers.webhooks.main", environment, tmp_path, **LOCAL),
        ):
            # The engine dies: its supervisor gives the job up.
            with running(WORKER, environment, tmp_path, **SLOW, **SHORT_LEASE, **ONE_CHANCE) as worker:
                accepted = await submit(engine, settings, max_tokens=400, webhook=webhook)
                assert await nominate(queue, accepted)
                job_id = accepted[0].job_id
                for attempt in (1, 2, 3):  # in company, and twice alone
                    await token_of(redis, job_id, attempt)
                    for child in worker.children():
                        child.kill()
                await wait_for(engine, DEAD, n=1)
                await send_back(job_id)
                # The worker dies with all it has: maintenance gives the job up.
                await wait_for(engine, "SELECT status = 'running' FROM jobs")
                worker.kill_all()
            await wait_for(engine, DEAD, n=2)
            await send_back(job_id)
            with running(WORKER, environment, tmp_path, **NULL_ENGINE):
                assert await wait_until_ended(engine, [job_id]) == {"succeeded": 1}
            await hooks.wait(3, timeout_s=60)
            await wait_for(engine, "SELECT count(*) = 3 FROM webhook_deliveries WHERE status = 'delivered'")
    first, second = await letters(engine)
    assert [(each.reservation, each.reason, each.resolution) for each in (first, second)] == [
        (1, "engine_crashes", "requeued"), (2, "workers_lost", "requeued"),
    ]  # fmt: skip
    assert "SIGKILL" in first.signature
    await assert_exactly_once(engine, [job_id])
    async with engine.connect() as conn:
        window = (await conn.execute(select(budget_windows))).one()
        assert (window.used, window.reserved) == (400, 0)
        billed = (await conn.execute(text("SELECT attempt, completion_tokens FROM usage WHERE kind = 'billed'"))).one()
        assert tuple(billed) == (5, 400)
        deliveries = (await conn.execute(select(webhook_deliveries).order_by(webhook_deliveries.c.id))).all()
    assert [(each.event_type, each.reservation, each.status) for each in deliveries] == [
        ("job.dead", 1, "delivered"), ("job.dead", 2, "delivered"), ("job.succeeded", 3, "delivered"),
    ]  # fmt: skip
    assert [json.loads(each.body)["type"] for each in hooks.received] == ["job.dead", "job.dead", "job.succeeded"]
    # Announced by the worker and by maintenance.
    following = follow_obituaries(redis, [POOL], backlog=5)
    told = [await anext(following), await anext(following)]
    await following.aclose()
    assert [(each.job, each.reason) for each in told] == [
        (job_name(job_id), "engine_crashes"), (job_name(job_id), "workers_lost"),
    ]  # fmt: skip
    await assert_audit_clean(engine, redis)
