"""Which ended jobs go, and what goes with them? All that hangs on a job, in one transaction, and what their ledger comes to stays."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.killpoints import kill_point


@dataclass(frozen=True, slots=True)
class Deleted:
    """One transaction's work. `last` is where the next page begins; None: there is none."""

    rows: Counter[str]
    last: datetime | None


# What still has something to do with the job keeps it: an operator who has to decide, a delivery on its way, a batch that hasn't
# written its line down, a key that leads to it, one that waits for its result, a reservation that doesn't add up.
_GUARDS = """
    NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.job_id = j.id AND d.resolved_at IS NULL)
    AND NOT EXISTS (SELECT 1 FROM webhook_deliveries w WHERE w.job_id = j.id AND w.status = 'pending')
    AND NOT EXISTS (SELECT 1 FROM batch_lines l WHERE l.job_id = j.id AND l.state = 'submitted')
    AND NOT EXISTS (SELECT 1 FROM idempotency_keys k WHERE k.job_id = j.id)
    -- The key of a bulk was written in the transaction of its jobs, so it bears their time.
    AND NOT EXISTS (SELECT 1 FROM idempotency_keys k WHERE k.created_at = j.created_at AND k.job_ids @> ARRAY[j.id])
    AND NOT EXISTS (SELECT 1 FROM jobs f WHERE f.shared_from = j.id AND f.status = 'queued')
    AND NOT EXISTS (
        SELECT 1 FROM ledger l WHERE l.job_id = j.id GROUP BY l.reservation, l.budget_id, l.window_start
        HAVING count(*) <> 3 OR sum(CASE l.kind WHEN 'reserve' THEN l.amount ELSE -l.amount END) <> 0)
"""
# An old end that is kept by the setting, where its tenant says nothing.
_CUTOFF = "statement_timestamp() - make_interval(days => coalesce(t.retention_days, CAST(:days AS integer)))"
_TENANTS = text(f"""
    SELECT t.id FROM tenants t
    WHERE coalesce(t.retention_days, CAST(:days AS integer)) IS NOT NULL
      AND EXISTS (SELECT 1 FROM jobs j WHERE j.tenant_id = t.id AND j.finished_at < {_CUTOFF})
    ORDER BY t.id
""")  # noqa: S608 - our own text
_DUE = text(f"""
    SELECT j.id, j.finished_at FROM tenants t JOIN jobs j ON j.tenant_id = t.id
    WHERE t.id = :tenant AND j.finished_at >= CAST(:since AS timestamptz) AND j.finished_at < {_CUTOFF} AND {_GUARDS}
    ORDER BY j.finished_at LIMIT :most FOR UPDATE OF j SKIP LOCKED
""")  # noqa: S608 - our own text
_COUNT = text(f"""
    SELECT count(*) FROM tenants t JOIN jobs j ON j.tenant_id = t.id WHERE j.finished_at < {_CUTOFF} AND {_GUARDS}
""")  # noqa: S608 - our own text
_ROLL_UP = text("""
    WITH gone AS (
        DELETE FROM ledger WHERE job_id = ANY(CAST(:ids AS uuid[]))
        RETURNING budget_id, window_start, job_id, kind, amount),
    rolled AS (
        INSERT INTO ledger_rollups (budget_id, window_start, settled, jobs)
        SELECT budget_id, window_start, coalesce(sum(amount) FILTER (WHERE kind = 'settle'), 0), count(DISTINCT job_id)
        FROM gone GROUP BY budget_id, window_start
        ON CONFLICT (budget_id, window_start) DO UPDATE
        SET settled = ledger_rollups.settled + excluded.settled, jobs = ledger_rollups.jobs + excluded.jobs)
    SELECT count(*) FROM gone
""")
# Children first: none is left to a cascade, so that all are counted.
_OF_JOBS = {
    "webhook_tries": "delivery_id IN (SELECT id FROM webhook_deliveries WHERE job_id = ANY(CAST(:ids AS uuid[])))",
    **dict.fromkeys(
        ("webhook_deliveries", "dead_letters", "face_calls", "attempts", "job_results", "job_inputs"),
        "job_id = ANY(CAST(:ids AS uuid[]))",
    ),
    "jobs": "id = ANY(CAST(:ids AS uuid[]))",
}
_DELETES = {
    table: text(f"DELETE FROM {table} WHERE {which}")  # noqa: S608 - our own text
    for table, which in _OF_JOBS.items()
}


async def tenants_with_old_jobs(conn: AsyncConnection, *, days: int | None) -> Sequence[str]:
    """Tenants that have jobs past their time. `days`: where a tenant has no word of its own; None: for ever."""
    return (await conn.scalars(_TENANTS, {"days": days})).all()


async def count_old_jobs(conn: AsyncConnection, *, days: int | None) -> int:
    """How many jobs a run would delete now."""
    return int(await conn.scalar(_COUNT, {"days": days}) or 0)


async def delete_old_jobs(
    conn: AsyncConnection, tenant_id: str, *, days: int | None, since: datetime, most: int
) -> Deleted:
    """Delete up to `most` of the tenant's jobs that ended at `since` or later and are past their time, oldest first, in the caller's transaction.

    Rows of `usage` stay: they are the bill. Settled amounts stay as sums by window.
    """
    found: Any = (await conn.execute(_DUE, {"tenant": tenant_id, "days": days, "since": since, "most": most})).all()
    if not found:
        return Deleted(Counter(), None)
    ids = {"ids": [row.id for row in found]}
    rows: Counter[str] = Counter()
    rows["ledger"] = int(await conn.scalar(_ROLL_UP, ids) or 0)
    kill_point("retention.rolled_up")
    for table, statement in _DELETES.items():
        rows[table] = (await conn.execute(statement, ids)).rowcount
    return Deleted(rows, found[-1].finished_at if len(found) == most else None)
