"""How is a run made? Step by step, a bounded transaction at a time, until nothing is left to delete or its time is up."""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.clock import Clock
from app.queue.keys import events_key
from app.redis import Redis, RedisError
from app.retention import content, jobs, rest, runs
from app.settings import Settings
from app.telemetry import emit

log = logging.getLogger(__name__)

MOST_JOBS = 500  # of one transaction
_LEAST_JOBS = 10
_SLOW_S = 0.5  # a transaction that took longer is followed by one of half as many jobs
_QUICK_S = 0.1
_REST = 1.0  # after each transaction as long as it took: half of the time is everybody else's
_LONGEST_REST_S = 1.0
_TIMEOUT_MS = 20_000
_LOCK_TIMEOUT_MS = 2_000
_FIRST = content.BEGINNING.ended_at


class _TimeIsUp(Exception):
    """The run has had its time."""


@dataclass(slots=True)
class _Pace:
    """How many jobs a transaction takes: fewer where one took long."""

    size: int = MOST_JOBS

    def took(self, seconds: float) -> None:
        if seconds > _SLOW_S:
            self.size = max(_LEAST_JOBS, self.size // 2)
        elif seconds < _QUICK_S:
            self.size = min(MOST_JOBS, self.size * 2)


@dataclass(slots=True)
class _Work:
    """What a run has at hand."""

    settings: Settings
    clock: Clock
    db: AsyncEngine
    redis: Redis
    run_id: UUID
    ends_at: float
    pace: _Pace = field(default_factory=_Pace)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """One bounded transaction; afterwards the others have their turn.

        Raises:
            _TimeIsUp: the run has had its time, before it begins.
        """
        began = self.clock.monotonic()
        if began >= self.ends_at:
            raise _TimeIsUp
        async with self.db.begin() as conn:
            await conn.execute(text(f"SET LOCAL statement_timeout = {_TIMEOUT_MS}"))
            await conn.execute(text(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}"))
            yield conn
        took = self.clock.monotonic() - began
        self.pace.took(took)
        await asyncio.sleep(min(took * _REST, _LONGEST_REST_S))


async def run_retention(
    settings: Settings, clock: Clock, db: AsyncEngine, redis: Redis, *, asked_by: str
) -> runs.Run | None:
    """Delete what has had its time; None where a run is under way already. Killed at any point it has done whole transactions.

    Raises:
        SQLAlchemyError: Postgres can't be asked to begin or end it. What fails in between is written down with the run.
    """
    async with db.begin() as conn:
        run_id = await runs.begin(conn, asked_by=asked_by, host=socket.gethostname())
    if run_id is None:
        return None
    work = _Work(settings, clock, db, redis, run_id, clock.monotonic() + settings.retention_run_s)
    outcome: runs.Outcome = "done"
    error: str | None = None
    try:
        for name, step in _STEPS.items():
            await _note(work, name, Counter())
            await step(work, name)
    except _TimeIsUp:
        outcome = "more"
    except (SQLAlchemyError, RedisError, OSError, runs.RunLost) as failure:
        outcome, error = "failed", f"{type(failure).__name__}: {failure}"[:500]
        emit(log, logging.WARNING, "retention_failed", error=failure)
    async with db.begin() as conn:
        await runs.end(conn, run_id, outcome, error)
        (found,) = [each for each in await runs.newest(conn, limit=100) if each.id == run_id]
    emit(log, logging.INFO, "retention_ran", outcome=found.outcome, rows=sum(found.rows.values()), asked_by=asked_by)
    return found


async def _note(work: _Work, step: str, deleted: Counter[str]) -> None:
    async with work.transaction() as conn:
        await runs.progress(conn, work.run_id, step, deleted)


async def _wipe_content(work: _Work, step: str) -> None:
    """Prompts and outputs of tenants that want them kept for a short while only; their streams in Redis first."""
    async with work.transaction() as conn:
        tenants = await content.tenants_with_past(conn)
    for tenant_id in tenants:
        since: content.Place | None = content.BEGINNING
        held: datetime | None = None
        while since is not None:
            async with work.transaction() as conn:
                page = await content.find_past(conn, tenant_id, since=since, most=work.pace.size)
            if page.job_ids:
                await work.redis.unlink(*[events_key(job_id) for job_id in page.job_ids])
                async with work.transaction() as conn:
                    await runs.progress(conn, work.run_id, step, await content.wipe(conn, page.job_ids))
            held = min((each for each in (held, page.held) if each is not None), default=None)
            since = page.last
        async with work.transaction() as conn:
            await content.note_wiped(conn, tenant_id, held=held)


async def _delete_jobs(work: _Work, step: str) -> None:
    days = work.settings.retention_days
    async with work.transaction() as conn:
        tenants = await jobs.tenants_with_old_jobs(conn, days=days)
    for tenant_id in tenants:
        since: datetime | None = _FIRST
        while since is not None:
            async with work.transaction() as conn:
                page = await jobs.delete_old_jobs(conn, tenant_id, days=days, since=since, most=work.pace.size)
                await runs.progress(conn, work.run_id, step, page.rows)
            since = page.last


async def _repeat(work: _Work, step: str, delete: Callable[[AsyncConnection], Awaitable[Counter[str]]]) -> None:
    """A transaction after the other until one has found nothing."""
    while True:
        async with work.transaction() as conn:
            deleted = await delete(conn)
            await runs.progress(conn, work.run_id, step, deleted)
        if not deleted.total():
            return


async def _delete_batches(work: _Work, step: str) -> None:
    await _repeat(work, step, lambda conn: rest.delete_old_batch(conn, days=work.settings.retention_days))


async def _delete_files(work: _Work, step: str) -> None:
    await _repeat(work, step, lambda conn: rest.delete_old_file(conn, days=work.settings.retention_days))


async def _delete_deliveries(work: _Work, step: str) -> None:
    days = work.settings.retention_days
    await _repeat(work, step, lambda conn: rest.delete_old_deliveries(conn, days=days, most=work.pace.size))


async def _delete_workers(work: _Work, step: str) -> None:
    days = work.settings.worker_retention_days
    await _repeat(work, step, lambda conn: rest.delete_old_workers(conn, worker_days=days, most=work.pace.size))


async def _delete_logins(work: _Work, step: str) -> None:
    await _repeat(work, step, lambda conn: rest.delete_old_logins(conn, most=work.pace.size))


async def _sum_up_usage(work: _Work, step: str) -> None:
    days = work.settings.usage_retention_days
    if days is not None:
        await _repeat(work, step, lambda conn: rest.sum_up_usage(conn, usage_days=days, most=work.pace.size))


# In this order: a batch goes after its jobs, a bill is summed up after its job.
_STEPS: dict[str, Callable[[_Work, str], Awaitable[None]]] = {
    "content": _wipe_content,
    "jobs": _delete_jobs,
    "batches": _delete_batches,
    "files": _delete_files,
    "deliveries": _delete_deliveries,
    "workers": _delete_workers,
    "log-ins": _delete_logins,
    "usage": _sum_up_usage,
}
