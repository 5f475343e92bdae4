"""Who deletes now, and how far has it come? One run at a time in the whole installation, held by a lease in its own row."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import PenstockError
from app.ids import new_id
from app.looks import Looks

Outcome = Literal["done", "more", "failed"]

LEASE_S = 60  # a run whose process died leaves its place to another one after so long
_KEPT_RUNS = 1000

_BURY = text("""
    UPDATE retention_runs SET running = NULL, ended_at = leased_until, outcome = 'lost'
    WHERE running AND leased_until < statement_timestamp()
""")
_BEGIN = text("""
    INSERT INTO retention_runs (id, asked_by, host, leased_until)
    VALUES (:id, :asked_by, :host, statement_timestamp() + make_interval(secs => :lease))
    ON CONFLICT (running) DO NOTHING RETURNING id
""")
# Also the fence: a run that has lost its place finds no row, and the transaction is rolled back.
_PROGRESS = text("""
    UPDATE retention_runs r SET leased_until = statement_timestamp() + make_interval(secs => :lease), step = :step,
        rows = r.rows || coalesce((
            SELECT jsonb_object_agg(n.name, coalesce((r.rows ->> n.name)::bigint, 0) + n.rows)
            FROM unnest(CAST(:names AS text[]), CAST(:counts AS bigint[])) AS n (name, rows)), '{}')
    WHERE r.id = :id AND r.running RETURNING r.id
""")
_TOTALS = text("""
    INSERT INTO retention_totals (name, rows)
    SELECT * FROM unnest(CAST(:names AS text[]), CAST(:counts AS bigint[]))
    ON CONFLICT (name) DO UPDATE SET rows = retention_totals.rows + excluded.rows
""")
_END = text("""
    UPDATE retention_runs SET running = NULL, ended_at = statement_timestamp(), outcome = :outcome, error = :error
    WHERE id = :id AND running
""")
_FORGET = text("""
    DELETE FROM retention_runs WHERE running IS NULL AND started_at < (
        SELECT started_at FROM retention_runs ORDER BY started_at DESC OFFSET :kept LIMIT 1)
""")
_LOOK = text("""
    SELECT NOT EXISTS (SELECT 1 FROM retention_runs
            WHERE started_at > statement_timestamp() - make_interval(secs => :every)
               OR (running AND leased_until >= statement_timestamp())) AS is_due,
        coalesce((SELECT jsonb_object_agg(name, rows) FROM retention_totals), '{}') AS totals,
        last.outcome AS last_outcome, last.ended_at AS last_ended_at
    FROM (SELECT) AS one LEFT JOIN (
        SELECT outcome, ended_at FROM retention_runs WHERE running IS NULL ORDER BY started_at DESC LIMIT 1) AS last ON true
""")
_COLUMNS = "id, asked_by, host, started_at, ended_at, step, rows, outcome, error"


class RunLost(PenstockError):
    """This run has lost its place: its process stood still for longer than its lease."""

    code = "retention_run_lost"
    retryable = True


@dataclass(frozen=True, slots=True)
class Run:
    """One run, as it is or was. `rows` counts what it deleted or emptied, by table."""

    id: UUID
    asked_by: str
    host: str
    started_at: datetime
    ended_at: datetime | None
    step: str
    rows: dict[str, int]
    outcome: str | None  # None: it runs
    error: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """Whether nothing runs, and nothing has begun for as long as was asked; what all runs together have deleted or emptied, by table; and how the last one that has ended did."""

    is_due: bool
    totals: dict[str, int]
    last_outcome: str | None
    last_ended_at: datetime | None


async def begin(conn: AsyncConnection, *, asked_by: str, host: str) -> UUID | None:
    """Take the place of the one run; None where another one has it."""
    await conn.execute(_BURY)
    run_id: UUID | None = await conn.scalar(
        _BEGIN, {"id": new_id(), "asked_by": asked_by, "host": host, "lease": LEASE_S}
    )
    return run_id


async def progress(conn: AsyncConnection, run_id: UUID, step: str, deleted: Counter[str]) -> None:
    """Note what this transaction deletes, and that the run goes on; in that transaction.

    Raises:
        RunLost: the run isn't the one any more; the transaction must be rolled back.
    """
    counts = {name: rows for name, rows in sorted(deleted.items()) if rows}
    columns = {"names": list(counts), "counts": list(counts.values())}
    if await conn.scalar(_PROGRESS, {"id": run_id, "step": step, "lease": LEASE_S, **columns}) is None:
        raise RunLost("another run has taken over")
    if counts:
        await conn.execute(_TOTALS, columns)


async def end(conn: AsyncConnection, run_id: UUID, outcome: Outcome, error: str | None = None) -> None:
    """Leave the place. A run that had lost it changes nothing. The newest runs are kept."""
    await conn.execute(_END, {"id": run_id, "outcome": outcome, "error": error})
    await conn.execute(_FORGET, {"kept": _KEPT_RUNS})


async def look(looks: Looks, *, every_s: float) -> Look:
    """What the runs say now; one has to be asked for where none has begun for `every_s`."""
    (row,) = await looks.rows(_LOOK, {"every": every_s})
    return Look(*row)


async def newest(conn: AsyncConnection, *, limit: int) -> Sequence[Run]:
    """The runs that began last, newest first."""
    rows = await conn.execute(
        text(f"SELECT {_COLUMNS} FROM retention_runs ORDER BY started_at DESC LIMIT :limit"),  # noqa: S608 - our own
        {"limit": limit},
    )
    return [Run(*row) for row in rows]


async def totals(conn: AsyncConnection) -> dict[str, int]:
    """What all runs together have deleted or emptied, by table."""
    found: Any = await conn.execute(text("SELECT name, rows FROM retention_totals ORDER BY name"))
    return {row.name: row.rows for row in found}
