"""How does a job that waits come into another tier? Taken out of Redis, changed in Postgres, nominated anew."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import NotFound, PenstockError
from app.ids import job_name
from app.jobs.dead.resolve import Transaction
from app.jobs.states import Tier
from app.queue.places import place_sql
from app.queue.streams import JobQueue, Nomination
from app.quotas.acts import record_act
from app.quotas.rights import Rights, check_rights
from app.redis import RedisError

MAX_REASON_CHARS = 500


class TierNotChangeable(PenstockError):
    """The job doesn't wait in the queue (any more), so that its tier decides nothing; `job_status` says what it does."""

    code = "tier_not_changeable"
    status = 409
    retryable = False


@dataclass(frozen=True, slots=True)
class Retiered:
    """What was changed. `is_nominated`: Redis knows, too; else the sweep or the audit will tell it."""

    job_id: UUID
    before: str
    after: str
    is_nominated: bool


_LOCK = text("""
    SELECT j.id, j.status, j.gen, j.pool, j.tier, t.tiers, t.suspended_at FROM jobs j JOIN tenants t ON t.id = j.tenant_id
    WHERE j.id = :id FOR UPDATE OF j
""")
# It joins its tier's line now, also in the order of a rebuild; and the sweep will compare it once more.
_MOVE = text(f"""
    UPDATE jobs SET tier = :tier, eligible_at = statement_timestamp()
    WHERE id = :id AND gen = :gen AND status = 'queued' AND tier = :before
    RETURNING id, gen, {place_sql("jobs")}, tenant_id, prompt_tokens + n * max_tokens,
        not_before IS NULL AND reservation > 0 AS is_eligible
""")  # noqa: S608 - our own text


async def change_tier(
    transaction: Transaction, queue_of: Callable[[str], JobQueue], job_id: UUID, tier: Tier, *, actor: str, reason: str
) -> Retiered:
    """Put a queued job into another tier, as far as its tenant may use it; the operator's act goes into the log.

    `gen` stays: it counts how often the job became eligible to run, and it is no more so than before. So the nomination leaves Redis
    before the change, and once more after it, should the sweep have brought it back meanwhile. Who dies between leaves a job that Redis
    doesn't know: the sweep nominates it with what Postgres says then. A claim that was quicker runs the job.

    Raises:
        NotFound: there is no such job.
        TierNotChangeable: it doesn't wait, or stopped waiting meanwhile.
        TierNotAllowed, TenantSuspended: its tenant may not use the tier.
        RedisError: nothing was changed.
    """
    async with transaction() as conn:
        seen = await _look(conn, job_id, tier)
    if seen.tier == tier:
        return Retiered(job_id, tier, tier, is_nominated=True)
    queue = queue_of(seen.pool)
    await queue.ack([(job_id, seen.gen)])
    async with transaction() as conn:
        now = await _look(conn, job_id, tier)
        values = {"id": job_id, "tier": tier, "gen": seen.gen, "before": seen.tier}
        moved = (await conn.execute(_MOVE, values)).one_or_none()
        if moved is None:
            raise _not_changeable(job_id, now.status)
        detail = {"tenant": moved.tenant_id, "before": seen.tier, "after": tier, "reason": reason}
        await record_act(conn, actor, "job.tier", job_name(job_id), detail)
    is_nominated = True
    if moved.is_eligible:
        try:
            await queue.ack([(job_id, seen.gen)])
            is_nominated = await queue.enqueue([Nomination(*moved[:5])]) is not None
        except RedisError:
            is_nominated = False
    return Retiered(job_id, seen.tier, tier, is_nominated)


async def _look(conn: AsyncConnection, job_id: UUID, tier: Tier) -> Row[tuple[object, ...]]:
    row = (await conn.execute(_LOCK, {"id": job_id})).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_name(job_id)}")
    if row.status != "queued":
        raise _not_changeable(job_id, row.status)
    check_rights(Rights(tiers=tuple(row.tiers), is_suspended=row.suspended_at is not None), tier=tier)
    return row


def _not_changeable(job_id: UUID, status: str) -> TierNotChangeable:
    return TierNotChangeable(
        f"{job_name(job_id)} is {status}: only a job that waits can change its tier", job_status=status
    )
