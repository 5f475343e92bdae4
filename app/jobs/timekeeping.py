"""What is due? Retries whose delay is over, deadlines that passed in the queue, keys past their time."""

from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs.finish import expire_waiting
from app.queue.places import place_sql
from app.queue.streams import Nomination

# Whether `wake_due` and `expire_queued` would find something.
IS_ANY_RETRY_DUE = """EXISTS (
    SELECT 1 FROM jobs WHERE status = 'queued' AND not_before <= statement_timestamp() AND held_by IS NULL)"""
IS_ANY_DEADLINE_OVER = "EXISTS (SELECT 1 FROM jobs WHERE status = 'queued' AND deadline_at <= statement_timestamp())"


async def wake_due(conn: AsyncConnection, *, most: int = 1000) -> dict[str, list[Nomination]]:
    """Make retries eligible whose delay is over, in the caller's transaction; return what to nominate, by pool.

    Jobs that wait for a budget aren't woken by time alone: app/jobs/held.py asks the budget first.
    """
    rows = await conn.execute(
        text(f"""
            UPDATE jobs SET not_before = NULL, eligible_at = statement_timestamp() WHERE id IN (
                SELECT id FROM jobs WHERE status = 'queued' AND not_before <= statement_timestamp() AND held_by IS NULL
                ORDER BY not_before LIMIT :most FOR UPDATE SKIP LOCKED)
            RETURNING pool, id, gen, {place_sql("jobs")}, tenant_id, prompt_tokens + n * max_tokens
        """),  # noqa: S608 - our own text
        {"most": most},
    )
    by_pool: dict[str, list[Nomination]] = {}
    for row in rows:
        by_pool.setdefault(row.pool, []).append(Nomination(*row[1:]))
    return by_pool


async def expire_queued(conn: AsyncConnection, *, most: int = 1000) -> list[tuple[UUID, int, str]]:
    """End waiting jobs whose deadline has passed, in the caller's transaction; return (job, gen, pool)."""
    rows = await conn.execute(
        text("""
            SELECT id FROM jobs WHERE status = 'queued' AND deadline_at <= statement_timestamp()
            ORDER BY deadline_at LIMIT :most FOR UPDATE SKIP LOCKED
        """),
        {"most": most},
    )
    overdue = [row.id for row in rows]
    error: dict[str, Any] = {
        "code": "deadline_passed",
        "message": "the deadline passed before a worker could start the job",
    }
    return await expire_waiting(conn, dict.fromkeys(overdue, error))


async def forget_canaries(conn: AsyncConnection, *, ttl_s: float) -> int:
    """Delete what machines gave for the known prompt that weren't seen for `ttl_s`."""
    result = await conn.execute(
        text("DELETE FROM canaries WHERE seen_at < statement_timestamp() - make_interval(secs => :ttl)"), {"ttl": ttl_s}
    )
    return int(result.rowcount)


async def forget_keys(conn: AsyncConnection, *, ttl_s: float, most: int = 1000) -> int:
    """Delete Idempotency-Keys whose job ended longer than `ttl_s` ago, or whose jobs did, all of them."""
    result = await conn.execute(
        text("""
            DELETE FROM idempotency_keys WHERE (tenant_id, key) IN (
                SELECT k.tenant_id, k.key FROM idempotency_keys k JOIN jobs j ON j.id = k.job_id
                WHERE k.created_at < statement_timestamp() - make_interval(secs => :ttl)
                  AND j.finished_at < statement_timestamp() - make_interval(secs => :ttl)
                  AND (k.job_ids IS NULL OR NOT EXISTS (
                      SELECT 1 FROM jobs other WHERE other.id = ANY(k.job_ids)
                        AND coalesce(other.finished_at, 'infinity') >= statement_timestamp() - make_interval(secs => :ttl)))
                ORDER BY k.created_at LIMIT :most)
        """),
        {"ttl": ttl_s, "most": most},
    )
    return int(result.rowcount)


async def forget_outputs(conn: AsyncConnection, *, ttl_s: float, most: int = 1000) -> int:
    """Empty results that are older than `ttl_s` and that no batch has yet to write down. That there was one stays, and what it cost."""
    result = await conn.execute(
        text("""
            UPDATE job_results SET choices = '[]', trace = NULL, forgotten_at = statement_timestamp(), forgotten_for = NULL WHERE job_id IN (
                SELECT job_id FROM job_results r
                WHERE forgotten_at IS NULL AND created_at < statement_timestamp() - make_interval(secs => :ttl)
                  AND NOT EXISTS (SELECT 1 FROM batch_lines l WHERE l.job_id = r.job_id AND l.state = 'submitted')
                ORDER BY created_at LIMIT :most FOR UPDATE SKIP LOCKED)
        """),
        {"ttl": ttl_s, "most": most},
    )
    return int(result.rowcount)
