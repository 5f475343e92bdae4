"""What becomes of the engine's tokens? Text for the readers, an end for the job; also cancels and deadlines, the same way."""

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any

from app.jobs.states import EndStatus
from app.queue.keys import CANCEL_CHANNEL, READ_CHANNEL
from app.redis import RedisError
from app.telemetry import emit
from workers.engine.protocol import EngineStats, Moved, RequestFailed, StepOutput, TierLoad
from workers.generation.context import WorkerContext
from workers.generation.finisher import Finisher
from workers.generation.hand import RunningJob

log = logging.getLogger(__name__)

_DEADLINE_CHECK_S = 0.1
_DEADLINE_LOOK_S = 0.5  # for jobs that came since
_ERROR_WAIT_S = 0.5
_NO_LOAD = TierLoad()
_UNREADABLE = {"code": "internal_error", "message": "the model's tokens can't be turned into text"}


async def read_engine(worker: WorkerContext, finisher: Finisher) -> None:
    """Take in the engine's steps until it stops.

    Raises:
        EngineDied: its process ended.
    """
    async for output in worker.engine:
        await take_step(worker, finisher, output)


async def take_step(worker: WorkerContext, finisher: Finisher, output: StepOutput) -> None:
    """Sort one step's tokens to their jobs; end those that are complete or failed."""
    now, has_first = worker.clock.monotonic(), False
    _note_moves(worker, output.moved, now)
    for delta in output.deltas:
        if worker.canary.is_mine(delta.request_id):
            worker.canary.take(delta)
            continue
        job = worker.hand.get(delta.request_id)
        if job is None or job.is_ending:
            continue
        new_tokens = len(delta.token_ids)
        if not job.has_output:  # its first: the prompt was computed, but for what the prefix cache gave
            has_first = True
            new_tokens += max(0, len(job.started.prompt_ids) - delta.cached_tokens)
        worker.meters.took(job, delta, now)
        worker.throughput.take(job.started.tier, new_tokens, now)
        try:
            has_stopped = job.take(delta)
        except Exception as error:  # noqa: BLE001 - the per-job edge: one job's text must not stop the others
            emit(log, logging.ERROR, "output_unreadable", error=error, job=job.started.job_id.hex)
            await stop_job(worker, finisher, job, "failed", _UNREADABLE)
            continue
        _hurry_first_tokens(worker, job)
        if has_stopped:
            await worker.engine.abort(delta.request_id, delta.choice)
        if job.is_complete and not job.is_ending:  # a cancel may have come while the engine took the abort
            finisher.end(job, "succeeded")
            _measure(worker, job, now)
    _take_failures(worker, finisher, output.failed)
    worker.meters.stepped()
    _tell_of_step(worker, output)
    before, worker.stats = worker.stats, output.stats
    worker.throughput.step(now, is_saturated=_is_saturated(worker))
    if has_first or _may_have_room(before, output.stats):
        worker.changed.set()


def _take_failures(worker: WorkerContext, finisher: Finisher, failures: Sequence[RequestFailed]) -> None:
    for failed in failures:
        if worker.canary.is_mine(failed.request_id):
            worker.canary.fail(failed)
        job = worker.hand.get(failed.request_id)
        if job is None or job.is_ending:
            continue
        reason = {"code": failed.code, "message": failed.message}
        if failed.retryable:
            finisher.try_again_later(job, reason)
        else:
            finisher.end(job, "failed", reason)


def _may_have_room(before: EngineStats, after: EngineStats) -> bool:
    """Whether the engine could take in more than before, at any priority: most steps only grow what they have."""
    if (before.token_capacity, before.sequence_capacity, before.kv_blocks_total) != (
        after.token_capacity, after.sequence_capacity, after.kv_blocks_total,
    ):  # fmt: skip
        return True
    left = ((load, after.load.get(priority, _NO_LOAD)) for priority, load in before.load.items())
    return any(now.tokens < load.tokens or now.sequences < load.sequences for load, now in left)


def _note_moves(worker: WorkerContext, moves: Sequence[Moved], now: float) -> None:
    for moved in moves:
        job = worker.hand.get(moved.request_id)
        if job is not None:
            job.move(moved, now)


def _tell_of_step(worker: WorkerContext, output: StepOutput) -> None:
    if output.profile:
        emit(log, logging.INFO, "profile_written", path=output.profile)
    slow, stats = output.slow, output.stats
    if slow is None:
        return
    worker.meters.slow_step()
    emit(
        log, logging.WARNING, "slow_step", seconds=round(slow.seconds, 3), step=stats.step, sequences=slow.sequences,
        prefill_tokens=slow.prefill_tokens, decode_tokens=slow.decode_tokens, kv_blocks_used=stats.kv_blocks_used,
        kv_blocks_total=stats.kv_blocks_total, preempted=slow.preempted,
    )  # fmt: skip


def _hurry_first_tokens(worker: WorkerContext, job: RunningJob) -> None:
    if job.is_read and job.published_at is None:
        worker.first_tokens.set()


def _is_saturated(worker: WorkerContext) -> bool:
    """Whether the engine has all the work that it can take: only then its rate is its capacity."""
    stats = worker.stats
    is_nearly_full = stats.running >= 0.9 * worker.engine.info.max_num_seqs  # slots fall free between two claims
    return stats.waiting > 0 or is_nearly_full or stats.token_room <= 0


def _measure(worker: WorkerContext, job: RunningJob, now: float) -> None:
    if job.num_resumed:
        return  # only a part of it was computed here
    used = job.used()
    worker.throughput.end(
        job.started.tier,
        reserved=job.cost,
        real=used.prompt_tokens - used.cached_tokens + used.completion_tokens,
        residence_s=now - job.taken_at,
        length=max(len(choice.token_ids) for choice in job.choices),
    )


async def stop_job(
    worker: WorkerContext, finisher: Finisher, job: RunningJob, status: EndStatus, error: dict[str, Any] | None = None
) -> None:
    """End a running job before its time."""
    if job.is_ending:
        return
    finisher.end(job, status, error)
    await worker.engine.abort(job.request_id)


async def watch_deadlines(worker: WorkerContext, finisher: Finisher) -> None:
    """Stop jobs whose deadline has passed."""
    error = {"code": "deadline_passed", "message": "the deadline passed while the job was running"}
    while True:
        now = worker.clock.monotonic()
        for job in list(worker.hand.values()):
            if job.deadline is not None and job.deadline <= now:
                await stop_job(worker, finisher, job, "expired", error)
        next_at = min((job.deadline for job in worker.hand.values() if job.deadline is not None), default=math.inf)
        await asyncio.sleep(min(_DEADLINE_LOOK_S, max(_DEADLINE_CHECK_S, next_at - now)))


async def watch_callers(worker: WorkerContext, finisher: Finisher) -> None:
    """Stop jobs that are no longer wanted, as Redis tells it (the lease's renewal tells it too, a little later); note who is read."""
    while True:
        try:
            async with worker.queue.redis.pubsub() as pubsub:
                await pubsub.subscribe(CANCEL_CHANNEL, READ_CHANNEL)
                while True:
                    message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1.0)
                    if message is not None:
                        named = _named(worker, message["data"].decode("ascii", errors="replace"))
                        if message["channel"] == CANCEL_CHANNEL.encode():
                            for job in named:
                                await stop_job(worker, finisher, job, "cancelled")
                        elif named:
                            for job in named:
                                job.is_read = True
                            worker.first_tokens.set()
        except (RedisError, OSError) as error:
            emit(log, logging.WARNING, "callers_channel_lost", error=error)
            await asyncio.sleep(_ERROR_WAIT_S)


def _named(worker: WorkerContext, names: str) -> list[RunningJob]:
    """Those in the hand whose ids stand in a message."""
    wanted = set(names.split())
    return [job for job in worker.hand.values() if job.started.job_id.hex in wanted]
