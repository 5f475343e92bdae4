"""Which workers work, and which have? Live ones first, then the past by their end."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, func, literal, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs import tables as t

MOST_LIVE = 500
MOST_JOBS = 200  # running under one worker


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One life of a worker. `renewed_s` is how long ago it last said that it lives, `up_s` how long ago it began, by Postgres' clock; `figures` as it said then."""

    incarnation: UUID
    pool: str
    model: str
    host: str
    pid: int
    device: str
    state: str
    figures: dict[str, Any]
    started_at: datetime
    renewed_at: datetime
    ended_at: datetime | None
    drain_requested_at: datetime | None
    renewed_s: float
    up_s: float
    is_expired: bool

    @property
    def is_live(self) -> bool:
        """Whether its lease is open."""
        return self.ended_at is None

    @property
    def kv_usage(self) -> float | None:
        """How much of its KV pages is in use, 0 to 1; None where it has none."""
        total = self.figures.get("kv_blocks_total")
        return self.figures.get("kv_blocks_used", 0) / total if total else None


@dataclass(frozen=True, slots=True)
class PastPlace:
    """Where a page of past workers ends."""

    ended_at: datetime
    incarnation: UUID


@dataclass(frozen=True, slots=True)
class HeldJobRow:
    """A job that runs under a worker."""

    id: UUID
    tenant_id: str
    tier: str
    attempt: int
    started_at: datetime


_w = t.workers.c
_SHOWN = select(
    _w.incarnation, _w.pool, _w.model, _w.host, _w.pid, _w.device, _w.state, _w.stats, _w.started_at, _w.renewed_at, _w.ended_at,
    _w.drain_requested_at, func.extract("epoch", func.statement_timestamp() - _w.renewed_at),
    func.extract("epoch", func.statement_timestamp() - _w.started_at), _w.expires_at < func.statement_timestamp(),
)  # fmt: skip


async def live_workers(conn: AsyncConnection) -> list[WorkerRow]:
    """Whose lease is open, by model, host and age; at most `MOST_LIVE`."""
    return await _rows(
        conn, _SHOWN.where(_w.ended_at.is_(None)).order_by(_w.model, _w.host, _w.started_at).limit(MOST_LIVE)
    )


async def past_workers(conn: AsyncConnection, *, limit: int, after: PastPlace | None = None) -> Sequence[WorkerRow]:
    """Whose lease has ended, the newest end first, from the one after `after` on."""
    query = _SHOWN.where(_w.ended_at.is_not(None)).order_by(_w.ended_at.desc(), _w.incarnation.desc()).limit(limit)
    if after is not None:
        place = tuple_(literal(after.ended_at), literal(after.incarnation))
        query = query.where(_w.ended_at <= after.ended_at, tuple_(_w.ended_at, _w.incarnation) < place)
    return await _rows(conn, query)


async def read_worker(conn: AsyncConnection, incarnation: UUID) -> WorkerRow | None:
    """One life of a worker."""
    found = await _rows(conn, _SHOWN.where(_w.incarnation == incarnation))
    return found[0] if found else None


async def jobs_of(conn: AsyncConnection, incarnation: UUID) -> list[HeldJobRow]:
    """What runs under it, oldest first; at most `MOST_JOBS`."""
    j = t.jobs.c
    query = (
        select(*[j[name] for name in HeldJobRow.__slots__])
        .where(j.incarnation == incarnation, j.status == "running")
        .order_by(j.id)
        .limit(MOST_JOBS)
    )
    return [HeldJobRow(*row) for row in await conn.execute(query)]


async def outcomes_of(conn: AsyncConnection, incarnation: UUID) -> dict[str, int]:
    """How its attempts ended, by outcome; of the first 100,000."""
    rows = await conn.execute(
        text("""
            SELECT outcome, count(*) AS attempts FROM (
                SELECT outcome FROM attempts WHERE incarnation = :incarnation LIMIT 100000) AS ended
            GROUP BY outcome ORDER BY 2 DESC, 1
        """),
        {"incarnation": incarnation},
    )
    return {row.outcome: row.attempts for row in rows}


async def _rows(conn: AsyncConnection, query: Select[Any]) -> list[WorkerRow]:
    return [_row(row) for row in await conn.execute(query)]


def _row(row: Row[Any]) -> WorkerRow:
    values: list[Any] = list(row)
    values[-3:-1] = map(float, values[-3:-1])
    return WorkerRow(*values)
