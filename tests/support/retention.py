"""Jobs in every state, ended as long ago as a test wants, and a run of the retention over them."""

from random import Random
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.ids import new_id
from app.jobs import rescue, store
from app.jobs.cancel import cancel
from app.jobs.dead.resolve import discard
from app.jobs.finish import Ending, finish
from app.jobs.notices import Used
from app.jobs.store import GivenBack
from app.quotas.tables import budgets
from app.redis import Redis
from app.retention.run import run_retention
from app.retention.runs import Run
from app.settings import Settings
from tests.support.dead import DEADLY, kill, send_back
from tests.support.jobs import nominations, open_lease, submit

CHOICES = [{"index": 0, "text": "the end", "finish_reason": "stop"}]
HOOK = {"url": "https://example.com/hook", "events": ["job.started", "job.succeeded", "job.dead", "job.cancelled"]}
# What may become of a job, and how it gets there: each is a function below.
FATES = (
    "queued", "running", "succeeded", "failed", "cancelled", "expired", "succeeded late", "dead", "discarded", "revived",
    "died twice",
)  # fmt: skip
KEEPING = {"queued", "running", "dead", "died twice", "revived"}  # that no retention may delete


async def open_budgets(engine: AsyncEngine, tenant: str = "acme") -> None:
    """One budget for each metric, and prices."""
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE models SET input_price = 300001, output_price = 1500000"))
        for metric, period in (("total_tokens", "total"), ("requests", "day"), ("cost", "month")):
            row = {"id": new_id(), "tenant_id": tenant, "metric": metric, "period": period, "hard_limit": 10**9}
            await conn.execute(budgets.insert().values(row))


async def live(engine: AsyncEngine, settings: Settings, fate: str, *, tenant: str = "acme", **body: object) -> UUID:
    """A job of that fate."""
    (accepted,) = await submit(engine, settings, tenant=tenant, **body)
    job_id = accepted.job_id
    if fate in {"dead", "discarded", "revived", "died twice"}:
        await kill(engine, [accepted])
        if fate == "discarded":
            async with engine.begin() as conn:
                await discard(conn, job_id, actor="test:ann", reason="not worth it")
        elif fate != "dead":
            await send_back(engine, job_id)
        if fate == "died twice":
            await kill(engine, [job_id])
        return job_id
    if fate == "queued":
        return job_id
    async with engine.begin() as conn:
        worker = await open_lease(conn, ttl_s=86_400)
        (started,) = await store.start(conn, worker, nominations([accepted]))
        if fate == "succeeded late":  # at its second attempt
            rescued = await rescue.give_back(conn, [GivenBack(job_id, 1, "drained")], DEADLY, Random(1))
            (started,) = await store.start(conn, worker, next(iter(rescued.nominations.values())))
    if fate == "running":
        return job_id
    ends = {
        "succeeded": {"choices": CHOICES, "trace": b"trace", "used": Used(16, 4, 3)},
        "succeeded late": {"choices": CHOICES, "used": Used(16, 0, 3)},
        "failed": {"error": {"code": "x"}, "billed": False, "used": Used(16, 0, 0)},
        "cancelled": {"choices": CHOICES, "used": Used(16, 0, 2)},
        "expired": {"used": Used(16, 0, 0)},
    }
    ending = Ending(job_id, started.attempt, fate.removesuffix(" late"), **ends[fate])  # type: ignore[arg-type]
    async with engine.begin() as conn:
        assert await finish(conn, [ending]) == {job_id}
    return job_id


async def cancel_waiting(engine: AsyncEngine, settings: Settings, *, tenant: str = "acme") -> UUID:
    """A job that was cancelled before it ran."""
    (accepted,) = await submit(engine, settings, tenant=tenant)
    async with engine.begin() as conn:
        await cancel(conn, tenant, accepted.job_id)
    return accepted.job_id


async def age(engine: AsyncEngine, days: float, *job_ids: UUID) -> None:
    """As if these jobs, all where none is named, had come and ended so many days ago, and had been told of."""
    async with engine.begin() as conn:
        await conn.execute(
            text("""
                UPDATE jobs SET created_at = created_at - make_interval(secs => :s), finished_at = finished_at - make_interval(secs => :s)
                WHERE :all OR id = ANY(CAST(:ids AS uuid[]))
            """),
            {"s": days * 86_400, "all": not job_ids, "ids": list(job_ids)},
        )


async def told(engine: AsyncEngine) -> None:
    """Every delivery has arrived, at its first try."""
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "UPDATE webhook_deliveries SET status = 'delivered', ended_at = now(), tries = 1 WHERE status = 'pending'"
            )
        )
        await conn.execute(
            text("INSERT INTO webhook_tries (delivery_id, number, http_status) SELECT id, 1, 200 FROM webhook_deliveries "
                 "ON CONFLICT DO NOTHING")
        )  # fmt: skip


async def retain(engine: AsyncEngine, redis: Redis, settings: Settings, **changes: object) -> Run:
    """One run, with these settings."""
    changed = settings.model_copy(update=changes)
    run = await run_retention(changed, SystemClock(), engine, redis, asked_by="test")
    assert run is not None
    return run


async def count(engine: AsyncEngine, table: str, where: str = "true") -> int:
    """Rows of a table."""
    async with engine.connect() as conn:
        return int(await conn.scalar(text(f"SELECT count(*) FROM {table} WHERE {where}")) or 0)
