"""How does a request wait for a job's end? By the event that tells of it, and by asking Postgres once a second for all who wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request

from app.jobs.read import ended_among
from app.queue.keys import ENDED_CHANNEL
from app.racing import race
from app.redis import Redis, RedisError

MAX_SEATS = 2000  # requests of one process that may wait at once; one more is answered at once
POLL_EVERY_S = 1.0  # for what the event missed, and while Redis is away
RECONNECT_AFTER_S = 0.5


class EndWatch:
    """The waiting room of one API process: one subscription and one query a second, however many wait."""

    max_seats = MAX_SEATS
    poll_every_s = POLL_EVERY_S

    def __init__(self, engine: AsyncEngine, redis: Redis) -> None:
        self._engine = engine
        self._redis = redis
        self._seats: dict[UUID, set[Seat]] = {}
        self.num_seated = 0  # requests that wait now
        self._closed = False
        self.subscribed = asyncio.Event()  # set while ends are heard of as they happen

    @asynccontextmanager
    async def seat(self, job_id: UUID) -> AsyncIterator["Seat | None"]:
        """A place to wait for this job's end: take it before looking at the job. None where all are taken, or at shutdown."""
        if self._closed or self.num_seated >= self.max_seats:
            yield None
            return
        seat = Seat()
        self.num_seated += 1
        self._seats.setdefault(job_id, set()).add(seat)
        try:
            yield seat
        finally:
            self.num_seated -= 1
            self._seats[job_id].discard(seat)
            if not self._seats[job_id]:
                del self._seats[job_id]

    @property
    def is_closed(self) -> bool:
        """Whether everybody was sent back."""
        return self._closed

    def release(self) -> None:
        """Send everybody back with what is known now, and take nobody in any more: the process is going to end."""
        self._closed = True
        for job_id in self._seats:
            self._wake(job_id)

    async def run(self) -> None:
        """Listen and poll until cancelled after a `release`: redis-py swallows some cancellations, so the loops ask as well."""
        try:
            await race(self._listen(), self._poll())
        finally:
            self.subscribed.clear()

    async def _listen(self) -> None:
        while not self._closed:
            with contextlib.suppress(RedisError, OSError):
                async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(ENDED_CHANNEL)
                    self.subscribed.set()
                    while not self._closed:
                        message = await pubsub.get_message(timeout=1.0)
                        if message is not None:
                            self._heard(message["data"])
            self.subscribed.clear()
            await asyncio.sleep(RECONNECT_AFTER_S)

    async def _poll(self) -> None:
        while not self._closed:
            await asyncio.sleep(self.poll_every_s)
            if not self._seats:
                continue
            with contextlib.suppress(SQLAlchemyError, OSError):
                async with self._engine.connect() as conn:
                    for job_id in await ended_among(conn, list(self._seats)):
                        self._wake(job_id)

    def _heard(self, data: bytes) -> None:
        if not self._seats:
            return
        for each in data.split():
            with contextlib.suppress(ValueError):
                self._wake(UUID(hex=each.partition(b":")[0].decode("ascii")))

    def _wake(self, job_id: UUID) -> None:
        for seat in self._seats.get(job_id, ()):
            seat.ended.set()


class Seat:
    """One request's place in the waiting room."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def wait(self, timeout_s: float, request: Request) -> bool:
        """Return when the job has ended or the process wants to end: True; when the time is over or the caller has gone: False."""
        ended = asyncio.create_task(self.ended.wait())
        gone = asyncio.create_task(_until_gone(request))
        try:
            await asyncio.wait((ended, gone), timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED)
            is_woken = self.ended.is_set()
            self.ended.clear()  # before the caller looks: what comes from now on wakes it again
            return is_woken
        finally:
            for task in (ended, gone):
                task.cancel()
            await asyncio.gather(ended, gone, return_exceptions=True)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
