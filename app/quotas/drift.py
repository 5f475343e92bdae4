"""By how many tokens are the budgets' windows wrong? A tenant at a time, recomputed from the ledger and the jobs; it has to be 0.

The whole ledger is too much to read every few minutes. So the tenants wait in a row, and a round compares those that have waited longest:
as many as let each have its turn twice a day.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

PASS_S = 43_200.0  # in which every tenant is compared once
_TIMEOUT_MS = 600_000  # of the comparison of one tenant
_TOKENS = "metric IN ('input_tokens', 'output_tokens', 'total_tokens')"

# A reservation is open while its life of the job waits or runs, whatever the ledger says beside. The ledger is found by its jobs, by the
# index that keeps its rows unique; OFFSET 0 keeps Postgres from reading all of it instead.
_DRIFT = text(f"""
    WITH due AS (
        SELECT l.budget_id, l.window_start, coalesce(sum(l.amount) FILTER (WHERE l.kind = 'settle'), 0) AS used,
               coalesce(sum(l.amount) FILTER (WHERE l.kind = 'reserve' AND j.status IN ('queued', 'running')
                                                AND j.reservation = l.reservation), 0) AS reserved
        FROM jobs j CROSS JOIN LATERAL (
            SELECT budget_id, window_start, kind, amount, reservation FROM ledger WHERE job_id = j.id OFFSET 0) l
        WHERE j.tenant_id = :tenant GROUP BY l.budget_id, l.window_start)
    SELECT coalesce(sum(abs(w.used - coalesce(due.used, 0) - coalesce(r.settled, 0)) + abs(w.reserved - coalesce(due.reserved, 0))), 0)
    FROM budgets b JOIN budget_windows w ON w.budget_id = b.id
    LEFT JOIN due ON due.budget_id = w.budget_id AND due.window_start = w.window_start
    LEFT JOIN ledger_rollups r ON r.budget_id = w.budget_id AND r.window_start = w.window_start
    WHERE b.tenant_id = :tenant AND b.{_TOKENS}
""")  # noqa: S608 - our own text
_ROW = text(f"""
    SELECT b.tenant_id, c.begun_at, coalesce(c.drift, 0) AS drift
    FROM (SELECT DISTINCT tenant_id FROM budgets WHERE {_TOKENS}) b LEFT JOIN budget_comparisons c USING (tenant_id)
    ORDER BY c.begun_at NULLS FIRST, b.tenant_id
""")  # noqa: S608 - our own text
_BEGIN = text("""
    INSERT INTO budget_comparisons AS c (tenant_id, begun_at) VALUES (:tenant, statement_timestamp())
    ON CONFLICT (tenant_id) DO UPDATE SET begun_at = statement_timestamp() WHERE c.begun_at = CAST(:seen AS timestamptz)
    RETURNING tenant_id
""")
_END = text(
    "UPDATE budget_comparisons SET drift = :drift, compared_at = statement_timestamp() WHERE tenant_id = :tenant"
)
_ALL = text("SELECT coalesce(sum(drift), 0) FROM budget_comparisons")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A tenant that waits for its comparison. `begun_at`: the last one, None where there was none; `drift`: what that found."""

    tenant_id: str
    begun_at: datetime | None
    drift: int


async def waiting(conn: AsyncConnection) -> Sequence[Waiting]:
    """Tenants with a token budget, in the order in which they are to be compared."""
    return [Waiting(*row) for row in await conn.execute(_ROW)]


def a_round(tenants: int, every_s: float) -> int:
    """How many tenants a round of every `every_s` seconds has to compare, so that all have had their turn after `PASS_S`."""
    return min(tenants, ceil(tenants * every_s / PASS_S))


async def begin(conn: AsyncConnection, one: Waiting) -> bool:
    """Take the tenant's turn, in a transaction of its own: a comparison that fails doesn't hold up the others. False: somebody else has it."""
    taken = await conn.execute(_BEGIN, {"tenant": one.tenant_id, "seen": one.begun_at})
    return taken.one_or_none() is not None


async def compare(conn: AsyncConnection, tenant_id: str) -> int:
    """Compare the tenant's budgets, and keep what was found."""
    await conn.execute(text(f"SET LOCAL statement_timeout = {_TIMEOUT_MS}"))
    found = await drift_of(conn, tenant_id)
    await conn.execute(_END, {"tenant": tenant_id, "drift": found})
    return found


async def drift_of(conn: AsyncConnection, tenant_id: str) -> int:
    """Tokens that the tenant's windows say are used or reserved and aren't, or the other way round, summed over its token budgets.

    Reads the tenant's jobs and their ledger. `penstock audit` says where a drift is, and looks at requests and cost too.
    """
    return int((await conn.execute(_DRIFT, {"tenant": tenant_id})).scalar_one())


async def drift(conn: AsyncConnection) -> int:
    """The drift of all tenants, each as its last comparison has found it."""
    return int((await conn.execute(_ALL)).scalar_one())
