"""How does an operator take a worker out of the work, and bring it back? A column of its row, which each renewal of its lease reads."""

from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import NotFound, PenstockError
from app.quotas.acts import record_act

# At once, so that nobody counts on it any more; the worker itself learns at its next renewal.
_DRAIN = text("""
    UPDATE workers SET drain_requested_at = statement_timestamp(), state = 'draining'
    WHERE incarnation = :incarnation AND ended_at IS NULL AND drain_requested_at IS NULL RETURNING host, pid, model
""")
# `state` stays until the worker renews: a signal may drain it, too.
_UNDRAIN = text("""
    UPDATE workers SET drain_requested_at = NULL
    WHERE incarnation = :incarnation AND ended_at IS NULL AND drain_requested_at IS NOT NULL RETURNING host, pid, model
""")
_ENDED = text("SELECT ended_at FROM workers WHERE incarnation = :incarnation")


class WorkerEnded(PenstockError):
    """The worker's lease has ended: nothing runs under it any more, and it can't be drained or brought back."""

    code = "worker_ended"
    status = 409
    retryable = False


async def drain(conn: AsyncConnection, incarnation: UUID, *, actor: str, reason: str) -> bool:
    """Let the worker claim nothing more, in the caller's transaction; what it has ends as it would. Its lease goes on.

    The wish goes over to the worker's next incarnation, after a crash of its engine; not to another process.

    Returns:
        Whether this changed anything.

    Raises:
        NotFound: there is no such worker.
        WorkerEnded: its lease has ended.
    """
    return await _change(conn, _DRAIN, incarnation, "worker.drain", actor, reason)


async def undrain(conn: AsyncConnection, incarnation: UUID, *, actor: str, reason: str) -> bool:
    """Let a drained worker claim again, within `lease_renew_s`; as `drain`."""
    return await _change(conn, _UNDRAIN, incarnation, "worker.undrain", actor, reason)


async def _change(
    conn: AsyncConnection, statement: TextClause, incarnation: UUID, action: str, actor: str, reason: str
) -> bool:
    values = {"incarnation": incarnation}
    changed = (await conn.execute(statement, values)).one_or_none()
    if changed is None:
        row = (await conn.execute(_ENDED, values)).one_or_none()
        if row is None:
            raise NotFound(f"there is no worker {incarnation.hex}")
        if row.ended_at is not None:
            raise WorkerEnded(f"worker {incarnation.hex} has ended: there is nothing to drain or to bring back")
        return False
    detail = {"reason": reason, "host": changed.host, "pid": changed.pid, "model": changed.model}
    await record_act(conn, actor, action, incarnation.hex, detail)
    return True
