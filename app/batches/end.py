"""How does a batch end? What is under way is stopped or awaited, the files are checked, and then its status says so."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.batches.collect import LOST, why_lost, write_off
from app.batches.events import announce
from app.batches.lines import lock_batch
from app.batches.store import Batch, batch_name
from app.batches.tables import batch_lines, batches
from app.errors import PenstockError
from app.files.store import close_file, read_pieces
from app.jobs.finish import end_queued
from app.killpoints import kill_point

ENDING = ("finalizing", "cancelling")
_STOP_PAGE = 500

_TO_STOP = text("""
    SELECT j.id, j.status, j.pool, j.gen FROM jobs j
    WHERE j.id IN (SELECT job_id FROM batch_lines WHERE batch_id = :batch AND state = 'submitted')
      AND j.status IN ('queued', 'running') AND j.cancel_requested_at IS NULL
    ORDER BY j.id LIMIT :page FOR UPDATE OF j
""")
_ASK = text("""
    UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, statement_timestamp())
    WHERE id = ANY(CAST(:ids AS uuid[])) AND status = 'running'
""")


class BatchFilesWrong(PenstockError):
    """A batch's files don't hold each custom_id once. It stays `finalizing`, and the log of maintenance says what is wrong."""

    code = "batch_files_wrong"


@dataclass(slots=True)
class Stopped:
    """Lines of a batch that were stopped: without a job, at once, as (job, gen) by pool, and those whose workers were asked."""

    num_written_off: int = 0
    ended: dict[str, list[tuple[UUID, int]]] = field(default_factory=dict)
    asked: list[UUID] = field(default_factory=list)

    def __len__(self) -> int:
        return self.num_written_off + sum(map(len, self.ended.values())) + len(self.asked)


async def begin_end(db: AsyncEngine, batch: Batch) -> bool:
    """in_progress -> finalizing, where its time is over or no line is left; return whether it was that."""
    async with db.begin() as conn:
        now = await lock_batch(conn, batch.id, {"in_progress"})
        if now is None:
            return False
        is_over = await conn.scalar(
            select(batches.c.expires_at <= func.statement_timestamp()).where(batches.c.id == batch.id)
        )
        if now.left and not is_over:
            return False
        values = {
            "status": "finalizing", "ending": "expired" if now.left else "completed", "waiting_for": None,
            "finalizing_at": func.statement_timestamp(), "due_at": func.statement_timestamp(),
        }  # fmt: skip
        await conn.execute(update(batches).where(batches.c.id == batch.id).values(**values))
        await announce(conn, batch.tenant_id, batch_name(batch.id), "finalizing", batch.metadata)
    return True


async def expire_unread(db: AsyncEngine, batch: Batch) -> bool:
    """validating -> expired, where its time is over before its lines were looked at; return whether it was that. It has no files."""
    code, message = LOST["expired"]
    error = {"code": code, "line": None, "message": message, "param": None}
    still = batches.c.status == "validating", batches.c.expires_at <= func.statement_timestamp()
    async with db.begin() as conn:
        if await lock_batch(conn, batch.id, {"validating"}) is None:
            return False
        values = {"status": "expired", "expired_at": func.statement_timestamp(), "errors": [error]}
        expired = update(batches).where(batches.c.id == batch.id, *still).values(**values).returning(batches.c.id)
        if await conn.scalar(expired) is None:
            return False
        await announce(conn, batch.tenant_id, batch_name(batch.id), "expired", batch.metadata)
    return True


async def stop(db: AsyncEngine, batch: Batch) -> Stopped:
    """Stop the lines of a batch that ends early, some at a time: those without a job, and jobs that wait or run."""
    stopped = Stopped()
    async with db.begin() as conn:
        now = await lock_batch(conn, batch.id, ENDING)
        why = None if now is None else why_lost(now)
        if now is None or why not in LOST:
            return stopped
        stopped.num_written_off = await write_off(conn, now, why)
        rows = (await conn.execute(_TO_STOP, {"batch": batch.id, "page": _STOP_PAGE})).all()
        queued = [row.id for row in rows if row.status == "queued"]
        for job_id, gen, pool in await end_queued(conn, queued, "cancelled"):
            stopped.ended.setdefault(pool, []).append((job_id, gen))
        stopped.asked = [row.id for row in rows if row.status == "running"]
        if stopped.asked:
            await conn.execute(_ASK, {"ids": stopped.asked})
        kill_point("batches.before_stop_commit")
    return stopped


async def end(db: AsyncEngine, batch: Batch, *, file_ttl_s: float) -> bool:
    """finalizing, cancelling -> its end, once every line has come to its own; return whether it has ended.

    Raises:
        BatchFilesWrong: the files don't hold each custom_id once.
    """
    async with db.begin() as conn:
        now = await lock_batch(conn, batch.id, ENDING)
    if now is None or now.left:
        return False
    await check_files(db, now)  # nobody writes them any more: no line is left
    async with db.begin() as conn:
        now = await lock_batch(conn, batch.id, ENDING)
        if now is None:
            return False
        await _end(conn, now, file_ttl_s)
        kill_point("batches.before_end_commit")
    kill_point("batches.after_end_commit")
    return True


async def _end(conn: AsyncConnection, batch: Batch, file_ttl_s: float) -> None:
    status = batch.ending or "cancelled"
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id is not None:
            await close_file(conn, file_id, ttl_s=file_ttl_s)
    values = {"status": status, "ending": None, f"{status}_at": func.statement_timestamp(), "waiting_for": None}
    await conn.execute(update(batches).where(batches.c.id == batch.id).values(**values))
    await announce(conn, batch.tenant_id, batch_name(batch.id), status, batch.metadata)


class _Id(msgspec.Struct):
    custom_id: str


_decoder = msgspec.json.Decoder(_Id)


async def check_files(db: AsyncEngine, batch: Batch) -> None:
    """Read both files as their owner will, and compare them with the lines of the batch.

    Raises:
        BatchFilesWrong: a custom_id is missing, or there twice, or there is one too many.
    """
    found: Counter[str] = Counter()
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id is not None:
            rest = b""
            async for piece in read_pieces(db, file_id):
                *lines, rest = (rest + piece).split(b"\n")
                await asyncio.to_thread(_count, found, lines)
            if rest:
                raise BatchFilesWrong(f"{batch_name(batch.id)}: a file doesn't end with a line")
    async with db.connect() as conn:
        wanted = Counter(await conn.scalars(select(batch_lines.c.custom_id).where(batch_lines.c.batch_id == batch.id)))
    if found != wanted:
        missing, beyond = wanted - found, found - wanted
        raise BatchFilesWrong(
            f"{batch_name(batch.id)}: {missing.total()} custom_ids are missing in its files, {beyond.total()} are there too often"
        )


def _count(found: Counter[str], lines: Sequence[bytes]) -> None:
    found.update(_decoder.decode(line).custom_id for line in lines)
