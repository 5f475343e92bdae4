"""How do readers learn what is new? Each job's tokens go to its stream, which is also the checkpoint to resume from."""

import asyncio
import logging
from collections.abc import Sequence

from app.queue.events import JobEvent, Publication
from app.redis import RedisError
from app.telemetry import emit
from workers.generation.context import WorkerContext
from workers.generation.hand import RunningJob

log = logging.getLogger(__name__)


async def publish_forever(worker: WorkerContext) -> None:
    """Tell readers what is new, all jobs in one round trip, at most once an interval. A lost stream loses no result."""
    while True:
        await asyncio.sleep(worker.settings.event_interval_s)
        await publish(worker, is_whole=False)


async def publish(worker: WorkerContext, given_back: Sequence[RunningJob] = (), *, is_whole: bool = True) -> bool:
    """Tell readers what is new; return whether Redis has all of it. What it has is also where another attempt goes on.

    Jobs that are ending tell the rest with their end, but for those that are given back. Unless it has to be `is_whole`, those that
    nobody reads are passed over for a while.
    """
    now = worker.clock.monotonic()
    unread_since = now - worker.settings.unread_event_interval_s
    for job in worker.hand.values():
        if not is_whole and not job.is_read and job.told_at is not None and job.told_at > unread_since:
            continue
        deltas = [] if job.is_ending and job not in given_back else job.take_unpublished()
        if deltas:
            job.told_at = now
            event = JobEvent(kind="tokens", attempt=job.started.attempt, deltas=deltas)
            publication = Publication(job.started.job_id, job.num_generated, event, job.run)
            worker.unsent.setdefault(job.started.job_id, []).append(publication)
    # Sent again as they were until Redis has said yes: what it has already, it refuses by the id.
    sent = [publication for each in worker.unsent.values() for publication in each]
    try:
        await worker.events.publish(sent)
    except RedisError as error:
        emit(log, logging.WARNING, "publish_failed", error=error)
        return False
    for publication in sent:
        left = worker.unsent.get(publication.job_id)
        if left and left[0] is publication:
            left.pop(0)
            if not left:
                del worker.unsent[publication.job_id]
    return True
