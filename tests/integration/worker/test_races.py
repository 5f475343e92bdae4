"""Do a worker's loops keep out of each other's way? Races between outputs, cancels, claims and the lease's renewal."""

import asyncio
import contextlib
import signal
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from sqlalchemy import text

from app.errors import LeaseLost
from app.jobs import rescue, store
from app.jobs.store import GivenBack
from app.queue.checkpoints import read_checkpoint
from app.queue.events import ChoiceDelta, JobEvent, Publication
from app.queue.streams import JobQueue, Nomination
from app.racing import race
from app.redis import Redis
from app.settings import Settings
from tests.support.dead import DEADLY, send_back
from tests.support.jobs import POOL, start_under, submit_and_nominate
from workers.engine.errors import EngineDied
from workers.engine.protocol import Moved, Request, SamplingParams, StepOutput, TokenDelta
from workers.generation import claimer
from workers.generation.claimer import claim_forever, hand_over, take_in
from workers.generation.context import WorkerContext
from workers.generation.finisher import Finisher
from workers.generation.lease import let_go
from workers.generation.outputs import stop_job, take_step
from workers.generation.suspicion import sort_out


async def test_a_cancel_while_the_abort_of_a_stopped_choice_waits_for_the_engine(
    worker: WorkerContext, settings: Settings
) -> None:
    """The engine is in a long step and the socket to it is full: abort() suspends, and the job gets a second end."""
    finisher = Finisher(worker)
    take_in(worker, finisher, await start_under(worker, settings, stop=["X"], max_tokens=50))
    (job,) = worker.hand.values()
    worker.engine._process.send_signal(signal.SIGSTOP)  # a long step: the child reads nothing meanwhile
    # What a claim of 64 jobs with a full logit_bias hands over (14 KB each), all valid requests.
    bias = dict.fromkeys(range(512), -1.5)
    claim = asyncio.create_task(_fill(worker, bias))
    await asyncio.sleep(1.0)
    assert not claim.done(), "the socket isn't full"
    delta = TokenDelta(job.request_id, 0, 0, [ord("X")])
    reading = asyncio.create_task(take_step(worker, finisher, StepOutput(deltas=[delta])))
    await asyncio.sleep(0.1)
    cancelling = asyncio.create_task(stop_job(worker, finisher, job, "cancelled"))
    await asyncio.sleep(0.1)
    worker.engine._process.send_signal(signal.SIGCONT)
    await cancelling
    await claim
    await reading


async def _fill(worker: WorkerContext, bias: dict[int, float]) -> None:
    for number in range(400):
        await worker.engine.add(
            Request(id=f"{number:032x}.1", prompt_ids=[1] * 50, sampling=SamplingParams(max_tokens=1, logit_bias=bias))
        )


async def test_a_job_cancelled_between_its_start_and_its_hand_over_does_not_run_in_the_engine(
    worker: WorkerContext, settings: Settings
) -> None:
    """As _bring_in does it, with the cancel arriving while ack waits for Redis."""
    finisher = Finisher(worker)
    requests = take_in(worker, finisher, await start_under(worker, settings, max_tokens=500))
    (job,) = worker.hand.values()
    await stop_job(worker, finisher, job, "cancelled")  # while `await queue.ack(...)`
    await hand_over(worker, finisher, requests)
    with contextlib.suppress(TimeoutError):  # nothing runs, so nothing comes
        async with asyncio.timeout(1):
            async for output in worker.engine:
                assert output.stats.running == 0


async def test_a_job_that_is_adopted_while_its_start_still_returns_is_not_failed(
    worker: WorkerContext, settings: Settings
) -> None:
    """The COMMIT's reply was late by more than a renewal (a lost packet): the lease adopted, then the claim returned."""
    finisher = Finisher(worker)
    started = await start_under(worker, settings, max_tokens=30)
    await hand_over(worker, finisher, take_in(worker, finisher, started))  # lease._reconcile
    await hand_over(worker, finisher, take_in(worker, finisher, started))  # claimer._claim_once
    async with asyncio.timeout(20):
        async for output in worker.engine:
            await take_step(worker, finisher, output)
            if finisher._waiting.qsize():
                break
    _, ending = finisher._waiting.get_nowait()
    assert (ending.status, ending.error) == ("succeeded", None)


async def test_tokens_of_another_model_are_not_gone_on_from(worker: WorkerContext, settings: Settings) -> None:
    """Two versions of a model serve one pool while it is rolled out."""
    finisher = Finisher(worker)
    (started,) = await start_under(worker, settings, max_tokens=30)
    delta = ChoiceDelta(choice=0, offset=0, token_ids=[1, 2, 3], text="abc")
    await worker.events.publish(
        [
            Publication(started.job_id, 0, JobEvent(kind="started", attempt=1, made_by="the old model")),
            Publication(started.job_id, 3, JobEvent(kind="tokens", attempt=1, deltas=[delta])),
        ]
    )
    again = replace(started, attempt=2)
    await hand_over(worker, finisher, take_in(worker, finisher, [again]))
    (job,) = worker.hand.values()
    assert (job.num_resumed, job.run) == (0, 2)
    last = await worker.events.last(started.job_id)
    assert last is not None
    assert (last.event.kind, last.seq, last.event.made_by) == ("restarted", 0, worker.made_by)
    assert job.ending("cancelled").wasted.completion_tokens == 3


async def test_a_job_that_only_had_to_be_written_down_ends_without_the_engine(
    worker: WorkerContext, settings: Settings
) -> None:
    """Its worker died between the last token and the finish."""
    finisher = Finisher(worker)
    (started,) = await start_under(worker, settings, max_tokens=3)
    delta = ChoiceDelta(choice=0, offset=0, token_ids=[104, 105, 33], text="hi!", finish_reason="length")
    await worker.events.publish(
        [
            Publication(started.job_id, 0, JobEvent(kind="started", attempt=1, made_by=worker.made_by)),
            Publication(started.job_id, 3, JobEvent(kind="tokens", attempt=1, deltas=[delta])),
        ]
    )
    await hand_over(worker, finisher, take_in(worker, finisher, [replace(started, attempt=2)]))
    (job,) = worker.hand.values()
    assert job.is_ending
    assert job.choices[0].result(worker.tokenizer) == {"index": 0, "text": "hi!", "finish_reason": "length"}


@pytest.mark.parametrize("is_requeued", [False, True], ids=["given back", "requeued from the dead letters"])
async def test_a_life_after_death_begins_anew_though_the_stream_has_tokens(
    worker: WorkerContext, settings: Settings, is_requeued: bool
) -> None:
    """An operator may have changed the job: what an earlier life wrote isn't the beginning of what this one would write."""
    (first,) = await start_under(worker, settings, max_tokens=50)
    told = [ChoiceDelta(choice=0, offset=0, token_ids=[65, 66], text="AB")]
    await worker.events.publish(
        [
            Publication(first.job_id, 0, JobEvent(kind="started", attempt=1, made_by=worker.made_by)),
            Publication(first.job_id, 2, JobEvent(kind="tokens", attempt=1, deltas=told)),
        ]
    )
    fate = DEADLY if is_requeued else replace(DEADLY, max_solo_crashes=9)
    async with worker.db.begin() as conn:
        await conn.execute(text("UPDATE jobs SET lane = 'solo'"))
        await rescue.give_back(conn, [GivenBack(first.job_id, 1, "engine_crash")], fate, Random(1))
    if is_requeued:
        end = JobEvent(kind="dead", attempt=1)
        await worker.events.publish([Publication(first.job_id, 2, end)])
        await send_back(worker.db, first.job_id)
    async with worker.db.begin() as conn:
        again = await store.start(conn, worker.incarnation, [Nomination(first.job_id, 2, "standard", "acme", 1)])
    requests = take_in(worker, Finisher(worker), again)
    await hand_over(worker, Finisher(worker), requests)
    (job,) = worker.hand.values()
    events = await worker.events.read(first.job_id)
    if is_requeued:
        assert (job.run, job.num_resumed, job.num_discarded) == (2, 0, 2)
        assert [each.event.kind for each in events] == ["started", "tokens", "dead", "restarted"]
        assert (events[-1].place.run, events[-1].seq) == (2, 0)
        late = Publication(first.job_id, 3, JobEvent(kind="tokens", attempt=1, deltas=told))
        await worker.events.publish([late])
        assert len(await worker.events.read(first.job_id)) == len(events), "a late write of the earlier life is refused"
        checkpoint = await read_checkpoint(worker.events, first.job_id, 1)
        assert checkpoint is not None
        assert (checkpoint.run, checkpoint.num_tokens) == (2, 0)
    else:
        assert (job.run, job.num_resumed) == (1, 2)


async def test_a_preemption_is_noted_on_the_job_that_it_befell(worker: WorkerContext, settings: Settings) -> None:
    take_in(worker, finisher := Finisher(worker), await start_under(worker, settings))
    (job,) = worker.hand.values()
    moves = [Moved(job.request_id, 0, False), Moved("somebody else's.1", 0, False), Moved(job.request_id, 0, True)]
    await take_step(worker, finisher, StepOutput(moved=moves))
    ((noted,),) = [job.preempted]
    assert noted["choice"] == 0
    assert noted["back_s"] is not None


class LateReplies(JobQueue):
    """Its claims are done at once and take a while to come back, as from a busy Redis."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, POOL)
        self.has_claimed = asyncio.Event()

    async def claim(self, *args: Any, **kwargs: Any) -> list[Nomination]:
        claimed = await super().claim(*args, **kwargs)
        if claimed:
            self.has_claimed.set()
            await asyncio.sleep(0.7)  # the race's second cancel comes meanwhile
        return claimed


@pytest.fixture
async def late(worker: WorkerContext, settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> LateReplies:
    """The worker's queue, with a job in it; the worker may take as long as it wants to decide the claim."""
    monkeypatch.setattr(claimer, "_DECIDE_S", 60.0)
    worker.queue = queue = LateReplies(redis)
    worker.is_fit.set()
    await queue.open_epoch("test")
    await submit_and_nominate(worker.db, settings, queue, 1)
    return queue


async def test_a_claim_that_is_on_its_way_when_the_engine_dies_is_decided(
    worker: WorkerContext, late: LateReplies
) -> None:
    """It used to be dropped: its jobs waited for the sweeper, for `renominate_after_s`, where there was one."""

    async def engine_dies() -> None:
        await late.has_claimed.wait()
        raise EngineDied(-9, "")

    with pytest.raises(EngineDied):
        await race(claim_forever(worker, Finisher(worker)), engine_dies())
    (job,) = worker.hand.values()
    assert not await late.redis.exists(late.keys.stream("standard", "acme")), "it is acked, too"
    assert sort_out([job], None).bystanders == [job], "the engine never had it"


async def test_a_worker_that_has_given_itself_up_starts_nothing_of_a_claim_that_was_on_its_way(
    worker: WorkerContext, late: LateReplies
) -> None:
    """What it started would be lost with its lease: a mark against the jobs."""

    async def lease_is_lost() -> None:
        await late.has_claimed.wait()
        await let_go(worker, LeaseLost("no renewal"))
        raise LeaseLost("no renewal")

    with pytest.raises(LeaseLost):
        await race(claim_forever(worker, Finisher(worker)), lease_is_lost())
    async with worker.db.connect() as conn:
        assert await conn.scalar(text("SELECT status FROM jobs")) == "queued"
    assert not worker.hand


async def test_a_give_back_that_is_broken_off_can_be_done_again(worker: WorkerContext, settings: Settings) -> None:
    """Its jobs counted as ending, and nobody ended them: the worker waited for them for ever."""
    finisher = Finisher(worker)
    await hand_over(worker, finisher, take_in(worker, finisher, await start_under(worker, settings, max_tokens=500)))
    (job,) = worker.hand.values()
    async with worker.db.begin() as conn:
        await conn.execute(text("SELECT FROM jobs FOR UPDATE"))
        giving_back = asyncio.create_task(finisher.give_back([job], "drained"))
        await asyncio.sleep(0.3)
        giving_back.cancel()
        with pytest.raises(asyncio.CancelledError):
            await giving_back
    assert not job.is_ending
    await finisher.give_back([job], "drained")
    async with asyncio.timeout(20):
        await finisher.let_all_end()
    async with worker.db.connect() as conn:
        assert await conn.scalar(text("SELECT status FROM jobs")) == "queued"
