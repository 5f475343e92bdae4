"""How do results reach Postgres? In batches, each in one fenced transaction, repeated until Postgres has said yes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import has_lost_connection, is_outage
from app.jobs.dead.announce import announce_ends
from app.jobs.finish import Ending, finish, has_finished
from app.jobs.notices import Used
from app.jobs.rescue import Rescued, give_back, retire
from app.jobs.states import EndStatus, Lane
from app.jobs.store import Cause, GivenBack
from app.killpoints import kill_point
from app.queue.events import JobEvent, Publication
from app.queue.fairness import work_of
from app.queue.streams import Work
from app.racing import race
from app.redis import RedisError
from app.telemetry import emit
from workers.generation.context import WorkerContext
from workers.generation.hand import RunningJob
from workers.generation.publish import publish
from workers.generation.tracing import trace_attempt

log = logging.getLogger(__name__)

_MAX_BATCH = 256
_RETRY_S = 0.5
_STUCK_AGAIN_S = 30.0
_NOT_STORABLE = {"code": "result_not_storable", "message": "the result can't be stored in the database"}


class Finisher:
    """Collects ends and writes them. A job stays in the hand, and its lease is renewed, until its end is written."""

    def __init__(self, worker: WorkerContext) -> None:
        self._worker = worker
        self._waiting: asyncio.Queue[tuple[RunningJob, Ending]] = asyncio.Queue()
        self._stuck: dict[str, RunningJob] = {}  # whose ends were refused, until they are tried again
        self._lets_go = False  # of those
        self._broken: asyncio.Queue[tuple[RunningJob, dict[str, Any]]] = asyncio.Queue()

    def end(self, job: RunningJob, status: EndStatus, error: dict[str, Any] | None = None) -> None:
        """Take a job's end down; it is written soon. From now on the job takes no more tokens, cancels or deadlines."""
        assert not job.is_ending
        job.is_ending = True
        job.ended_at = self._worker.clock.monotonic()
        self._waiting.put_nowait((job, job.ending(status, error)))
        self._worker.changed.set()

    def try_again_later(self, job: RunningJob, error: dict[str, Any]) -> None:
        """Take down that an attempt broke through no fault of the job; it is given back soon, as a transient error."""
        assert not job.is_ending
        job.is_ending = True
        self._broken.put_nowait((job, error))
        self._worker.changed.set()

    async def run(self) -> None:
        """Write what comes, as much in one transaction as has gathered."""
        await race(self._give_back_broken(), self._write_ends())

    async def _give_back_broken(self) -> None:
        while True:
            job, error = await self._broken.get()
            emit(log, logging.WARNING, "attempt_broke", job=job.started.job_id.hex, code=error["code"])
            await self.give_back([job], "transient_error", error)

    async def _write_ends(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < _MAX_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await self._write(batch)

    async def give_back(
        self,
        jobs: Sequence[RunningJob],
        cause: Cause,
        detail: dict[str, Any] | None = None,
        *,
        lane: Lane | None = None,
        keep_tokens: bool = True,
    ) -> None:
        """End these attempts without a result and nominate the jobs anew. Repeats until Postgres has said yes.

        Their tokens so far are told first: that is where the next attempt goes on, in `lane` or where it ran. Without
        `keep_tokens` they are taken back, as far as Redis allows: the next attempt starts over.
        """
        for job in jobs:
            job.is_ending = True
            job.ended_at = job.ended_at or self._worker.clock.monotonic()
        try:
            await self._give_back(jobs, cause, detail, lane, keep_tokens=keep_tokens)
        except asyncio.CancelledError:
            for job in jobs:
                job.is_ending = False  # whoever stopped us does it again: the fence minds what is done already
            raise
        self._worker.meters.given_back(jobs, cause)
        for job in jobs:
            trace_attempt(self._worker.tracing, self._worker.clock, job, self._worker.model_name, error=cause)
        for job in jobs:
            self._worker.drop(job.request_id)

    async def _give_back(
        self, jobs: Sequence[RunningJob], cause: Cause, detail: dict[str, Any] | None, lane: Lane | None, *,
        keep_tokens: bool,
    ) -> None:  # fmt: skip
        if keep_tokens:
            is_kept = await publish(self._worker, jobs)
        else:
            is_kept = False
            for job in jobs:
                job.num_discarded += job.num_resumed
            await self._take_back(jobs)
        given = [
            GivenBack(
                job.started.job_id,
                job.started.attempt,
                cause,
                job.detail(detail),
                job.wasted(is_kept=is_kept),
                lane,
                job.timing,
            )
            for job in jobs
        ]
        await self._rescue(
            lambda conn: give_back(conn, given, self._worker.fate, self._worker.random),
            [job.started.job_id for job in jobs],
        )

    async def _take_back(self, jobs: Sequence[RunningJob]) -> None:
        try:
            await self._worker.events.forget([job.started.job_id for job in jobs])
        except RedisError as error:
            emit(log, logging.WARNING, "events_not_taken_back", error=error, jobs=len(jobs))

    async def retire(self) -> None:
        """Close the lease, and give back what runs under it unknown to us. Repeats until Postgres has said yes."""
        worker = self._worker
        await self._rescue(lambda conn: retire(conn, worker.incarnation, fate=worker.fate, random=worker.random))

    async def _rescue(
        self, work: Callable[[AsyncConnection], Awaitable[Rescued]], given_back: Sequence[UUID] = ()
    ) -> None:
        while True:
            try:
                async with self._worker.db.begin() as conn:
                    rescued = await work(conn)
                break
            except (SQLAlchemyError, OSError) as error:
                if not is_outage(error):
                    raise
                emit(log, logging.WARNING, "give_back_failed", error=error)
                await asyncio.sleep(_RETRY_S)
        await self._spread(rescued, given_back)

    async def _write(self, batch: list[tuple[RunningJob, Ending]], *, may_queue: bool = True) -> None:
        """Write until it is written, where it `may_queue` perhaps after others.

        After an unknown COMMIT the repetition finds the rows ended and changes nothing.
        """
        kill_point("worker.before_finish")
        endings = [ending for _, ending in batch]
        is_repeated = False
        while True:
            try:
                async with self._worker.db.begin() as conn:
                    ended = await finish(conn, endings)
                    if is_repeated and len(ended) < len(endings):
                        ended |= await has_finished(conn, endings)
                break
            except (SQLAlchemyError, OSError) as error:
                if not is_outage(error):
                    await self._write_one_by_one(batch, error)
                    return
                if may_queue and not has_lost_connection(error) and not self._waiting.empty():
                    # A lock, a time-out: this batch again, but after those that wait behind it.
                    for each in batch:
                        self._waiting.put_nowait(each)
                    await asyncio.sleep(_RETRY_S)
                    return
                emit(log, logging.WARNING, "finish_failed", error=error, jobs=len(batch))
                is_repeated = True
                await asyncio.sleep(_RETRY_S)
        kill_point("worker.after_finish")
        fenced = len(batch) - len(ended)
        if fenced:
            emit(log, logging.INFO, "finish_fenced", jobs=fenced)
        written = [(job, ending) for job, ending in batch if ending.job_id in ended]
        self._observe(written)
        await self._tell(written)
        for job, _ in batch:
            self._worker.drop(job.request_id)

    def _observe(self, written: list[tuple[RunningJob, Ending]]) -> None:
        worker = self._worker
        for job, ending in written:
            code = None if ending.status == "succeeded" else (ending.error or {}).get("code", ending.status)
            if code is None:
                worker.meters.succeeded(job, worker.clock.monotonic())
            trace_attempt(worker.tracing, worker.clock, job, worker.model_name, error=code)

    async def _write_one_by_one(self, batch: list[tuple[RunningJob, Ending]], error: Exception) -> None:
        """One of these can't be stored. Find it: it fails, the others are written.

        Where not even its failure can be stored, something of its rows is broken, and no other worker could end it: it stays in the hand
        and is tried again later, and the others go on.

        Raises:
            SQLAlchemyError: of a failure that can't be stored.
        """
        if len(batch) > 1:
            for each in batch:
                await self._write([each])
            return
        job, ending = batch[0]
        if ending.error == _NOT_STORABLE:
            raise error
        emit(log, logging.ERROR, "result_not_storable", job=job.started.job_id.hex, error=error)
        plain = Ending(ending.job_id, ending.attempt, "failed", error=_NOT_STORABLE, billed=False, outcome="failed")
        try:
            await self._write([(job, plain)], may_queue=False)  # its refusal is to come back to here
        except SQLAlchemyError as refused:
            emit(log, logging.ERROR, "job_stuck", job=job.started.job_id.hex, error=refused)
            if self._lets_go:
                self._worker.drop(job.request_id)
                return
            self._stuck[job.request_id] = job
            asyncio.get_running_loop().call_later(_STUCK_AGAIN_S, self._try_again, job, ending)

    def _try_again(self, job: RunningJob, ending: Ending) -> None:
        if self._stuck.pop(job.request_id, None) is job and self._worker.hand.get(job.request_id) is job:
            self._waiting.put_nowait((job, ending))

    async def let_all_end(self) -> None:
        """Wait for the ends that are on their way, before the lease is closed.

        Jobs whose ends Postgres refuses hold up nobody: they leave the hand, and who closes the lease gives them back, if they can be.
        """
        self._lets_go = True
        try:
            for request_id in self._stuck:
                self._worker.drop(request_id)
            self._stuck.clear()
            await self._worker.until_hand_is_empty()
        finally:
            self._lets_go = False

    async def _tell(self, ended: list[tuple[RunningJob, Ending]]) -> None:
        """Tell readers and waiters, after the commit. Best effort: both fall back to Postgres."""
        publications = []
        for job, ending in ended:
            event = JobEvent(kind=ending.status, attempt=ending.attempt, deltas=job.take_unpublished(at_end=True))
            publications += self._worker.unsent.pop(ending.job_id, [])
            publications.append(Publication(ending.job_id, job.num_generated, event, job.run))
        try:
            await self._worker.events.publish(publications)
            ends = [(ending.job_id, ending.status) for _, ending in ended]
            await announce_ends(self._worker.db, self._worker.queue.redis, ends)
            await self._worker.queue.true_up([Work(ending.job_id, _work_of(ending.used)) for _, ending in ended])
        except RedisError as error:
            emit(log, logging.WARNING, "publish_failed", error=error)

    async def _spread(self, rescued: Rescued, given_back: Sequence[UUID]) -> None:
        try:
            await self._worker.queue.release(given_back)  # before the next claim can charge them again
            for nominations in rescued.nominations.values():
                await self._worker.queue.enqueue(nominations)
            await announce_ends(self._worker.db, self._worker.queue.redis, rescued.ended)
        except RedisError as error:
            emit(log, logging.WARNING, "enqueue_failed", error=error)  # the sweeper brings them


def _work_of(used: Used) -> float:
    return work_of(used.prompt_tokens, used.cached_tokens, used.completion_tokens)
