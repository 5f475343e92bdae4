"""Which lines' jobs have ended? Their results become lines of the files, in the transaction that says so of their rows."""

from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.batches.bodies import EndedJob, answered_line, lost_line, refused_line
from app.batches.lines import Told, line_id, lock_batch, record
from app.batches.store import Batch
from app.ids import job_name
from app.killpoints import kill_point

COLLECTING = ("in_progress", "finalizing", "cancelling")
_PAGE = 1000
MOST_BYTES = 8 * 2**20  # of results, as JSON, that one transaction holds in memory, and one line more
# Why a line has no answer where its batch has ended before it.
LOST = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed: its batch was cancelled."),
}

# And one whose job had begun to write: what a caller may still want is there.
_CUT_OFF = {
    "expired": "The completion window expired while this request ran. What it had written until then is in {job}.",
    "cancelled": "This request was cut off: its batch was cancelled while it ran. What it had written until then is in {job}.",
}

# A result's bytes aren't those of its tokens: logprobs take many times as much. Only what is sent is unpacked whole.
_ENDED = text("""
    WITH ended AS (
        SELECT l.number, l.custom_id, l.job_id, j.status, j.model, j.created_at, j.prompt_tokens, j.error, r.choices,
               sum(coalesce(octet_length(r.choices::text), 0)) OVER (ORDER BY l.number ROWS UNBOUNDED PRECEDING)
                   - coalesce(octet_length(r.choices::text), 0) AS before
        FROM batch_lines l LEFT JOIN jobs j ON j.id = l.job_id
        LEFT JOIN job_results r ON r.job_id = l.job_id AND r.forgotten_at IS NULL
        WHERE l.batch_id = :batch AND l.state = 'submitted' AND (j.finished_at IS NOT NULL OR j.id IS NULL)
        ORDER BY l.number LIMIT :page)
    SELECT ended.*, extract(epoch FROM ended.created_at)::bigint AS created,
           coalesce(u.cached_tokens, 0) AS cached_tokens, coalesce(u.completion_tokens, 0) AS completion_tokens
    FROM ended LEFT JOIN usage u ON u.job_id = ended.job_id AND u.kind = 'billed'
    WHERE ended.before < :bytes ORDER BY ended.number
""")


async def collect(db: AsyncEngine, batch_id: UUID) -> int:
    """Write down what has ended since the last look; return how many lines. Any number may do so at once: they take turns."""
    async with db.begin() as conn:
        batch = await lock_batch(conn, batch_id, COLLECTING)
        if batch is None:
            return 0
        rows = (await conn.execute(_ENDED, {"batch": batch_id, "page": _PAGE, "bytes": MOST_BYTES})).all()
        completed = [Told(row.number, _answered(batch, row)) for row in rows if _has_answer(row)]
        failed = [Told(row.number, _refused(batch, row)) for row in rows if not _has_answer(row)]
        await record(conn, batch, completed, failed)
        kill_point("batches.before_collect_commit")
    kill_point("batches.after_collect_commit")
    return len(rows)


_WAITING = text("""
    SELECT number, custom_id FROM batch_lines WHERE batch_id = :batch AND state = 'waiting' ORDER BY number LIMIT :page
""")


async def write_off(conn: AsyncConnection, batch: Batch, why: str) -> int:
    """Give up lines that were never submitted, some at a time, in the caller's transaction, which has locked the batch."""
    rows = (await conn.execute(_WAITING, {"batch": batch.id, "page": _PAGE})).all()
    code, message = LOST[why]
    lost = [Told(row.number, lost_line(row.custom_id, line_id(batch.id, row.number), code, message)) for row in rows]
    await record(conn, batch, [], lost)
    return len(rows)


def why_lost(batch: Batch) -> str | None:
    """What a line is told that this batch left without an answer; None while it goes on."""
    return "cancelled" if batch.status == "cancelling" else batch.ending


def _has_answer(row: Row[Any]) -> bool:
    return bool(row.status == "succeeded" and row.choices is not None)


def _answered(batch: Batch, row: Row[Any]) -> bytes:
    return answered_line(row.custom_id, batch.endpoint, _job(row))


def _refused(batch: Batch, row: Row[Any]) -> bytes:
    why = why_lost(batch)
    if row.status == "cancelled" and why in LOST:
        code, message = LOST[why]
        if row.completion_tokens:
            message = _CUT_OFF[why].format(job=job_name(row.job_id))
        return lost_line(row.custom_id, row.job_id, code, message)
    if row.status is None or row.status == "succeeded":
        message = "the result was deleted before the batch had read it: its retention is too short"
        return lost_line(row.custom_id, row.job_id, "result_gone", message)
    return refused_line(row.custom_id, _job(row))


def _job(row: Row[Any]) -> EndedJob:
    return EndedJob(
        row.job_id, row.status, row.model, row.created, row.prompt_tokens, row.cached_tokens, row.completion_tokens,
        row.choices, row.error,
    )  # fmt: skip
