"""How do readers learn what is new? Each job's tokens go to its stream, which is also the checkpoint to resume from."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Literal

from app.queue.events import JobEvent, Publication
from app.redis import RedisError
from app.telemetry import emit
from workers.generation.context import WorkerContext
from workers.generation.hand import RunningJob

log = logging.getLogger(__name__)

_BETWEEN_FIRSTS_S = 0.005  # so that a burst of first tokens goes in a few round trips


async def publish_forever(worker: WorkerContext) -> None:
    """Tell readers what is new, all jobs in one round trip, at most once an interval; the first tokens of a job that is read at once.

    A lost stream loses no result.
    """
    loop, interval_s = asyncio.get_running_loop(), worker.settings.event_interval_s
    next_at = loop.time() + interval_s
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(next_at):
                await worker.first_tokens.wait()
        worker.first_tokens.clear()
        if loop.time() >= next_at:
            next_at = loop.time() + _pause_s(worker)
            await publish(worker, which="due")
        else:
            await publish(worker, which="first")
            await asyncio.sleep(min(_BETWEEN_FIRSTS_S, interval_s))
            next_at = min(next_at, loop.time() + _pause_s(worker))


def _pause_s(worker: WorkerContext) -> float:
    """Until something may be due: an interval, or, where nobody reads, until the next moment at which all is told that nobody reads."""
    if worker.unsent or any(job.is_read for job in worker.hand.values()):
        return worker.settings.event_interval_s
    every_s = worker.settings.unread_event_interval_s
    return max(worker.settings.event_interval_s, every_s - worker.clock.monotonic() % every_s)


async def publish(
    worker: WorkerContext, given_back: Sequence[RunningJob] = (), *, which: Literal["all", "due", "first"] = "all"
) -> bool:
    """Tell readers what is new; return whether Redis has all of it. What it has is also where another attempt goes on.

    Jobs that are ending tell the rest with their end, but for those that are given back. `which`: of all jobs, without those that nobody
    reads and that began or were told of lately, or only first tokens for which a reader waits.
    """
    now = worker.clock.monotonic()
    for job in worker.hand.values():
        if which != "all" and not _is_due(worker, job, now, which):
            continue
        deltas = [] if job.is_ending and job not in given_back else job.take_unpublished()
        if deltas:
            job.published_at = now
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


def _is_due(worker: WorkerContext, job: RunningJob, now: float, which: Literal["due", "first"]) -> bool:
    if which == "first":
        return job.is_read and job.published_at is None
    # All that nobody reads is due at the same moments, so that one round trip does for all of it. Most jobs that end before the next
    # one tell all their tokens with their end.
    every_s = worker.settings.unread_event_interval_s
    since = job.taken_at if job.published_at is None else job.published_at
    return job.is_read or now // every_s > since // every_s
