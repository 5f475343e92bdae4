"""Which waiting jobs can't meet their deadline any more? They end before they waste a worker's time."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs.finish import expire_waiting
from app.jobs.lengths import Lengths

# A job may run faster than the mean of those before it: only what couldn't be done at twice their pace is given up.
BEST_PACE = 0.5
_HORIZON_S = 3600.0  # what has longer than this is looked at later, and by the worker that starts it

# Tokens that the job writes for certain: all where it ignores the end, else `min_tokens`. Of the row `jobs`.
CERTAIN_SQL = """coalesce((
    SELECT CASE WHEN (i.sampling->>'ignore_eos')::bool THEN jobs.max_tokens ELSE (i.sampling->>'min_tokens')::int END
    FROM job_inputs i WHERE i.job_id = jobs.id), 0)"""
# Whether there are candidates.
MAY_ANY_BE_HOPELESS = f"""EXISTS (
    SELECT 1 FROM jobs WHERE status = 'queued' AND attempt = 0
      AND deadline_at BETWEEN statement_timestamp() AND statement_timestamp() + make_interval(secs => {_HORIZON_S}))"""  # noqa: S608 - our own text
_CANDIDATES = text(f"""
    WITH pools AS (
        SELECT pool, min(CAST(stats->>'seconds_per_token' AS float8)) AS pace FROM workers
        WHERE ended_at IS NULL GROUP BY pool)
    SELECT jobs.id, jobs.tenant_id, jobs.model, jobs.max_tokens, pools.pace, {CERTAIN_SQL} AS certain,
           extract(epoch FROM deadline_at - statement_timestamp())::float8 AS left_s
    FROM jobs JOIN pools USING (pool)
    WHERE jobs.status = 'queued' AND jobs.attempt = 0 AND pools.pace IS NOT NULL
      AND jobs.deadline_at BETWEEN statement_timestamp() AND statement_timestamp() + make_interval(secs => :horizon)
    ORDER BY jobs.deadline_at LIMIT :most
""")  # noqa: S608 - our own text


async def expire_hopeless(
    conn: AsyncConnection, lengths_of: Callable[[str, str], Lengths], *, most: int = 500
) -> list[tuple[UUID, int, str]]:
    """End waiting jobs that need longer than they have, in the caller's transaction; return (job, gen, pool).

    What a job needs at least is the output of which 19 of 20 of its tenant's jobs write more, or what it must write by its own parameters, at twice
    the pace of the pool's fastest worker. A job that has run before isn't judged: it goes on from what it has.
    """
    rows = (await conn.execute(_CANDIDATES, {"horizon": _HORIZON_S, "most": most})).all()
    errors: dict[UUID, dict[str, Any]] = {}
    for row in rows:
        tokens = max(row.certain, lengths_of(row.tenant_id, row.model).least * row.max_tokens)
        needed_s = tokens * row.pace * BEST_PACE
        if needed_s > row.left_s:
            errors[row.id] = {
                "code": "deadline_unreachable",
                "message": f"no worker had started the job when it could no longer meet its deadline: {row.left_s:.1f} s "
                f"were left, and it needs at least {needed_s:.1f} s",
            }
    return await expire_waiting(conn, errors)
