"""Which workers are alive? One lease an incarnation, by Postgres' clock."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import case, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs import tables as t


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One start of one worker. A restart is another incarnation."""

    id: UUID
    pool: str
    model: str
    host: str
    pid: int
    device: str
    model_hash: str


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that is running under an incarnation, as Postgres sees it."""

    job_id: UUID
    attempt: int
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a renewal tells a worker: what runs under its lease, and whether an operator wants it to claim nothing more."""

    held: list[HeldJob]
    is_drain_requested: bool


# Whether a lease has run out.
IS_ANY_EXPIRED = "EXISTS (SELECT 1 FROM workers WHERE ended_at IS NULL AND expires_at < statement_timestamp())"
_TTL = text("statement_timestamp() + make_interval(secs => :ttl)")


async def register(
    conn: AsyncConnection, incarnation: Incarnation, *, ttl_s: float, previous: UUID | None = None
) -> bool:
    """Open the lease; return whether an operator has drained the worker: in its `previous` incarnation, and that holds on."""
    drained = select(t.workers.c.drain_requested_at).where(t.workers.c.incarnation == previous).scalar_subquery()
    drain_requested_at = await conn.scalar(
        insert(t.workers)
        .values(
            incarnation=incarnation.id,
            pool=incarnation.pool,
            model=incarnation.model,
            host=incarnation.host,
            pid=incarnation.pid,
            device=incarnation.device,
            model_hash=incarnation.model_hash,
            state=case((drained.is_not(None), "draining"), else_="ready"),
            drain_requested_at=drained,
            expires_at=_TTL.bindparams(ttl=ttl_s),
        )
        .returning(t.workers.c.drain_requested_at)
    )
    return drain_requested_at is not None


async def renew(
    conn: AsyncConnection, incarnation: UUID, *, ttl_s: float, state: str, stats: dict[str, Any]
) -> Renewal | None:
    """Prolong the lease; None where others have buried it already. Who is drained by an operator is `draining`, whatever `state` says."""
    w = t.workers.c
    renewed = (
        await conn.execute(
            update(t.workers)
            .where(w.incarnation == incarnation, w.ended_at.is_(None))
            .values(
                renewed_at=text("statement_timestamp()"),
                expires_at=_TTL.bindparams(ttl=ttl_s),
                state=case((w.drain_requested_at.is_not(None), "draining"), else_=state),
                stats=stats,
            )
            .returning(w.drain_requested_at)
        )
    ).one_or_none()
    if renewed is None:
        return None
    rows = await conn.execute(
        text(
            "SELECT id, attempt, cancel_requested_at IS NOT NULL FROM jobs "
            "WHERE incarnation = :incarnation AND status = 'running'"
        ),
        {"incarnation": incarnation},
    )
    return Renewal([HeldJob(*row) for row in rows], renewed.drain_requested_at is not None)


async def lock(conn: AsyncConnection, incarnation: UUID) -> None:
    """Keep starts under this lease out until the caller's transaction ends; those that came first are seen after this."""
    await conn.execute(
        text("SELECT 1 FROM workers WHERE incarnation = :incarnation FOR UPDATE"), {"incarnation": incarnation}
    )


async def end(conn: AsyncConnection, incarnation: UUID) -> None:
    """Close the lease after a drain; nothing may run under it any more."""
    await conn.execute(
        update(t.workers)
        .where(t.workers.c.incarnation == incarnation, t.workers.c.ended_at.is_(None))
        .values(state="ended", ended_at=text("statement_timestamp()"))
    )


async def bury_expired(conn: AsyncConnection, *, ttl_s: float, most: int = 16) -> list[UUID]:
    """Mark incarnations whose lease ran out as lost, in the caller's transaction; their rows stay locked until it ends.

    Right after a restart of Postgres no expiry is believed for one whole TTL: nobody could renew while it was away.
    """
    rows = await conn.execute(
        text("""
            UPDATE workers SET state = 'lost', ended_at = statement_timestamp()
            WHERE incarnation IN (
                SELECT incarnation FROM workers
                WHERE ended_at IS NULL AND expires_at < statement_timestamp()
                  AND pg_postmaster_start_time() < statement_timestamp() - make_interval(secs => :ttl)
                ORDER BY expires_at LIMIT :most FOR UPDATE SKIP LOCKED)
            RETURNING incarnation
        """),
        {"ttl": ttl_s, "most": most},
    )
    return [row.incarnation for row in rows]
