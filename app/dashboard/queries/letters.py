"""Which kinds of death are there, and which letters are of one? Groups by fingerprint, with counts and first and last sight."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.queries.walk import Page
from app.jobs import tables as t
from app.jobs.dead.read import Letter

MOST_COUNTED = 20_000  # letters; of more, those of the newest jobs
MOST_GROUPS = 200


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Open letters with one fingerprint."""

    fingerprint: str
    signature: str
    reason: str
    count: int
    tenants: int
    pools: list[str]
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Groups:
    """The largest groups first. `counted` letters stand in them; `is_cut`: there are older ones that weren't counted."""

    groups: Sequence[GroupRow]
    counted: int
    is_cut: bool


async def open_groups(
    conn: AsyncConnection, *, tenant: str | None = None, reason: str | None = None, pool: str | None = None
) -> Groups:
    """Open letters by their kind, of one tenant, reason or pool where that is named."""
    d = t.dead_letters.c
    near = (
        select(d.fingerprint, d.signature, d.reason, d.tenant_id, d.pool, d.at)
        .where(d.resolved_at.is_(None))
        .order_by(d.job_id.desc())
        .limit(MOST_COUNTED + 1)
    )
    for column, value in ((d.tenant_id, tenant), (d.reason, reason), (d.pool, pool)):
        if value is not None:
            near = near.where(column == value)
    letters = near.subquery("letters")
    of = letters.c
    rows = await conn.execute(
        select(
            of.fingerprint,
            func.max(of.signature),
            func.max(of.reason),
            func.count(),
            func.count(of.tenant_id.distinct()),
            func.array_agg(of.pool.distinct()),
            func.min(of.at),
            func.max(of.at),
            func.sum(func.count()).over().label("counted"),
        )
        .group_by(of.fingerprint)
        .order_by(func.count().desc(), func.max(of.at).desc(), of.fingerprint)
        .limit(MOST_GROUPS)
    )
    found = rows.all()
    counted = int(found[0].counted) if found else 0
    return Groups([GroupRow(*row[:-1]) for row in found], counted, counted > MOST_COUNTED)


async def group_of(conn: AsyncConnection, fingerprint: str) -> GroupRow | None:
    """One kind of death; None where none of its letters is open."""
    d = t.dead_letters.c
    row = (
        await conn.execute(
            select(
                func.max(d.signature),
                func.max(d.reason),
                func.count(),
                func.count(d.tenant_id.distinct()),
                func.array_agg(d.pool.distinct()),
                func.min(d.at),
                func.max(d.at),
            ).where(d.fingerprint == fingerprint, d.resolved_at.is_(None))
        )
    ).one()
    return GroupRow(fingerprint, *row) if row[2] else None


async def letters_of(
    conn: AsyncConnection, fingerprint: str, *, limit: int, older_than: UUID | None = None
) -> Page[Letter]:
    """The open letters of one kind, those of the newest jobs first."""
    d = t.dead_letters.c
    query = (
        select(*[d[name] for name in Letter.__slots__])
        .where(d.fingerprint == fingerprint, d.resolved_at.is_(None))
        .order_by(d.job_id.desc())
        .limit(limit + 1)
    )
    if older_than is not None:
        query = query.where(d.job_id < older_than)
    found = [Letter(*row) for row in await conn.execute(query)]
    shown = found[:limit]
    return Page(shown, shown[-1].job_id if len(found) > limit else None)
