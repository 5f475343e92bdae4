"""How is a job stopped by its owner? At once where it waits, by request where it runs."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import NotCancellable, NotFound
from app.ids import job_name
from app.jobs import store
from app.jobs.finish import end_queued
from app.queue.events import announce_cancel, announce_end
from app.queue.streams import JobQueue
from app.redis import RedisError


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What the cancel did: `ended` at once, or asked the worker that runs the job. `gen` names the nomination to take out."""

    job_id: UUID
    pool: str
    gen: int
    ended: bool


async def cancel(conn: AsyncConnection, tenant_id: str, job_id: UUID) -> Cancelled:
    """Cancel the tenant's job, in the caller's transaction; cancelling a cancelled job again is the same answer.

    Raises:
        NotFound: the tenant has no such job.
        NotCancellable: it ended otherwise.
    """
    target = await store.lock_for_cancel(conn, tenant_id, job_id)
    if target is None:
        raise NotFound(f"there is no job {job_name(job_id)}")
    if target.status == "queued":
        await end_queued(conn, [job_id], "cancelled")
        return Cancelled(job_id, target.pool, target.gen, True)
    if target.status == "running":
        await store.request_cancel(conn, job_id)
        return Cancelled(job_id, target.pool, target.gen, False)
    if target.status == "cancelled":
        return Cancelled(job_id, target.pool, target.gen, True)
    raise NotCancellable(f"job {job_name(job_id)} has ended: it is {target.status}", job_status=target.status)


async def spread_cancel(queue: JobQueue, cancelled: Cancelled) -> None:
    """Tell Redis, after the commit. Best effort: a stale nomination is dropped at its claim, a worker asks at its renewal."""
    try:
        if cancelled.ended:
            await queue.ack([(cancelled.job_id, cancelled.gen)])
            await announce_end(queue.redis, [(cancelled.job_id, "cancelled")])
        else:
            await announce_cancel(queue.redis, [cancelled.job_id])
    except RedisError:
        return
