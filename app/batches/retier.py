"""How do lines that wait already come into another tier? Taken out of Redis, changed in Postgres, nominated anew."""

from collections.abc import Callable
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.batches.lines import lock_batch
from app.batches.store import Batch
from app.queue.places import place_sql
from app.queue.streams import JobQueue, Nomination

_PAGE = 500

# Those that a fault has put into a lane keep it, and go ahead of all tiers anyway.
_ELSEWHERE = text("""
    SELECT j.id, j.gen, j.pool FROM batch_lines l JOIN jobs j ON j.id = l.job_id
    WHERE l.batch_id = :batch AND l.state = 'submitted' AND j.status = 'queued' AND j.tier <> :tier
    ORDER BY j.id LIMIT :page
""")
_MOVE = text(f"""
    UPDATE jobs SET tier = :tier WHERE id IN (
        SELECT id FROM jobs WHERE id = ANY(CAST(:ids AS uuid[])) AND status = 'queued' ORDER BY id FOR UPDATE)
    RETURNING pool, id, gen, {place_sql("jobs")}, tenant_id, prompt_tokens + n * max_tokens, not_before IS NULL
""")  # noqa: S608 - our own text


QueueOf = Callable[[str], JobQueue]


async def retier(db: AsyncEngine, batch: Batch, queue_of: QueueOf) -> int:
    """Bring waiting lines into the batch's tier; return how many.

    Before the change they leave Redis: who is killed in between leaves jobs that the sweep and the audit nominate, with what
    Postgres says then. After it they leave once more, should one of those have been quicker.

    Raises:
        RedisError: nothing was changed, or the sweep will go on with it.
    """
    out: dict[str, list[tuple[UUID, int]]] = {}
    async with db.connect() as conn:
        for row in await conn.execute(_ELSEWHERE, {"batch": batch.id, "tier": batch.tier, "page": _PAGE}):
            out.setdefault(row.pool, []).append((row.id, row.gen))
    if not out:
        return 0
    for pool, decided in out.items():
        await queue_of(pool).ack(decided)
    into: dict[str, list[Nomination]] = {}
    async with db.begin() as conn:
        now = await lock_batch(conn, batch.id, {"in_progress"})
        if now is None or now.tier != batch.tier:
            return 0
        ids = [job_id for decided in out.values() for job_id, _ in decided]
        for row in await conn.execute(_MOVE, {"tier": batch.tier, "ids": ids}):
            if row[6]:
                into.setdefault(row.pool, []).append(Nomination(*row[1:6]))
    for pool, nominations in into.items():
        await queue_of(pool).ack([(each.job_id, each.gen) for each in nominations])
        await queue_of(pool).enqueue(nominations)
    return len(ids)
