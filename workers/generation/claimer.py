"""How do jobs come in? Claim for the room that the engine has, start by compare-and-set, ack, hand to the engine."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.errors import PenstockError
from app.jobs import store
from app.jobs.caps import within_caps
from app.jobs.ceilings import max_wait_s
from app.jobs.states import TIERS
from app.jobs.store import StartedJob
from app.killpoints import kill_point
from app.queue.events import JobEvent, Publication, read_now
from app.queue.fairness import COMMON_LEVEL, LEVELS, credit_of, lead_of, priority_of
from app.queue.streams import Ring, Room
from app.racing import to_its_end
from app.redis import RedisError
from app.telemetry import emit
from workers.engine.protocol import Grammar, Request, SamplingParams
from workers.generation.context import WorkerContext
from workers.generation.finisher import Finisher
from workers.generation.hand import RunningJob, request_id_of
from workers.generation.hurry import hurry
from workers.generation.resume import resume

log = logging.getLogger(__name__)

_BELL_WAIT_S = 1.0  # a bell may be lost or taken by another worker: look again after this
_PRECEDENCE_S = 0.005  # of workers with free room, before one without takes it from others
_ERROR_WAIT_S = 0.5
_DECIDE_S = 2.0  # that a claim has to be decided, when the loop is stopped meanwhile
_MAX_CLAIM = 256


def room(worker: WorkerContext) -> dict[str, list[Room]]:
    """What may be claimed now of each tier, by level: what the engine can take in, at the cost of those behind where it must be.

    A full batch keeps a few jobs at hand, so that no step waits for a claim.
    """
    stats, info = worker.stats, worker.engine.info
    spare = max(1, info.max_num_seqs // 8)
    held: Counter[int] = Counter()  # sequences by priority
    unseen: Counter[int] = (
        Counter()
    )  # tokens that were handed over and may be missing in the engine's figures: they brought none yet
    for job in worker.hand.values():
        held[job.started.priority] += job.num_unfinished
        if not job.has_output:
            unseen[job.started.priority] += job.cost
    rooms: dict[str, list[Room]] = {tier: [] for tier in TIERS}
    tokens_above = sequences_above = 0
    for rank, tier in enumerate(TIERS):
        for level in range(LEVELS):
            priority = priority_of(rank, level)
            tokens_above += unseen[priority]
            sequences_above += held[priority]
            if stats.kv_blocks_total == 0:
                tokens = info.num_blocks * info.block_size  # no step yet
            else:
                tokens = stats.room_for(priority)
            tokens -= tokens_above
            if not worker.hand:
                tokens = max(tokens, 1)  # an idle engine takes anything; what doesn't fit fails alone, with a reason
            jobs = info.max_num_seqs + spare - sequences_above
            rooms[tier].append(Room(max(0, tokens), max(0, min(jobs, _MAX_CLAIM))))
    return rooms


async def claim_forever(worker: WorkerContext, finisher: Finisher) -> None:
    """Bring jobs in until the worker drains.

    Raises:
        LeaseLost: Postgres says that this incarnation is dead.
    """
    bell = _Bell(worker)
    try:
        while not worker.is_draining:
            try:
                await _claim_once(worker, finisher, bell)
            except (RedisError, SQLAlchemyError, OSError) as error:
                # Nothing is lost: an undecided nomination is put back by the sweeper, a start whose commit is unknown is
                # found at the next lease renewal.
                emit(log, logging.WARNING, "claim_failed", error=error)
                await _until_postgres_answers(worker)
    finally:
        bell.close()


class _Bell:
    """Waits for the queue's bell and for room at once. A wait for the bell goes on across claims: it holds a connection."""

    def __init__(self, worker: WorkerContext) -> None:
        self._worker = worker
        self._ringing: asyncio.Task[Ring | None] | None = None
        self._own: set[str] = set()  # tiers for whose bells it waits: with room for everybody
        self._full: set[str] = set()  # or only for those who may displace others

    async def wait(self, rooms: Mapping[str, Sequence[Room]]) -> None:
        """Until the bell rang or its time is over, or one who found no room would find some now. Raises RedisError."""
        full = _full(rooms)
        own = {tier for tier in TIERS if (tier, COMMON_LEVEL) not in full}
        # Where not even the most privileged has room, a bell would be taken from a worker that has some.
        if await self._listen(own, {tier for tier in TIERS if (tier, 0) not in full} - own):
            return
        while self._ringing is not None and not self._ringing.done():
            change = asyncio.create_task(self._worker.wait_for_change(_BELL_WAIT_S))
            try:
                await asyncio.wait({self._ringing, change}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                change.cancel()
            if self._worker.is_draining or self._worker.is_paused:
                return
            if full and not self._ringing.done() and full - _full(room(self._worker)):
                return
        await self._take_ring()

    async def _listen(self, own: set[str], full: set[str]) -> bool:
        """Wait for the bells of these tiers at least, from now on; whether one rang meanwhile. `full`: with room only by displacing others."""
        queue, who = self._worker.queue, self._worker.incarnation.hex
        if self._ringing is not None and not (own <= self._own and full <= self._own | self._full):
            await queue.wake(who)
            if await self._take_ring():
                return True
        if self._ringing is None:
            self._own, self._full = own, full
            by_rank = [[each for each in TIERS if each in tiers] for tiers in (own, full)]
            bell = queue.wait_for_bell(_BELL_WAIT_S, tiers=by_rank[0], full=by_rank[1], who=who)
            self._ringing = asyncio.create_task(bell)
        return False

    async def _take_ring(self) -> bool:
        ringing, self._ringing = self._ringing, None
        ring = await ringing if ringing is not None else None
        if ring is not None and ring.needs_room:
            await asyncio.sleep(_PRECEDENCE_S)
        return ring is not None

    def close(self) -> None:
        """Wait no more."""
        if self._ringing is not None and not self._ringing.cancel() and not self._ringing.cancelled():
            self._ringing.exception()  # seen: whoever asks Redis next is told the same


def _can_take(each: Room) -> bool:
    return each.tokens > 0 and each.jobs > 0


def _full(rooms: Mapping[str, Sequence[Room]]) -> set[tuple[str, int]]:
    """The levels that have no room."""
    return {(tier, level) for tier, levels in rooms.items() for level, each in enumerate(levels) if not _can_take(each)}


async def _until_postgres_answers(worker: WorkerContext) -> None:
    """Nobody claims while Postgres is away: the queue would be emptied into nominations that can't be decided."""
    while not worker.is_draining:
        await asyncio.sleep(_ERROR_WAIT_S)
        try:
            async with worker.db.connect() as conn:
                await conn.execute(text("SELECT 1"))
        except (SQLAlchemyError, OSError):
            continue
        return


async def _claim_once(worker: WorkerContext, finisher: Finisher, bell: _Bell) -> None:
    await worker.is_fit.wait()
    if worker.is_paused:
        await worker.wait_for_change(_BELL_WAIT_S)
        return
    rooms = room(worker)
    jobs = max((each.jobs for levels in rooms.values() for each in levels if _can_take(each)), default=0)
    if jobs == 0:
        await worker.wait_for_change(_BELL_WAIT_S)
        return
    requests = await to_its_end(_DECIDE_S, _bring_in(worker, finisher, rooms, jobs))
    if requests is None:
        await bell.wait(rooms)
    elif worker.alone:
        await _run_alone(worker, finisher, requests)
    else:
        await hand_over(worker, finisher, requests)


async def _bring_in(
    worker: WorkerContext, finisher: Finisher, rooms: Mapping[str, Sequence[Room]], max_jobs: int
) -> list[Request] | None:
    """Claim and decide: what was started is in the hand, and what the engine has to be told of it is returned; None if nothing waits.

    Half-way it would leave claims that nobody decides: those jobs would wait for the sweeper, longer than for another engine.
    """
    incarnation = worker.incarnation
    nominated = await worker.queue.claim(
        incarnation.hex,
        max_jobs=max_jobs,
        room=rooms,
        lead=lead_of(worker.stats.held_tokens),
        credit=credit_of(worker.stats.held_tokens),
        aging_s=worker.settings.aging_s,
    )
    if not nominated:
        return None
    kill_point("worker.after_claim")
    if worker.lost_incarnation == incarnation:
        return []  # it has given itself up meanwhile: what it starts now would be lost with it
    async with worker.db.begin() as conn:
        pace = worker.throughput.seconds_per_token or 0.0
        admitted = await within_caps(conn, nominated)
        started = await store.start(conn, incarnation, admitted, seconds_per_token=pace)
    kill_point("worker.after_start")
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        # A library took the cancel for something of its own. Nobody waits any more: who closes the lease gives these back.
        raise asyncio.CancelledError
    # Into the hand before the next await: the lease's comparison must never see a started job that nobody knows.
    requests = take_in(worker, finisher, started)
    worker.alone |= {request_id_of(each) for each in started if each.lane != "normal"}
    try:
        # From the commit on the lease protects the job; what wasn't started is stale. Both leave Redis.
        await worker.queue.ack([(each.job_id, each.gen) for each in admitted])
        running = {each.job_id for each in started}
        await worker.queue.release([each.job_id for each in admitted if each.job_id not in running])
        let_in = {each.job_id for each in admitted}
        await worker.queue.put_back([(each.job_id, each.gen) for each in nominated if each.job_id not in let_in])
    except RedisError as error:
        emit(log, logging.WARNING, "ack_failed", error=error)
    return requests


async def _run_alone(worker: WorkerContext, finisher: Finisher, requests: Sequence[Request]) -> None:
    """Run suspects of an engine's death, with nothing beside them and after a self-test; return when they have left.

    Raises:
        EngineUnfit: the engine doesn't pass: that is no reason to suspect them.
    """
    try:
        while any(request_id not in worker.alone for request_id in worker.hand) and not worker.is_draining:
            await worker.wait_for_change(_BELL_WAIT_S)
        suspects = [worker.hand[name] for name in worker.alone if name in worker.hand]
        if worker.is_draining:  # another worker tries them
            await finisher.give_back([job for job in suspects if not job.is_ending], "drained")
            return
        if worker.settings.canary:
            await worker.canary.sing()
        emit(
            log,
            logging.INFO,
            "suspects_run_alone",
            jobs=len(suspects),
            lane=suspects[0].started.lane if suspects else "",
        )
        await hand_over(worker, finisher, requests)
        while any(name in worker.hand for name in worker.alone):
            await worker.wait_for_change(_BELL_WAIT_S)
    finally:
        worker.alone.clear()


def take_in(worker: WorkerContext, finisher: Finisher, started: Sequence[StartedJob]) -> list[Request]:
    """Put started jobs into the hand; return what the engine has to be told."""
    requests = []
    for each in started:
        if request_id_of(each) in worker.hand:
            continue  # adopted by the lease's renewal, while the reply of its start was on its way
        now = worker.clock.monotonic()
        try:
            ours = _hurry(worker, _in_our_tokens(worker, each))
            job, request = RunningJob(ours, worker.tokenizer, now), request_of(ours)
        except Exception as error:  # noqa: BLE001 - the per-job edge: what one job asks for must not stop the others
            emit(log, logging.WARNING, "job_not_runnable", error=error, job=each.job_id.hex)
            job = RunningJob(each, worker.tokenizer, now)
            worker.hand[job.request_id] = job
            code = error.code if isinstance(error, PenstockError) else "invalid_request"
            finisher.end(job, "failed", {"code": code, "message": f"this worker can't run the job: {error}"})
            continue
        worker.hand[job.request_id] = job
        worker.meters.started(job)
        requests.append(request)
    return requests


def request_of(job: StartedJob) -> Request:
    """The job as the engine sees it, from its beginning."""
    special = {"stop", "logit_bias", "grammar"}
    sampling = {name: value for name, value in job.sampling.items() if name not in special}
    grammar = job.sampling.get("grammar")
    biases = {int(token): bias for token, bias in job.sampling.get("logit_bias", {}).items()}
    return Request(
        id=request_id_of(job),
        prompt_ids=job.prompt_ids,
        sampling=SamplingParams(**sampling, logit_bias=biases, grammar=Grammar(**grammar) if grammar else None),
        n=job.n,
        priority=job.priority,
        cache_salt=job.tenant_id,
    )


def _hurry(worker: WorkerContext, job: StartedJob) -> StartedJob:
    info = worker.engine.info
    return hurry(
        job, worker.hand.values(),
        ceilings_s={tier: max_wait_s(tier, worker.settings) for tier in TIERS},
        max_num_seqs=info.max_num_seqs, max_tokens=info.num_blocks * info.block_size,
    )  # fmt: skip


def _in_our_tokens(worker: WorkerContext, job: StartedJob) -> StartedJob:
    """The job with its prompt in this worker's tokens: it may have been counted with another version of the tokenizer."""
    prompt, messages = job.request.get("prompt"), job.request.get("messages")
    if job.tokenizer_hash == worker.tokenizer_hash:
        return job
    if messages is not None:
        return replace(job, prompt_ids=worker.encoder.encode_messages(messages, job.request.get("tools")))
    return replace(job, prompt_ids=worker.encoder.encode_text(prompt)) if isinstance(prompt, str) else job


async def hand_over(worker: WorkerContext, finisher: Finisher, requests: Sequence[Request]) -> None:
    """Give the jobs to the engine, from where an earlier attempt left them, and tell their readers that they run."""
    again = [worker.hand[request.id] for request in requests if request.id in worker.hand]
    await resume(worker, [job for job in again if job.started.attempt > 1])
    publications = []
    for request in requests:
        job = worker.hand.get(request.id)
        if job is None or job.is_ending:
            continue  # cancelled before it came so far
        publications.append(_start_event(worker, job))
        if job.is_complete:
            finisher.end(job, "succeeded")  # all that was missing was to write it down
            continue
        await add(worker, job, request)
    try:
        await worker.events.publish(publications)
        mine = [worker.hand[request.id] for request in requests if request.id in worker.hand]
        are_read = await read_now(worker.queue.redis, [job.started.job_id for job in mine])
        for job in mine:
            job.is_read = job.is_read or job.started.job_id in are_read
        if are_read:
            worker.first_tokens.set()  # of those that came meanwhile: the publisher may sleep until the unread ones' moment
    except RedisError as error:
        emit(log, logging.WARNING, "publish_failed", error=error)


async def add(worker: WorkerContext, job: RunningJob, request: Request) -> None:
    """Give one job to the engine, with the tokens that it has already."""
    resumed = [list(choice.token_ids) for choice in job.choices] if job.num_resumed else []
    job.is_handed_over = True
    await worker.engine.add(msgspec.structs.replace(request, resume=resumed))
    for choice in job.choices:
        if job.is_ending:
            await worker.engine.abort(request.id)
            return
        if choice.finish_reason is not None:
            await worker.engine.abort(request.id, choice.index)  # the engine doesn't know of stop strings


def _start_event(worker: WorkerContext, job: RunningJob) -> Publication:
    """An attempt that couldn't go on from what readers know tells them so."""
    kind = "restarted" if job.run == job.started.attempt > 1 else "started"
    event = JobEvent(kind=kind, attempt=job.started.attempt, made_by=worker.made_by)
    return Publication(job.started.job_id, job.num_resumed, event, job.run)
