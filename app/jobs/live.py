"""Which workers hold a lease now? For those who look on: `penstock up`, `penstock doctor`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Float, cast, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs import tables as t


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
