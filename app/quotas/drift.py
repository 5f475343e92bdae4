"""By how many tokens are the budgets' windows wrong? Recomputed from the ledger and the jobs; it has to be 0."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# A reservation is open while its life of the job waits or runs, whatever the ledger says beside.
_DRIFT = text("""
    SELECT coalesce(sum(abs(w.used - coalesce(due.used, 0) - coalesce(r.settled, 0)) + abs(w.reserved - coalesce(due.reserved, 0))), 0)
    FROM budget_windows w JOIN budgets b ON b.id = w.budget_id LEFT JOIN (
        SELECT l.budget_id, l.window_start, coalesce(sum(l.amount) FILTER (WHERE l.kind = 'settle'), 0) AS used,
               coalesce(sum(l.amount) FILTER (WHERE l.kind = 'reserve' AND j.status IN ('queued', 'running')
                                                AND j.reservation = l.reservation), 0) AS reserved
        FROM ledger l LEFT JOIN jobs j ON j.id = l.job_id
        GROUP BY l.budget_id, l.window_start) due USING (budget_id, window_start)
    LEFT JOIN ledger_rollups r USING (budget_id, window_start)
    WHERE b.metric IN ('input_tokens', 'output_tokens', 'total_tokens')
""")


async def drift(conn: AsyncConnection) -> int:
    """Tokens that windows say are used or reserved and aren't, or the other way round, summed over all token budgets.

    Reads the whole ledger: for a metric ask every few minutes. `penstock audit` says where a drift is, and looks at requests and cost too.
    """
    return int((await conn.execute(_DRIFT)).scalar_one())
