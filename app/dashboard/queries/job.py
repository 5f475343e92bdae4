"""What is known of one job? Its row, attempts, usage, deliveries, letters and batch; its texts by a look of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.batches.tables import batch_lines
from app.ids import job_name
from app.jobs import tables as t
from app.jobs.owned import LABELS, is_text, texts_of
from app.quotas.tables import audit_log, budgets, usage
from app.webhooks.tables import webhook_deliveries

MOST_ATTEMPTS = 100  # the newest
MOST_DELIVERIES = 50


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """An attempt that ended. The worker's fields are None where its row is gone."""

    attempt: int
    incarnation: UUID
    outcome: str
    detail: dict[str, Any] | None
    ended_at: datetime
    host: str | None
    pid: int | None
    device: str | None
    queued_s: float | None  # as its worker measured; None where it didn't
    prefill_s: float | None
    decode_s: float | None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What an attempt has computed; `cost_micros` in millionths of the currency."""

    attempt: int
    kind: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_micros: int
    at: datetime


@dataclass(frozen=True, slots=True)
class LetterRow:
    """A dead letter of the job, one for each life that ended so."""

    reservation: int
    attempt: int
    reason: str
    fingerprint: str
    at: datetime
    resolved_at: datetime | None
    resolution: str | None
    resolved_by: str | None
    resolution_reason: str | None


@dataclass(frozen=True, slots=True)
class NoticeRow:
    """A webhook that tells of the job."""

    id: UUID
    event_type: str
    status: str
    tries: int
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Retiering:
    """An operator put the job into another tier: while it waited, or when its letter was sent back."""

    at: datetime
    actor: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class BatchPlace:
    """The line of a batch that the job is."""

    batch_id: UUID
    number: int
    custom_id: str


@dataclass(frozen=True, slots=True)
class JobStory:
    """A job as an operator sees it. `asked` is what of its request anybody may see; `now` is Postgres' time of the look."""

    id: UUID
    tenant_id: str
    api_key_id: UUID | None
    pool: str
    model: str
    requested_model: str | None
    tier: str
    status: str
    gen: int
    attempt: int
    lane: str
    reservation: int
    on_budget: str
    held_by: UUID | None
    shared_from: UUID | None
    incarnation: UUID | None
    prompt_tokens: int
    max_tokens: int
    n: int
    failures: int
    worker_losses: int
    engine_crashes: int
    solo_crashes: int
    metadata: dict[str, str]
    changes: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: datetime
    eligible_at: datetime
    not_before: datetime | None
    deadline_at: datetime | None
    cancel_requested_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    budget_metric: str | None
    budget_period: str | None
    asked: dict[str, Any]
    now: datetime
    attempts: Sequence[AttemptRow]
    usage: Sequence[UsageRow]
    letters: Sequence[LetterRow]
    notices: Sequence[NoticeRow]
    batch: BatchPlace | None
    retierings: Sequence[Retiering] = ()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more becomes of it by itself."""
        return self.finished_at is not None

    @property
    def billed(self) -> UsageRow | None:
        """What is on its tenant's bill."""
        return next((each for each in self.usage if each.kind == "billed"), None)


@dataclass(frozen=True, slots=True)
class JobTexts:
    """What its owner wrote and got. `request` is None where it was forgotten; `choices` without a result. `forgotten_at`: its result
    was past its retention then."""

    tenant_id: str
    n: int
    status: str
    request: dict[str, Any] | None
    choices: list[dict[str, Any]] | None
    forgotten_at: datetime | None


_j = t.jobs.c
_OF_JOB = [_j[name] for name in JobStory.__slots__ if name in _j]


async def read_job(conn: AsyncConnection, job_id: UUID) -> JobStory | None:
    """All that is known of a job but its texts; None where there is none such."""
    row = (
        await conn.execute(
            select(
                *_OF_JOB,
                budgets.c.metric.label("budget_metric"),
                budgets.c.period.label("budget_period"),
                t.job_inputs.c.request,
                text("statement_timestamp() AS now"),
            )
            .select_from(t.jobs.outerjoin(t.job_inputs).outerjoin(budgets, budgets.c.id == _j.held_by))
            .where(_j.id == job_id)
        )
    ).one_or_none()
    if row is None:
        return None
    values = dict(row._mapping)
    request = values.pop("request") or {}
    return JobStory(
        **values,
        # Metadata and webhook are shown as such, and as deliveries.
        asked={name: value for name, value in request.items() if name not in LABELS and not is_text(name, value)},
        attempts=await _attempts(conn, job_id),
        usage=await _usage(conn, job_id),
        letters=await _letters(conn, job_id),
        notices=await _notices(conn, job_id),
        batch=await batch_of(conn, job_id),
        retierings=await _retierings(conn, job_id),
    )


async def read_texts(conn: AsyncConnection, job_id: UUID) -> JobTexts | None:
    """What the job's owner wrote, and its result where it has one: only for who may see it, and the look is to be written down."""
    row = (
        await conn.execute(
            select(
                _j.tenant_id, _j.n, _j.status, t.job_inputs.c.request, t.job_results.c.choices, t.job_results.c.forgotten_at
            ).select_from(t.jobs.outerjoin(t.job_inputs).outerjoin(t.job_results)).where(_j.id == job_id)
        )
    ).one_or_none()  # fmt: skip
    if row is None:
        return None
    request = None if row.request is None else texts_of(row.request)
    return JobTexts(row.tenant_id, row.n, row.status, request, row.choices, row.forgotten_at)


async def batch_of(conn: AsyncConnection, job_id: UUID) -> BatchPlace | None:
    """The line of a batch that became this job, if one did."""
    b = batch_lines.c
    row = (await conn.execute(select(b.batch_id, b.number, b.custom_id).where(b.job_id == job_id))).one_or_none()
    return None if row is None else BatchPlace(*row)


async def _attempts(conn: AsyncConnection, job_id: UUID) -> list[AttemptRow]:
    a, w = t.attempts.c, t.workers.c
    rows = await conn.execute(
        select(
            *(a.attempt, a.incarnation, a.outcome, a.detail, a.ended_at, w.host, w.pid, w.device),
            *(a.queued_s, a.prefill_s, a.decode_s),
        )
        .select_from(t.attempts.outerjoin(t.workers, w.incarnation == a.incarnation))
        .where(a.job_id == job_id)
        .order_by(a.attempt.desc())
        .limit(MOST_ATTEMPTS)
    )
    return [AttemptRow(*row) for row in rows][::-1]


async def _usage(conn: AsyncConnection, job_id: UUID) -> list[UsageRow]:
    u = usage.c
    columns = [u[name] for name in UsageRow.__slots__]
    rows = await conn.execute(select(*columns).where(u.job_id == job_id).order_by(u.attempt, u.kind))
    return [UsageRow(*row) for row in rows]


async def _letters(conn: AsyncConnection, job_id: UUID) -> list[LetterRow]:
    d = t.dead_letters.c
    columns = [d[name] for name in LetterRow.__slots__]
    rows = await conn.execute(select(*columns).where(d.job_id == job_id).order_by(d.reservation))
    return [LetterRow(*row) for row in rows]


async def _notices(conn: AsyncConnection, job_id: UUID) -> list[NoticeRow]:
    d = webhook_deliveries.c
    columns = [d[name] for name in NoticeRow.__slots__]
    rows = await conn.execute(select(*columns).where(d.job_id == job_id).order_by(d.id).limit(MOST_DELIVERIES))
    return [NoticeRow(*row) for row in rows]


async def _retierings(conn: AsyncConnection, job_id: UUID) -> list[Retiering]:
    a = audit_log.c
    # A letter may be sent back in another tier, too.
    before = func.coalesce(a.detail["before"].astext, a.detail[("changed", "tier", "0")].astext)
    after = func.coalesce(a.detail["after"].astext, a.detail[("changed", "tier", "1")].astext)
    rows = await conn.execute(
        select(a.at, a.actor, before, after)
        .where(a.target == job_name(job_id), a.action.in_(["job.tier", "dead_letter.requeue"]), before.is_not(None))
        .order_by(a.id)
    )
    return [Retiering(*row) for row in rows]
