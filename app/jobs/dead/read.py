"""Which dead letters are there, in which groups, and what is known of one? For operators: of all tenants."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Select, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs import tables as t
from app.jobs.owned import is_text, texts_of

State = Literal["open", "requeued", "discarded", "any"]


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which letters are meant; None is any. `before` and `after` bound the time of death, both exclusive."""

    state: State = "open"
    pool: str | None = None
    tenant: str | None = None
    reason: str | None = None
    fingerprint: str | None = None
    before: datetime | None = None
    after: datetime | None = None


@dataclass(frozen=True, slots=True)
class LetterPlace:
    """Where a page ends: the next one begins after it."""

    at: datetime
    job_id: UUID
    reservation: int


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. `reservation` counts the job's lives from 1; `attempt` is the last one of this life."""

    job_id: UUID
    reservation: int
    attempt: int
    pool: str
    tenant_id: str
    reason: str
    fingerprint: str
    signature: str
    at: datetime
    resolved_at: datetime | None
    resolution: str | None
    resolved_by: str | None
    resolution_reason: str | None

    @property
    def place(self) -> LetterPlace:
        """Where it stands in a list."""
        return LetterPlace(self.at, self.job_id, self.reservation)


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Letters with one fingerprint: one kind of death. `job_ids` are some of them, the newest first."""

    fingerprint: str
    signature: str
    reason: str
    count: int
    pools: list[str]
    tenants: int
    first_at: datetime
    last_at: datetime
    job_ids: list[UUID]


@dataclass(frozen=True, slots=True)
class LetterStory:
    """All that is known of a job that was given up: its letters, newest first, the evidence of the newest, the job as it is now."""

    letter: Letter
    evidence: dict[str, Any]
    others: list[Letter]
    job_status: str
    model: str
    tier: str
    n: int
    prompt_tokens: int
    max_tokens: int
    created_at: datetime
    deadline_at: datetime | None
    request: dict[str, Any]

    @property
    def shown_request(self) -> dict[str, Any]:
        """What the job asked for, without what only its owner should see."""
        return {name: value for name, value in self.request.items() if value is not None and not is_text(name, value)}

    @property
    def hidden_request(self) -> dict[str, Any]:
        """The rest."""
        return texts_of(self.request)


_EXAMPLES = 5
_COLUMNS = [t.dead_letters.c[name] for name in Letter.__slots__]


async def list_letters(
    conn: AsyncConnection, wanted: LetterFilter, *, limit: int, after: LetterPlace | None = None
) -> list[Letter]:
    """A page of letters, newest first, from the one after `after` on."""
    d = t.dead_letters.c
    query = (
        _filtered(select(*_COLUMNS), wanted).order_by(d.at.desc(), d.job_id.desc(), d.reservation.desc()).limit(limit)
    )
    if after is not None:
        place = tuple_(literal(after.at), literal(after.job_id), literal(after.reservation))
        query = query.where(tuple_(d.at, d.job_id, d.reservation) < place)
    return [Letter(*row) for row in await conn.execute(query)]


async def list_groups(conn: AsyncConnection, wanted: LetterFilter, *, limit: int) -> list[LetterGroup]:
    """The groups with the most letters, largest first."""
    d = t.dead_letters.c
    newest = aggregate_order_by(d.job_id, d.at.desc(), d.job_id.desc())
    query = _filtered(
        select(
            d.fingerprint,
            func.max(d.signature),
            func.max(d.reason),
            func.count(),
            func.array_agg(d.pool.distinct()),
            func.count(d.tenant_id.distinct()),
            func.min(d.at),
            func.max(d.at),
            func.array_agg(newest)[1:_EXAMPLES],
        ),
        wanted,
    )
    query = query.group_by(d.fingerprint).order_by(func.count().desc(), d.fingerprint).limit(limit)
    return [LetterGroup(*row) for row in await conn.execute(query)]


async def open_jobs(
    conn: AsyncConnection, wanted: LetterFilter, *, limit: int, after: UUID | None = None
) -> Sequence[UUID]:
    """Jobs with an open letter, in the order of their ids, from the one after `after` on."""
    d = t.dead_letters.c
    query = _filtered(select(d.job_id), wanted).order_by(d.job_id).limit(limit)
    if after is not None:
        query = query.where(d.job_id > after)
    return list(await conn.scalars(query))


async def count_letters(conn: AsyncConnection, wanted: LetterFilter) -> int:
    """How many letters are meant."""
    return int(await conn.scalar(_filtered(select(func.count()).select_from(t.dead_letters), wanted)) or 0)


async def read_story(conn: AsyncConnection, job_id: UUID) -> LetterStory | None:
    """All that is known; None where the job has no dead letter."""
    d, j, i = t.dead_letters.c, t.jobs.c, t.job_inputs.c
    rows = (
        await conn.execute(select(*_COLUMNS, d.evidence).where(d.job_id == job_id).order_by(d.reservation.desc()))
    ).all()
    if not rows:
        return None
    job = (
        await conn.execute(
            select(
                j.status, j.model, j.tier, j.n, j.prompt_tokens, j.max_tokens, j.created_at, j.deadline_at, i.request
            ).select_from(t.jobs.outerjoin(t.job_inputs)).where(j.id == job_id)
        )
    ).one()  # fmt: skip
    letters = [Letter(*row[: len(_COLUMNS)]) for row in rows]
    return LetterStory(letters[0], rows[0].evidence, letters[1:], *job[:-1], job.request or {})


def _filtered(query: Select[Any], wanted: LetterFilter) -> Select[Any]:
    d = t.dead_letters.c
    if wanted.state == "open":
        query = query.where(d.resolved_at.is_(None))
    elif wanted.state != "any":
        query = query.where(d.resolution == wanted.state)
    for of, value in (
        (d.pool, wanted.pool),
        (d.tenant_id, wanted.tenant),
        (d.reason, wanted.reason),
        (d.fingerprint, wanted.fingerprint),
    ):
        if value is not None:
            query = query.where(of == value)
    if wanted.before is not None:
        query = query.where(d.at < wanted.before)
    return query if wanted.after is None else query.where(d.at > wanted.after)
