"""Which workers hold a lease now? For those who look on: `penstock up`, `penstock doctor`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Float, cast, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs import tables as t
from app.looks import Looks


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """An open lease, and how long ago it was renewed and opened, in seconds by Postgres' clock."""

    model: str
    host: str
    pid: int
    device: str
    state: str
    stats: dict[str, Any]
    started_at: datetime
    renewed_s: float
    is_expired: bool
    incarnation: UUID
    pool: str
    up_s: float


async def live_workers(conn: AsyncConnection) -> list[LiveWorker]:
    """All leases that nobody has closed or buried, oldest first; an expired one is about to be buried."""
    w, now = t.workers.c, text("clock_timestamp()")
    rows = await conn.execute(
        select(
            w.model, w.host, w.pid, w.device, w.state, w.stats, w.started_at,
            cast(func.extract("epoch", now - w.renewed_at), Float), w.expires_at < now, w.incarnation, w.pool,
            cast(func.extract("epoch", now - w.started_at), Float),
        ).where(w.ended_at.is_(None)).order_by(w.started_at)
    )  # fmt: skip
    return [LiveWorker(*row) for row in rows]


_SERVED = text("""
    SELECT coalesce(sum(CAST(stats->>'served_tokens_per_s' AS float8)), 0) AS tokens_per_s FROM workers
    WHERE ended_at IS NULL AND expires_at >= clock_timestamp()
""")


async def served_tokens_per_s(looks: Looks) -> float:
    """What all workers whose lease hasn't run out serve together."""
    (row,) = await looks.rows(_SERVED)
    return float(row.tokens_per_s)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model with live workers, as the newest of them registered it; lengths in tokens."""

    name: str
    num_workers: int
    max_model_len: int
    vocab_size: int


async def served_models(conn: AsyncConnection) -> list[ServedModel]:
    """What workers whose lease hasn't run out serve, by name."""
    w, m = t.workers.c, t.models.c
    rows = await conn.execute(
        select(m.name, func.count(), m.max_model_len, m.vocab_size)
        .join(t.workers, w.model == m.name)
        .where(w.ended_at.is_(None), w.expires_at > text("clock_timestamp()"))
        .group_by(m.name)
        .order_by(m.name)
    )
    return [ServedModel(*row) for row in rows]


# One look into the index a pool, however many wait.
_UNSERVED = text("""
    SELECT pool FROM (SELECT DISTINCT pool FROM models) AS pools
    WHERE NOT EXISTS (SELECT FROM workers w WHERE w.pool = pools.pool AND w.ended_at IS NULL AND w.expires_at > clock_timestamp())
      AND EXISTS (SELECT FROM jobs j WHERE j.pool = pools.pool AND j.status = 'queued' AND j.not_before IS NULL)
    ORDER BY pool
""")


async def unserved_pools(conn: AsyncConnection) -> list[str]:
    """Pools with jobs that could run now, and without a worker that serves them, by name."""
    return list(await conn.scalars(_UNSERVED))
