"""Who is told that jobs have ended, after the commit? Those who wait for them, and those who watch the dead letters."""

import logging
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import job_name
from app.jobs import tables as t
from app.queue.dead import Obituary, publish_obituaries
from app.queue.events import announce_end
from app.redis import Redis
from app.telemetry import emit

log = logging.getLogger(__name__)


async def announce_ends(db: AsyncEngine, redis: Redis, ended: Sequence[tuple[UUID, str]]) -> None:
    """Wake those who wait for these (job, status), and announce the dead ones with their letters. Who misses it asks Postgres.

    Raises:
        RedisError: Redis doesn't answer.
    """
    if not ended:
        return
    await announce_end(redis, list(ended))
    dead = [job_id for job_id, status in ended if status == "dead"]
    if not dead:
        return
    try:
        obituaries = await _obituaries(db, dead)
    except (SQLAlchemyError, OSError) as error:
        emit(log, logging.WARNING, "dead_letters_not_announced", error=error, jobs=len(dead))
        return
    await publish_obituaries(redis, obituaries)


async def _obituaries(db: AsyncEngine, job_ids: Sequence[UUID]) -> list[Obituary]:
    d = t.dead_letters.c
    query = (
        select(d.pool, d.job_id, d.tenant_id, d.reason, d.fingerprint, d.at)
        .where(d.job_id.in_(job_ids), d.resolved_at.is_(None))
        .order_by(d.at, d.job_id)
    )
    async with db.connect() as conn:
        rows = (await conn.execute(query)).all()
    return [
        Obituary(row.pool, job_name(row.job_id), row.tenant_id, row.reason, row.fingerprint, row.at.isoformat())
        for row in rows
    ]
