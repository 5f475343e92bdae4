"""How much of a tenant's work may wait at a time? Counted under a lock on its row, in the submission's own transaction."""

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import OverTenantLimit, QueueLimitReached
from app.quotas.rights import suspended

# One statement for all: a tenant that may wait without end isn't locked, and gives no row. NO KEY UPDATE leaves the foreign
# keys of other inserts alone. It is the transaction's first lock: before idempotency keys and budgets.
_CAPS = """
    SELECT suspended_at, max_queued_jobs, max_queued_tokens FROM tenants
    WHERE id = :tenant AND num_nonnulls(suspended_at, max_queued_jobs, max_queued_tokens) > 0
"""
LOCK_CAPS = text(_CAPS + "FOR NO KEY UPDATE")
_LOOK_AT_CAPS = text(_CAPS)
# A statement of its own: its snapshot is taken when the lock is held, so it sees whatever was accepted before.
_WAITING = text("""
    SELECT count(*) AS jobs, coalesce(sum(prompt_tokens + CAST(n AS bigint) * max_tokens), 0)::bigint AS tokens
    FROM jobs WHERE tenant_id = :tenant AND status = 'queued'
""")


async def hold_to_caps(conn: AsyncConnection, tenant_id: str, *, jobs: int, tokens: int) -> None:
    """`hold_to_locked`, with the lock; before the rows are written."""
    await hold_to_locked(conn, tenant_id, await _locked(conn, tenant_id), jobs=jobs, tokens=tokens)


async def look_at_caps(conn: AsyncConnection, tenant_id: str, *, tokens: int) -> None:
    """Refuse one job of `tokens` as `hold_to_caps` would now, without its lock: others may be faster."""
    caps = (await conn.execute(_LOOK_AT_CAPS, {"tenant": tenant_id})).one_or_none()
    await hold_to_locked(conn, tenant_id, caps, jobs=1, tokens=tokens)


async def _locked(conn: AsyncConnection, tenant_id: str) -> Any:
    return (await conn.execute(LOCK_CAPS, {"tenant": tenant_id})).one_or_none()


async def hold_to_locked(
    conn: AsyncConnection, tenant_id: str, caps: Any, *, jobs: int, tokens: int, are_written: bool = False
) -> None:
    """Refuse `jobs` more jobs of `tokens` in all, if the tenant's caps have no room for them, or it is suspended.

    In the submission's transaction; `caps` is what LOCK_CAPS gave in it, before its rows were written. Whether they are by now says
    `are_written`: then the count has them. Submissions of a tenant that has caps come one after the
    other from here to their commit, so what they accept never passes a cap, however many there are.

    Raises:
        TenantSuspended: no new jobs are taken.
        OverTenantLimit: this wouldn't fit into an empty queue.
        QueueLimitReached: there is no room now.
    """
    if caps is None:
        return
    if caps.suspended_at is not None:
        raise suspended()
    if jobs > 1:
        _refuse_hopeless(caps, jobs, tokens)
    if caps.max_queued_tokens is not None and tokens > caps.max_queued_tokens:
        raise OverTenantLimit(
            f"max_tokens: prompt + n x max_tokens is {tokens}, and this tenant may have at most {caps.max_queued_tokens} "
            "tokens waiting: ask for less",
            param="max_tokens",
            limit=caps.max_queued_tokens,
        )
    waiting = (await conn.execute(_WAITING, {"tenant": tenant_id})).one()
    for cap, unit, limit, now, more in (
        ("max_queued_jobs", "jobs", caps.max_queued_jobs, waiting.jobs - are_written * jobs, jobs),
        ("max_queued_tokens", "tokens", caps.max_queued_tokens, waiting.tokens - are_written * tokens, tokens),
    ):
        if limit is not None and now + more > limit:
            raise QueueLimitReached(
                f"{now} {unit} of this tenant wait, {more} more would pass the {limit} that may ({cap}): "
                "come back when some have started, or have it raised",
                reason=cap,
                limit=limit,
                queued=now,
            )


def _refuse_hopeless(caps: Any, jobs: int, tokens: int) -> None:
    """Jobs that come together and wouldn't fit into an empty queue."""
    for unit, amount, limit in (("jobs", jobs, caps.max_queued_jobs), ("tokens", tokens, caps.max_queued_tokens)):
        if limit is not None and amount > limit:
            raise OverTenantLimit(
                f"jobs: together they are {amount} {unit}, and this tenant may have at most {limit} {unit} waiting: "
                "send fewer in a call",
                param="jobs",
                limit=limit,
            )
