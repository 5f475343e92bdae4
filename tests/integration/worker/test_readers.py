"""Are tokens published often where somebody reads them, and seldom where they are only a checkpoint?"""

import asyncio
import contextlib
from collections.abc import Sequence
from uuid import UUID

import pytest

from app.clock import SystemClock
from app.ids import new_id
from app.queue.events import announce_readers, read_now
from app.redis import Redis
from app.settings import Settings
from tests.support.jobs import start_under
from workers.engine.protocol import StepOutput, TokenDelta
from workers.generation import claimer
from workers.generation.claimer import hand_over, take_in
from workers.generation.context import WorkerContext
from workers.generation.finisher import Finisher
from workers.generation.hand import RunningJob
from workers.generation.outputs import take_step, watch_callers
from workers.generation.publish import publish, publish_forever


class ShiftedClock(SystemClock):
    """Stands still but for what a test adds to it."""

    shift_s = 0.0

    def monotonic(self) -> float:
        return 100.0 + self.shift_s


@pytest.fixture
def clock(worker: WorkerContext) -> ShiftedClock:
    worker.clock = ShiftedClock()
    return worker.clock


async def bring(worker: WorkerContext, finisher: Finisher, job: RunningJob, text: str) -> None:
    """A step of the engine that brings these letters, then the publisher's turn."""
    delta = TokenDelta(job.request_id, 0, job.num_generated, [ord(letter) for letter in text])
    await take_step(worker, finisher, StepOutput(deltas=[delta]))
    await publish(worker, which="due")


async def published(worker: WorkerContext, job: RunningJob) -> str:
    events = await worker.events.read(job.started.job_id)
    return "".join(delta.text for stored in events for delta in stored.event.deltas)


async def test_what_nobody_reads_is_published_seldom(
    worker: WorkerContext, settings: Settings, clock: ShiftedClock
) -> None:
    """A job of four tokens that nobody read cost two writes of its tokens, where its end tells them all."""
    finisher = Finisher(worker)
    take_in(worker, finisher, await start_under(worker, settings, max_tokens=50))
    (job,) = worker.hand.values()
    await bring(worker, finisher, job, "a")
    await bring(worker, finisher, job, "b")
    assert await published(worker, job) == "", "its end may come before the next moment at which all is told"
    clock.shift_s += 0.99 * settings.unread_event_interval_s
    await publish(worker, which="due")
    assert await published(worker, job) == ""
    clock.shift_s += 0.02 * settings.unread_event_interval_s
    await bring(worker, finisher, job, "c")
    assert await published(worker, job) == "abc"
    await bring(worker, finisher, job, "d")
    assert await published(worker, job) == "abc"
    clock.shift_s += settings.unread_event_interval_s
    await bring(worker, finisher, job, "e")
    assert await published(worker, job) == "abcde"
    await bring(worker, finisher, job, "f")
    assert await publish(worker)
    assert await published(worker, job) == "abcdef", "before a job is given back all is told"


async def test_who_begins_to_read_is_told_at_once(
    worker: WorkerContext, settings: Settings, redis: Redis, clock: ShiftedClock
) -> None:
    finisher = Finisher(worker)
    take_in(worker, finisher, await start_under(worker, settings, max_tokens=50))
    (job,) = worker.hand.values()
    watching = asyncio.create_task(watch_callers(worker, finisher))
    while not (await redis.pubsub_numsub("jobs:read"))[0][1]:
        await asyncio.sleep(0.01)
    await bring(worker, finisher, job, "a")
    await bring(worker, finisher, job, "b")
    others = [new_id() for _ in range(700)]  # of other workers, in more than one message
    await announce_readers(redis, [*others, job.started.job_id], ttl_s=60)
    assert 0 < await redis.ttl(f"ev:read:{others[0].hex}") <= 60
    assert await read_now(redis, [*others, new_id()]) == set(others)
    async with asyncio.timeout(20):
        while not job.is_read:
            await asyncio.sleep(0.01)
    assert await published(worker, job) == ""
    await publish(worker, which="due")
    assert await published(worker, job) == "ab", "all that there was, without waiting for the next token"
    await bring(worker, finisher, job, "c")
    assert await published(worker, job) == "abc"
    await bring(worker, finisher, job, "d")
    assert await published(worker, job) == "abcd"
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


async def test_who_reads_before_the_start_is_known_at_the_start(
    worker: WorkerContext, settings: Settings, redis: Redis, clock: ShiftedClock
) -> None:
    finisher = Finisher(worker)
    started = await start_under(worker, settings, max_tokens=50)
    await announce_readers(redis, [each.job_id for each in started], ttl_s=60)
    await hand_over(worker, finisher, take_in(worker, finisher, started))
    (job,) = worker.hand.values()
    for letter in "abc":
        await bring(worker, finisher, job, letter)
    assert await published(worker, job) == "abc"


async def test_a_reader_has_the_first_tokens_at_once(worker: WorkerContext, settings: Settings) -> None:
    worker.settings = settings.model_copy(update={"event_interval_s": 600.0})
    finisher = Finisher(worker)
    take_in(worker, finisher, await start_under(worker, settings, max_tokens=50))
    take_in(worker, finisher, await start_under(worker, settings, max_tokens=50))
    read, unread = worker.hand.values()
    read.is_read = True
    publishing = asyncio.create_task(publish_forever(worker))
    deltas = [TokenDelta(job.request_id, 0, 0, [ord("a")]) for job in (read, unread)]
    await take_step(worker, finisher, StepOutput(deltas=deltas))
    async with asyncio.timeout(20):
        while await published(worker, read) != "a":
            await asyncio.sleep(0.01)
    assert await published(worker, unread) == ""
    publishing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await publishing


async def test_who_is_found_to_read_after_the_first_token_came_waits_for_no_moment_of_those_that_nobody_reads(
    worker: WorkerContext, settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher slept until the next second at which all is told that nobody reads, or until the job's next token."""
    worker.settings = settings.model_copy(update={"unread_event_interval_s": 100_000.0})
    finisher = Finisher(worker)
    publishing = asyncio.create_task(publish_forever(worker))
    await asyncio.sleep(4 * settings.event_interval_s)  # it has looked, found no job, and sleeps
    started = await start_under(worker, settings, max_tokens=50)
    await announce_readers(redis, [each.job_id for each in started], ttl_s=60)

    async def after_its_first_token(redis: Redis, job_ids: Sequence[UUID]) -> set[UUID]:
        (job,) = worker.hand.values()
        await take_step(worker, finisher, StepOutput(deltas=[TokenDelta(job.request_id, 0, 0, [ord("a")])]))
        return await read_now(redis, job_ids)

    monkeypatch.setattr(claimer, "read_now", after_its_first_token)
    try:
        await hand_over(worker, finisher, take_in(worker, finisher, started))
        (job,) = worker.hand.values()
        async with asyncio.timeout(20):
            while await published(worker, job) != "a":
                await asyncio.sleep(0.01)
    finally:
        publishing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await publishing
