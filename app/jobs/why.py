"""What is this job waiting for, right now, and when is that over? One binding constraint, the first that would hold it up by itself."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.ids import job_name
from app.jobs.forecast import Forecast
from app.jobs.pool_figures import PoolFigures

WhyReason = Literal[
    "ended",
    "cancelling",
    "running",
    "retry_delay",
    "budget",
    "identical_work",
    "no_worker",
    "suspect_lane",
    "breaker_open",
    "tenant_cap",
    "queue",
]


@dataclass(frozen=True, slots=True)
class Why:
    """The constraint, in a word and in a sentence; `clears_at` where somebody can say; `figures` that it is made of."""

    reason: WhyReason
    detail: str
    clears_at: datetime | None = None
    figures: dict[str, Any] = field(default_factory=dict)


# The tenant's running jobs are counted only where there is a cap. A budget's next window begins when this one ends.
_FACTS = text("""
    SELECT j.id, j.status, j.tier, j.pool, j.model, j.prompt_tokens + j.n * j.max_tokens AS tokens, j.max_tokens, j.lane, j.not_before, j.failures, j.cancel_requested_at, j.tenant_id,
        j.shared_from,
        j.deadline_at, statement_timestamp() AS now, t.max_running_jobs,
        CASE WHEN t.max_running_jobs IS NOT NULL AND j.status = 'queued' THEN
            (SELECT count(*) FROM jobs r WHERE r.status = 'running' AND r.tenant_id = j.tenant_id AND r.pool = j.pool)
        END AS running_jobs,
        b.id AS budget_id, b.metric AS budget_metric, b.period AS budget_period, b.hard_limit AS budget_limit,
        CASE WHEN b.period <> 'total' THEN
            date_trunc(b.period, statement_timestamp()) + CAST('1 ' || b.period AS interval) END AS window_ends,
        coalesce(CASE WHEN br.mode = 'auto' THEN br.state ELSE br.mode END, 'closed') AS breaker,
        br.retry_at, w.host, w.device, w.state AS worker_state, w.stats
    FROM jobs j JOIN tenants t ON t.id = j.tenant_id
    LEFT JOIN budgets b ON b.id = j.held_by
    LEFT JOIN breakers br ON br.model = j.model
    LEFT JOIN workers w ON w.incarnation = j.incarnation
    WHERE j.id = :id AND j.tenant_id = :tenant
""")


async def read_facts(conn: AsyncConnection, tenant_id: str, job_id: UUID) -> Row[Any] | None:
    """All that decides it, in one look; None where the tenant has no such job."""
    return (await conn.execute(_FACTS, {"id": job_id, "tenant": tenant_id})).one_or_none()


def explain(facts: Row[Any], figures: PoolFigures | None, when: Forecast | None) -> Why:
    """The binding constraint. `when` is a waiting job's forecast."""
    if facts.status != "queued":
        return _started(facts)
    if (pending := _not_eligible(facts)) is not None:
        return pending
    if figures is not None and figures.load.num_workers == 0:
        return Why("no_worker", f"no worker serves {facts.model!r} now; the job starts when one does")
    if facts.lane != "normal":
        return Why(
            "suspect_lane",
            "an engine died while it ran: it runs again alone, or among suspects, when a worker has finished what it has",
            figures={"lane": facts.lane},
        )
    if facts.breaker != "closed":
        return Why(
            "breaker_open",
            f"{facts.model!r} fails too often: workers go on trying the jobs that wait, and new ones are refused",
            facts.retry_at,
            {"breaker": facts.breaker},
        )
    if facts.running_jobs is not None and facts.running_jobs >= facts.max_running_jobs:
        detail = (
            f"{facts.running_jobs} of your jobs run, as many as may run at once; it starts when one of them has ended"
        )
        if facts.max_running_jobs == 0:
            detail = "none of your jobs may run now (max_running_jobs is 0); it starts when an operator raises that"
        return Why(
            "tenant_cap",
            detail,
            figures={"running_jobs": facts.running_jobs, "max_running_jobs": facts.max_running_jobs},
        )
    return _queued(facts, figures, when)


def _not_eligible(facts: Row[Any]) -> Why | None:
    """What keeps a queued job from being nominated at all."""
    if facts.budget_id is not None:
        return _held(facts)
    if facts.shared_from is not None:
        leader = job_name(facts.shared_from)
        return Why(
            "identical_work", f"{leader} computes the same: its result will be this job's, too", figures={"job": leader}
        )
    if facts.not_before is not None and facts.not_before > facts.now:
        return Why(
            "retry_delay",
            f"its last attempt was broken off, for the {facts.failures}. time; it is tried again after a pause",
            facts.not_before,
            {"failures": facts.failures},
        )
    return None


def _started(facts: Row[Any]) -> Why:
    if facts.status != "running":
        return Why("ended", f"it has ended: {facts.status}")
    if facts.cancel_requested_at is not None:
        return Why("cancelling", "its worker was asked to stop it")
    stats = facts.stats or {}
    shown: dict[str, Any] = {"worker_state": facts.worker_state, "device": facts.device}
    if stats.get("kv_blocks_total"):
        shown["kv_usage"] = round(stats["kv_blocks_used"] / stats["kv_blocks_total"], 3)
    for name in ("running", "waiting", "preemptions", "seconds_per_token"):
        if name in stats:
            shown[f"worker_{name}"] = stats[name]
    waits = stats.get("waiting", 0)
    full = f"; {waits} sequences there wait for a place or for KV pages" if waits else ""
    return Why("running", f"a worker runs it{full}", None, shown)


def _held(facts: Row[Any]) -> Why:
    over = "it has no next window" if facts.window_ends is None else "the next window has room again"
    return Why(
        "budget",
        f"the budget of {facts.budget_limit} {facts.budget_metric.replace('_', ' ')} a {facts.budget_period} is used up; {over}",
        facts.window_ends,
        {
            "budget_id": str(facts.budget_id), "metric": facts.budget_metric, "period": facts.budget_period,
            "limit": facts.budget_limit,
        },
    )  # fmt: skip


def _queued(facts: Row[Any], figures: PoolFigures | None, when: Forecast | None) -> Why:
    if figures is None or when is None:
        return Why("queue", "it waits for its turn; what is ahead of it isn't known just now")
    load = figures.load
    rate = load.rate_of(facts.tier)
    shown: dict[str, Any] = {
        "position": when.position,
        "tier_jobs": load.tier(facts.tier).jobs,
        "tier_tokens": load.tier(facts.tier).tokens,
        "tier_tokens_per_s": None if rate is None else round(rate, 1),
        "tier_share": None if rate is None or not load.drain_per_s else round(rate / load.drain_per_s, 4),
        "workers": load.num_workers,
        "figures": figures.source,
    }
    unknown = "; how fast it drains isn't measured yet" if rate is None else ""
    return Why("queue", f"it is about number {when.position} in {facts.tier}{unknown}", when.start_p50, shown)
