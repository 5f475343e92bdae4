"""What is known of a job? Reads for its owner; tenant in every WHERE."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, and_, bindparam, case, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs import tables as t
from app.jobs.timing import Breakdown, Timing, breakdown
from app.quotas.tables import budgets, usage


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as its owner sees it. `prompt_tokens` is counted at the submission; the other counts are the bill's, 0 before the end."""

    id: UUID
    tenant_id: str
    status: str
    tier: str
    model: str
    requested_model: str | None  # None: the same
    shared_from: UUID | None  # the job of identical work whose result it takes
    pool: str
    gen: int
    attempt: int
    n: int
    prompt_tokens: int
    max_tokens: int
    cached_tokens: int
    completion_tokens: int
    metadata: dict[str, str]
    error: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    cancel_requested_at: datetime | None
    changes: dict[str, Any] | None
    held_by: UUID | None  # the budget that it waits for, until `not_before` at the earliest
    not_before: datetime | None
    budget_metric: str | None
    budget_period: str | None
    choices: list[dict[str, Any]] | None
    cost_micros: int | None = None  # what it was charged, once it has ended; None too where its prices aren't set
    forgotten_at: datetime | None = None  # when its output was wiped: `choices` is None since
    forgotten_for: str | None = None  # `tenant`: by its tenant's word, else by the setting
    breakdown: Breakdown | None = None  # of one that has ended


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a page shows; None is any. `before` and `after` bound created_at, both exclusive."""

    status: str | None = None
    tier: str | None = None
    model: str | None = None
    metadata: dict[str, str] | None = None
    before: datetime | None = None
    after: datetime | None = None


# What settled its budgets: its bill, at the prices of its reservation; 0 where nothing was billed.
_COST = case(
    (
        and_(t.jobs.c.finished_at.is_not(None), or_(t.jobs.c.input_price > 0, t.jobs.c.output_price > 0)),
        func.coalesce(usage.c.cost_micros, 0),
    )
).label("cost_micros")


def _select(*, with_choices: bool) -> Select[Any]:
    j, u = t.jobs.c, usage.c
    columns = [
        j.id, j.tenant_id, j.status, j.tier, j.model, j.requested_model, j.shared_from, j.pool, j.gen, j.attempt, j.n, j.prompt_tokens, j.max_tokens,
        u.cached_tokens, u.completion_tokens, _COST, j.metadata, j.error, j.created_at, j.started_at, j.finished_at,
        j.deadline_at, j.cancel_requested_at, j.changes, j.held_by, j.not_before,
        budgets.c.metric.label("budget_metric"), budgets.c.period.label("budget_period"),
    ]  # fmt: skip
    joined = t.jobs.outerjoin(usage, and_(u.job_id == j.id, u.kind == "billed"))
    joined = joined.outerjoin(budgets, budgets.c.id == j.held_by)
    if with_choices:
        a = t.attempts.c
        joined = joined.outerjoin(t.job_results).outerjoin(t.attempts, and_(a.job_id == j.id, a.attempt == j.attempt))
        r = t.job_results.c
        columns += [r.choices, r.forgotten_at, r.forgotten_for, j.eligible_at]
        columns += [a.queued_s, a.prefill_s, a.decode_s, a.ended_at]
        return select(*columns).select_from(joined)
    return select(*columns).select_from(joined)


def _view(row: Row[Any]) -> JobView:
    values = dict(row._mapping)
    values["cached_tokens"] = values["cached_tokens"] or 0
    values["completion_tokens"] = values["completion_tokens"] or 0
    values["choices"] = values.get("choices") or None  # none since they were forgotten
    attempt = {
        name: values.pop(name, None) for name in ("eligible_at", "ended_at", "queued_s", "prefill_s", "decode_s")
    }
    if attempt["eligible_at"] is not None and values["finished_at"] is not None:
        values["breakdown"] = _breakdown(values, attempt)
    return JobView(**values)


def _breakdown(job: dict[str, Any], last: dict[str, Any]) -> Breakdown | None:
    """Of an ended job; None where its last attempt wasn't measured. `last` is that attempt, and since when the job could run."""
    times = job["created_at"], last["eligible_at"], job["finished_at"]
    has_waited_again = last["ended_at"] is not None and last["ended_at"] <= last["eligible_at"]
    if job["attempt"] == 0 or job["shared_from"] is not None or has_waited_again:
        return breakdown(*times, None)
    parts = last["queued_s"], last["prefill_s"], last["decode_s"]
    return None if None in parts else breakdown(*times, Timing(*parts))


_ONE = _select(with_choices=True).where(
    t.jobs.c.id == bindparam("job_id"), t.jobs.c.tenant_id == bindparam("tenant_id")
)


async def get_job(conn: AsyncConnection, tenant_id: str, job_id: UUID) -> JobView | None:
    """The tenant's job with its result; None where the tenant has no such job."""
    row = (await conn.execute(_ONE, {"job_id": job_id, "tenant_id": tenant_id})).one_or_none()
    return None if row is None else _view(row)


async def ended_among(conn: AsyncConnection, job_ids: Sequence[UUID]) -> list[UUID]:
    """Which of these jobs have ended, of whatever tenant: for waking those who wait, who then read as themselves."""
    j = t.jobs.c
    found = await conn.scalars(select(j.id).where(j.id.in_(job_ids), j.finished_at.is_not(None)))
    return list(found)


async def list_jobs(
    conn: AsyncConnection, tenant_id: str, wanted: JobFilter, *, limit: int, older_than: UUID | None = None
) -> Sequence[JobView]:
    """A page of the tenant's jobs without their texts, newest first, from the one before `older_than` on."""
    j = t.jobs.c
    query = _select(with_choices=False).where(j.tenant_id == tenant_id).order_by(j.id.desc()).limit(limit)
    if older_than is not None:
        query = query.where(j.id < older_than)
    for column, value in ((j.status, wanted.status), (j.tier, wanted.tier), (j.model, wanted.model)):
        if value is not None:
            query = query.where(column == value)
    if wanted.metadata:
        query = query.where(j.metadata.contains(wanted.metadata))
    if wanted.before is not None:
        query = query.where(j.created_at < wanted.before)
    if wanted.after is not None:
        query = query.where(j.created_at > wanted.after)
    return [_view(row) for row in await conn.execute(query)]
