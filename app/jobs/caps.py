"""How many of a tenant's jobs may run at once? Postgres decides at the start; a queue in Redis passes full tenants over."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db import in_one_trip
from app.looks import Looks
from app.queue.fairness import Terms
from app.queue.streams import JobQueue, Nomination

# Whoever starts a capped tenant's jobs waits here for the others, so that the count below holds until the commit.
_LOCK = text("""
    SELECT id, max_running_jobs FROM tenants WHERE id = ANY(CAST(:tenants AS text[])) AND max_running_jobs IS NOT NULL
    ORDER BY id FOR NO KEY UPDATE
""")
_COUNT = text("""
    SELECT tenant_id, count(*) AS running FROM jobs
    WHERE status = 'running' AND tenant_id = ANY(CAST(:tenants AS text[])) GROUP BY tenant_id
""")
_TERMS = text("SELECT id, weight, max_running_jobs FROM tenants WHERE weight <> 1 OR max_running_jobs IS NOT NULL")
_RUNNING = text("""
    SELECT id, tenant_id, pool FROM jobs
    WHERE status = 'running' AND (CAST(:all AS boolean) OR tenant_id = ANY(CAST(:tenants AS text[])))
""")
_NOT_RUNNING = text("""
    SELECT id, status = 'queued' AS waits FROM jobs WHERE id = ANY(CAST(:ids AS uuid[])) AND status <> 'running'
""")


async def within_caps(conn: AsyncConnection, nominated: Sequence[Nomination]) -> list[Nomination]:
    """Those that their tenants' `max_running_jobs` lets start, in the caller's transaction, which has to start them.

    The cap holds over all pools, whatever Redis knows. The tenants' rows stay locked against other starts until the end.
    """
    tenants = sorted({each.tenant for each in nominated})
    (rows,) = await in_one_trip(conn, [(_LOCK, {"tenants": tenants})])
    if not rows:
        return list(nominated)
    counts = (await conn.execute(_COUNT, {"tenants": [row.id for row in rows]})).all()
    running = {row.tenant_id: row.running for row in counts}
    left = {row.id: row.max_running_jobs - running.get(row.id, 0) for row in rows}
    admitted = []
    for each in nominated:
        if each.tenant in left:
            left[each.tenant] -= 1
            if left[each.tenant] < 0:
                continue
        admitted.append(each)
    return admitted


@dataclass(frozen=True, slots=True)
class Shares:
    """What the queues have to know of the tenants, at one moment."""

    weights: dict[str, int] = field(default_factory=dict)
    caps: dict[str, int] = field(default_factory=dict)
    running: dict[str, dict[UUID, str]] = field(default_factory=dict)  # pool -> job -> tenant

    def terms(self, pool: str) -> dict[str, Terms]:
        """Each tenant's terms in this pool: its cap there is what other pools leave of it."""
        elsewhere = Counter(tenant for other, jobs in self.running.items() if other != pool for tenant in jobs.values())
        return {
            tenant: Terms(
                self.weights.get(tenant, 1),
                None if tenant not in self.caps else max(0, self.caps[tenant] - elsewhere[tenant]),
            )
            for tenant in self.weights.keys() | self.caps.keys()
        }


async def read_shares(looks: Looks, *, everyone: bool = False) -> Shares:
    """Weights, caps, and which jobs of capped tenants (or of all) run."""
    rows = await looks.rows(_TERMS)
    shares = Shares(
        {row.id: row.weight for row in rows},
        {row.id: row.max_running_jobs for row in rows if row.max_running_jobs is not None},
    )
    if shares.caps or everyone:
        for row in await looks.rows(_RUNNING, {"tenants": list(shares.caps), "all": everyone}):
            shares.running.setdefault(row.pool, {})[row.id] = row.tenant_id
    return shares


async def keep_shares(db: AsyncEngine, queue: JobQueue, shares: Shares, *, recount: bool) -> int:
    """Bring the queue's terms up to date; with `recount`, also what it believes to run. Return how much was put right."""
    mended = 0
    if recount:
        mended += await _forget_others(db, queue)
        mended += await queue.adopt(shares.running.get(queue.keys.pool, {}))
    return mended + await queue.share(shares.terms(queue.keys.pool))


async def _forget_others(db: AsyncEngine, queue: JobQueue) -> int:
    """Jobs that the queue believes to run, and that don't: they have ended and their worker couldn't say so, or were given back between our
    look at Postgres and their adoption. Of those that wait nothing else is believed: one may be in a claim just now."""
    forgotten = 0
    async for page in queue.running():
        async with db.connect() as conn:
            rows = (await conn.execute(_NOT_RUNNING, {"ids": list(page)})).all()
        forgotten += await queue.forget_running(row.id for row in rows if not row.waits)
        forgotten += await queue.disown(row.id for row in rows if row.waits)
    return forgotten
