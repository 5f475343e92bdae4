"""From where does a job's next attempt go on? From the tokens that its event stream holds, where this worker would have chosen the same."""

import asyncio
import logging
from collections.abc import Sequence

from app.queue.checkpoints import read_checkpoint, take_over
from app.queue.events import JobEvent
from app.redis import RedisError
from app.telemetry import emit
from workers.generation.context import WorkerContext
from workers.generation.hand import RunningJob

log = logging.getLogger(__name__)

_CHECKPOINT_TIMEOUT_S = 2.0
_RESUMING_GRAMMARS = {"paged", "null"}  # engines that can go on in the middle of a structured output


async def resume(worker: WorkerContext, jobs: Sequence[RunningJob]) -> None:
    """Let jobs go on from the tokens that their event streams hold, where this worker would have chosen the same.

    Without Redis, or with a stream that was trimmed or that another model wrote, they start over.
    """
    for job in jobs:
        try:
            async with asyncio.timeout(_CHECKPOINT_TIMEOUT_S):
                await _resume_one(worker, job)
        except (RedisError, TimeoutError, ValueError) as error:  # ValueError: what isn't an event stands there
            emit(log, logging.WARNING, "checkpoint_not_read", error=error, job=job.started.job_id.hex)


async def _resume_one(worker: WorkerContext, job: RunningJob) -> None:
    started = job.started
    checkpoint = await read_checkpoint(worker.events, started.job_id, started.n)
    if checkpoint is None or checkpoint.num_tokens == 0 or job.is_ending:
        return
    # Where an operator sent it back, perhaps changed, its tokens begin anew.
    if checkpoint.run <= started.died_at or (
        started.sampling.get("grammar") and worker.settings.engine not in _RESUMING_GRAMMARS
    ):
        job.num_discarded = checkpoint.num_tokens
        return
    if checkpoint.made_by != worker.made_by:
        job.num_discarded = checkpoint.num_tokens
        emit(log, logging.INFO, "checkpoint_of_another_model", job=started.job_id.hex)
        return
    start = JobEvent(kind="started", attempt=started.attempt, made_by=worker.made_by)
    current = await take_over(worker.events, started.job_id, checkpoint, start)
    if current is None or job.is_ending:
        job.num_discarded = checkpoint.num_tokens
        return
    job.resume(current)
    emit(log, logging.INFO, "job_resumed", job=started.job_id.hex, tokens=job.num_resumed)
