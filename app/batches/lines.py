"""What has become of a batch's lines? Their rows, their lines in the files and the counts, together in the caller's transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.batches.store import COLUMNS as BATCH_COLUMNS
from app.batches.store import Batch, batch_name
from app.batches.tables import batches
from app.files.store import append, open_file

OUTPUT_PURPOSE = "batch_output"
_SMOOTHING_S = 30.0  # of `lines_per_s`

_SETTLE = text("""
    UPDATE batch_lines SET state = :state
    WHERE batch_id = :batch AND number = ANY(CAST(:numbers AS integer[])) AND state IN ('waiting', 'submitted')
""")
# An exponential mean over the time between two looks, however long that was; the first one is taken as it is.
_COUNT = text("""
    UPDATE batches b SET completed = b.completed + :completed, failed = b.failed + :failed, progress_at = statement_timestamp(),
        lines_per_s = coalesce(b.lines_per_s, f.rate) + (f.rate - coalesce(b.lines_per_s, f.rate)) * (1 - exp(-least(f.s / :smoothing, 50)))
    FROM (SELECT id, s, (:completed + :failed) / s AS rate FROM (
        SELECT id, greatest(0.001, extract(epoch FROM statement_timestamp() - progress_at))::float8 AS s
        FROM batches WHERE id = :batch) since) f
    WHERE b.id = f.id
""")


@dataclass(frozen=True, slots=True)
class Told:
    """A line of the input, and its line in one of the files, with the line's end."""

    number: int
    line: bytes


def line_id(batch_id: UUID, number: int) -> UUID:
    """What a line that never became a job is known by: always the same."""
    return uuid5(batch_id, str(number))


async def lock_batch(conn: AsyncConnection, batch_id: UUID, statuses: Iterable[str]) -> Batch | None:
    """The batch as it is now, locked; None where its status is none of these any more. The first lock of any transaction here."""
    query = select(*BATCH_COLUMNS).where(batches.c.id == batch_id, batches.c.status.in_(list(statuses)))
    row = (await conn.execute(query.with_for_update())).one_or_none()
    return None if row is None else Batch(*row)


async def record(conn: AsyncConnection, batch: Batch, completed: Sequence[Told], failed: Sequence[Told]) -> None:
    """Lines have come to their end: each is written into the output or the error file, once, since its row leaves its state once.

    `batch` is locked by the caller's transaction.
    """
    for state, told in (("completed", completed), ("failed", failed)):
        if told:
            numbers = [each.number for each in told]
            settled = await conn.execute(_SETTLE, {"batch": batch.id, "state": state, "numbers": numbers})
            assert settled.rowcount == len(told), "the batch is locked, and they were open under that lock"
            await append(conn, await _file_of(conn, batch, state), b"".join(each.line for each in told))
    if completed or failed:
        await conn.execute(
            _COUNT,
            {
                "batch": batch.id, "completed": len(completed), "failed": len(failed), "smoothing": _SMOOTHING_S,
            },
        )  # fmt: skip


async def _file_of(conn: AsyncConnection, batch: Batch, state: str) -> UUID:
    """The file for lines that end so; it is made for the first of them."""
    column, known, kind = (
        (batches.c.output_file_id, batch.output_file_id, "output")
        if state == "completed"
        else (batches.c.error_file_id, batch.error_file_id, "error")
    )
    if known is not None:
        return known
    filename = f"{batch_name(batch.id)}_{kind}.jsonl"
    file_id = await open_file(conn, batch.tenant_id, purpose=OUTPUT_PURPOSE, filename=filename, batch_id=batch.id)
    await conn.execute(update(batches).where(batches.c.id == batch.id).values({column: file_id}))
    return file_id
