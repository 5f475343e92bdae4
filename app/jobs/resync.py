"""Does Redis know what waits in Postgres, and nothing else? The sweep for lost enqueues, the rebuild, the audit of stale nominations."""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.looks import Looks
from app.queue.places import place_sql
from app.queue.streams import JobQueue, Nomination

_QUEUED = f"""
    SELECT id, gen, {place_sql("jobs")}, tenant_id, prompt_tokens + n * max_tokens, eligible_at FROM jobs
    WHERE status = 'queued' AND not_before IS NULL AND pool = :pool
"""  # noqa: S608 - our own text
_SWEEP = text(
    _QUEUED + "AND (eligible_at, id) > (CAST(:since AS timestamptz), CAST(:after AS uuid)) "
    "AND eligible_at < statement_timestamp() - make_interval(secs => :grace) ORDER BY eligible_at, id LIMIT :page"
)
_FIRST_ID = UUID(int=0)


@dataclass(slots=True)
class SweepCursor:
    """How far the sweep has come: each queued job is compared once, after its grace, and again by the audit."""

    since: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    after: UUID = _FIRST_ID


async def sweep(
    looks: Looks, queue: JobQueue, cursor: SweepCursor, *, grace_s: float, page: int = 1000, force: bool = False,
    deep: bool = False,
) -> int:  # fmt: skip
    """Nominate what is queued in Postgres for longer than `grace_s` and isn't known to Redis; move the cursor to the end.

    Run it with a fresh cursor and `force` to rebuild a Redis that lost its memory: jobs come in the order in which they
    became eligible, so that the order within a tenant is kept. With `deep`, what Redis says that it knows is looked at, too:
    a nomination that no claim can find is put back.

    Returns:
        How many nominations were made or put back.
    """
    found = 0
    while True:
        values = {"pool": queue.keys.pool, "since": cursor.since, "after": cursor.after, "grace": grace_s, "page": page}
        rows = await looks.rows(_SWEEP, values)
        if not rows:
            return found
        known = await queue.known_gens([row.id for row in rows])
        lost = [Nomination(*row[:5]) for row, gen in zip(rows, known, strict=True) if gen is None or gen < row.gen]
        found += await queue.enqueue(lost, force=force) or 0
        if deep:
            found += await queue.mend([row.id for row, gen in zip(rows, known, strict=True) if gen is not None])
        cursor.since, cursor.after = rows[-1].eligible_at, rows[-1].id
        if len(rows) < page:
            return found


async def drop_stale(engine: AsyncEngine, queue: JobQueue, *, page: int = 1000) -> int:
    """Take out nominations of jobs that don't wait (any more): the other direction of the deep audit."""
    dropped = 0
    async for part in queue.scan(page):
        async with engine.connect() as conn:
            rows = await conn.execute(
                text("""
                    SELECT nominated.id, nominated.gen
                    FROM unnest(CAST(:ids AS uuid[]), CAST(:gens AS integer[])) AS nominated (id, gen)
                    LEFT JOIN jobs ON jobs.id = nominated.id AND jobs.gen <= nominated.gen AND jobs.status = 'queued'
                    WHERE jobs.id IS NULL
                """),
                {"ids": [job_id for job_id, _ in part], "gens": [gen for _, gen in part]},
            )
            stale = [(row.id, row.gen) for row in rows]
        dropped += await queue.ack(stale)
    return dropped
