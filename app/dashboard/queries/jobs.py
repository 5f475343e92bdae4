"""Which jobs fit a search? Of all tenants, newest first, without their texts."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Text, and_, cast, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.queries.walk import MOST_LOOKED_AT, Page, equal, few, walk
from app.jobs import tables as t
from app.quotas.tables import usage

# An index of its own has the newest of these.
ENDED_BADLY = ("failed", "cancelled", "expired", "dead")
# Ids are made by the clock of an API process, `created_at` by Postgres'.
_CLOCKS_APART = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class JobSearch:
    """What is searched for; None is any. `after` and `before` bound created_at, both exclusive. `id_end`: the id's last hex digits."""

    tenant: str | None = None
    status: str | None = None
    tier: str | None = None
    model: str | None = None
    metadata: dict[str, str] | None = None
    after: datetime | None = None
    before: datetime | None = None
    id_end: str | None = None


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job in a list. `completion_tokens` is None before its end."""

    id: UUID
    tenant_id: str
    status: str
    tier: str
    model: str
    attempt: int
    prompt_tokens: int
    max_tokens: int
    n: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    is_held: bool
    is_stopping: bool
    completion_tokens: int | None


_j = t.jobs.c
_SHOWN = [
    _j.id, _j.tenant_id, _j.status, _j.tier, _j.model, _j.attempt, _j.prompt_tokens, _j.max_tokens, _j.n, _j.created_at,
    _j.started_at, _j.finished_at, _j.held_by.is_not(None).label("is_held"),
    _j.cancel_requested_at.is_not(None).label("is_stopping"),
]  # fmt: skip


async def find_jobs(
    conn: AsyncConnection,
    wanted: JobSearch,
    *,
    limit: int,
    older_than: UUID | None = None,
    most: int = MOST_LOOKED_AT,
) -> Page[JobRow]:
    """The newest jobs that fit, from the one before `older_than` on."""
    near = select(*_SHOWN, _j.metadata)
    if wanted.tenant is not None:
        near = near.where(_j.tenant_id == wanted.tenant)
    if older_than is not None:
        near = near.where(_j.id < older_than)
    if wanted.after is not None:
        near = near.where(_j.id >= first_id_at(wanted.after - _CLOCKS_APART))
    if wanted.before is not None:
        near = near.where(_j.id < first_id_at(wanted.before + _CLOCKS_APART))
    status = wanted.status
    bound: int | None = most
    if status in ENDED_BADLY:
        near, status = near.where(_j.status == status), None
    elif status in {"queued", "running"}:
        waiting = await few(conn, near.where(_j.status == status), most=most)
        if waiting is not None:
            near, status, bound = waiting, None, None
    near = near.order_by(near.selected_columns.id.desc())

    page = await walk(conn, near, lambda columns: _fits(columns, wanted, status), key="id", limit=limit, most=bound)
    made = await _completions(conn, [row.id for row in page.rows])
    return page.of(lambda row: JobRow(*[*row[: len(_SHOWN)], made.get(row.id)]))


def _fits(columns: Any, wanted: JobSearch, status: str | None) -> list[ColumnElement[bool]]:
    found = equal(columns, status=status, tier=wanted.tier, model=wanted.model)
    if wanted.metadata:
        found.append(columns["metadata"].contains(wanted.metadata))
    if wanted.id_end is not None:
        found.append(func.right(cast(columns.id, Text), len(wanted.id_end)) == wanted.id_end)
    if wanted.after is not None:
        found.append(columns.created_at > wanted.after)
    if wanted.before is not None:
        found.append(columns.created_at < wanted.before)
    return found


def first_id_at(at: datetime) -> UUID:
    """The least UUIDv7 (RFC 9562) of this millisecond."""
    milliseconds = min(max(0, int(at.timestamp() * 1000)), (1 << 48) - 1)
    return UUID(int=milliseconds << 80)


async def _completions(conn: AsyncConnection, job_ids: list[UUID]) -> dict[UUID, int]:
    if not job_ids:
        return {}
    u = usage.c
    rows = await conn.execute(
        select(u.job_id, u.completion_tokens).where(and_(u.job_id.in_(job_ids), u.kind == "billed"))
    )
    return {row.job_id: row.completion_tokens for row in rows}
