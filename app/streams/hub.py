"""How do all readers of one process share one Redis connection, and few queries? One loop reads, one looks for ends."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID, uuid4

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.clock import Clock
from app.db import is_outage
from app.errors import NotFound, OutputForgotten, StreamsFull, Unavailable
from app.ids import job_name
from app.queue.keys import wake_key
from app.racing import race
from app.redis import Redis, RedisError
from app.settings import Settings
from app.streams import rows
from app.streams.announce import Announcer
from app.streams.fold import Fold
from app.streams.reader import Reader, Spare
from app.streams.topic import Cursor, Topic
from app.streams.xread import Doorway, Entry, Wanted
from app.telemetry import emit

log = logging.getLogger(__name__)

_PAGE = 100  # entries of one stream in one answer
_BLOCK_MS = 1000  # how long Redis waits for news; the wake-up may be lost
_PACE_S = 0.004  # from the beginning of a look to that of the next, so that one brings what several writers wrote
_PACE_A_TOPIC_S = 0.000_002  # each costs Redis and us something in each look
_RECONNECT_S = 0.5
_POLL_S = 1.0  # without news, until Postgres is asked for an end that Redis told nobody of, and again
_CHECK_S = 0.25  # whose time it is
_WAKE_TTL_S = 60
_SPARE_BYTES = 64 << 20  # so that a finished job's output is mostly loaded once
_TURN = 64  # topics, until readers get a turn to send


class Hub:
    """The readers of one process. `run` moves them on."""

    def __init__(self, engine: AsyncEngine, redis: Redis, settings: Settings, clock: Clock) -> None:
        self._engine = engine
        self._redis = redis
        self._settings = settings
        self._now = clock.monotonic
        self._doorway = Doorway(redis)
        self._topics: dict[UUID, Topic] = {}
        self._announcer = Announcer(redis, self._topics.keys)
        self._by_key: dict[bytes, Topic] = {}
        self._readers: set[Reader] = set()
        self._spare = Spare(_SPARE_BYTES)
        self._num_opening = 0
        self._wake_key = wake_key(uuid4().hex).encode()
        self._wanted = Wanted()
        self._wanted.ask(self._wake_key, b"0-0")
        self._asked: dict[bytes, Cursor] = {}  # from where each topic's stream is read, as Redis was asked last
        self._stale: set[bytes] = set()  # keys of topics for which that may be another place now
        self._changed = asyncio.Event()  # somebody came, or has room again
        self._ring = asyncio.Event()
        self._is_blocked = False  # Redis was asked to wait, without those who came since
        self._ends_wanted: set[UUID] = set()
        self._end_seen = asyncio.Event()
        self._is_closed = False
        self.is_connected = asyncio.Event()  # set while Redis answers

    @property
    def num_readers(self) -> int:
        """Who reads now."""
        return len(self._readers)

    @property
    def num_topics(self) -> int:
        """Jobs that are followed now."""
        return len(self._topics)

    async def open(self, tenant_id: str, job_id: UUID, after: int = 0) -> Reader:
        """A reader of the tenant's job, of what follows the event `after`; whoever gets it has to close it.

        Raises:
            NotFound: the tenant has no such job.
            OutputForgotten: the job has ended so long ago that its output isn't kept.
            StreamsFull: this process has as many readers as it may.
            Unavailable: Postgres doesn't answer.
        """
        if self._is_closed:
            raise StreamsFull("this process is going to end; try again")
        if len(self._readers) + self._num_opening >= self._settings.stream_max_readers:
            raise StreamsFull(
                f"{self._settings.stream_max_readers} streams are read from this process, and no more may be (stream_max_readers)"
            )
        self._num_opening += 1
        try:
            async with self._reading() as conn:
                found = await rows.head(conn, tenant_id, job_id)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            if not isinstance(error, TimeoutError) and not is_outage(error):
                raise
            raise Unavailable("Postgres doesn't answer now; try again") from error
        finally:
            self._num_opening -= 1
        if found is None:
            raise NotFound(f"there is no job {job_name(job_id)}")
        ended = found.ended
        if ended is not None and ended.is_forgotten and after < ended.event.id:
            raise OutputForgotten(
                f"the output of {job_name(job_id)} isn't kept any more (output_retention_s, or its tenant's content_retention_s)"
            )
        reader = Reader(
            job_id,
            Fold(found.n, after),
            most_bytes=self._settings.stream_buffer_bytes,
            load=self._output,
            on_close=self._left,
            now=self._now,
            spare=self._spare,
        )
        self._readers.add(reader)
        if ended is not None:
            reader.end(ended, reader.fold, is_complete=after >= ended.event.id)
        else:
            self._follow(reader, found.n)
        return reader

    def release(self) -> None:
        """Cut everybody off, to come back elsewhere, and take nobody in any more: the process is going to end."""
        self._is_closed = True
        self._cut_all()

    async def run(self) -> None:
        """Read until cancelled after a `release`. May be run again after it broke; who read then was cut off."""
        try:
            await race(
                self._read_forever(),
                self._ring_forever(),
                self._announcer.run(),
                self._end_forever(),
                self._tick_forever(),
            )
        finally:
            self.is_connected.clear()
            self._cut_all()  # what broke a loop may be one of them, and none shall wait for ever
            await self._doorway.close()

    def _cut_all(self) -> None:
        for reader in list(self._readers):
            reader.cut()

    def _follow(self, reader: Reader, n: int) -> None:
        topic = self._topics.get(reader.job_id)
        if topic is None:
            topic = self._topics[reader.job_id] = Topic(reader.job_id, n, partial(self._has_room, reader.job_id))
            self._by_key[topic.key] = topic
            self._announcer.came(reader.job_id)
        topic.join(reader)
        self._stale.add(topic.key)
        self._wake()

    def _has_room(self, job_id: UUID) -> None:
        topic = self._topics.get(job_id)
        if topic is not None:
            self._stale.add(topic.key)
            self._wake()

    def _left(self, reader: Reader) -> None:
        self._readers.discard(reader)
        topic = self._topics.get(reader.job_id)
        if topic is not None:
            topic.leave(reader)
            self._stale.add(topic.key)
            if not topic.feeds:
                self._drop(topic)

    def _drop(self, topic: Topic) -> None:
        del self._topics[topic.job_id]
        del self._by_key[topic.key]
        self._stale.add(topic.key)

    def _wake(self) -> None:
        """Let the reading loop ask anew: what it waits for isn't all any more."""
        self._changed.set()
        if self._is_blocked:
            self._is_blocked = False
            self._ring.set()

    # Redis.

    async def _read_forever(self) -> None:
        while not self._is_closed:
            self._look_again()
            self._changed.clear()
            if not self._asked:
                await self._changed.wait()
                continue
            self._is_blocked = True
            began = self._now()
            try:
                answer = await self._doorway.read(self._wanted, count=_PAGE, block_ms=_BLOCK_MS)
            except (RedisError, OSError, TimeoutError) as error:
                if self.is_connected.is_set():
                    emit(log, logging.WARNING, "streams_without_redis", error=error, readers=len(self._readers))
                self.is_connected.clear()
                await asyncio.sleep(_RECONNECT_S)
                continue
            finally:
                self._is_blocked = False
            self.is_connected.set()
            await self._spread(answer)
            pace_s = _PACE_S + _PACE_A_TOPIC_S * len(self._wanted)
            await asyncio.sleep(max(0.0, began + pace_s - self._now()))

    def _look_again(self) -> None:
        """Ask for each topic that has changed from where its readers stand now."""
        for key in self._stale:
            topic = self._by_key.get(key)
            feed = None if topic is None else topic.hindmost
            if feed is None:
                self._wanted.drop(key)
                self._asked.pop(key, None)
            else:
                self._wanted.ask(key, feed.entry_id)
                self._asked[key] = feed.cursor
        self._stale.clear()

    async def _ring_forever(self) -> None:
        """While Redis waits for us: let it answer when the set of streams has changed. A ring that is lost costs `_BLOCK_MS`."""
        while not self._is_closed:
            await self._ring.wait()
            self._ring.clear()
            with contextlib.suppress(RedisError, OSError):
                pipe = self._redis.pipeline(transaction=False)
                pipe.xadd(self._wake_key, {"w": b""}, maxlen=1, approximate=False)
                pipe.expire(self._wake_key, _WAKE_TTL_S)
                await pipe.execute()

    async def _spread(self, answer: Sequence[tuple[bytes, Sequence[Entry]]]) -> None:
        """Give each topic what was asked for; its readers may have changed since."""
        now = self._now()
        for place, (key, entries) in enumerate(answer):
            if key == self._wake_key:
                self._wanted.ask(key, entries[-1][0])
                continue
            topic = self._by_key.get(key)
            if topic is None:
                continue  # its last reader left meanwhile
            self._stale.add(key)
            topic.looked_at = now
            topic.take(self._asked[key], entries, now)
            if topic.has_end:
                self._ends_wanted.add(topic.job_id)
                self._end_seen.set()
            if place % _TURN == _TURN - 1:
                await asyncio.sleep(0)

    # Postgres.

    async def _end_forever(self) -> None:
        """End what has ended: those of which Redis tells at once, all others when there was no news of them for a second."""
        next_check = self._now() + _CHECK_S
        while not self._is_closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, next_check - self._now())):
                    await self._end_seen.wait()
            self._end_seen.clear()
            wanted, self._ends_wanted = self._ends_wanted, set()
            if (now := self._now()) >= next_check:
                next_check = now + _CHECK_S
                for topic in self._topics.values():
                    if now - topic.looked_at >= _POLL_S:
                        topic.looked_at = now
                        wanted.add(topic.job_id)
            wanted &= self._topics.keys()
            if not wanted:
                continue
            try:
                async with self._reading() as conn:
                    ended = await rows.ends(conn, list(wanted))
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                emit(log, logging.WARNING, "streams_without_postgres", error=error, readers=len(self._readers))
                continue
            for each in ended:
                self._end(each)

    def _end(self, ended: rows.Ended) -> None:
        topic = self._topics.get(ended.job_id)
        if topic is None:
            return
        for feed in topic.feeds:
            for reader in feed.readers:
                reader.end(ended, feed.fold.fork(), is_complete=feed.whole_at == ended.attempt)
        self._drop(topic)

    async def _output(self, job_id: UUID) -> rows.Output:
        async with self._reading() as conn:
            return await rows.output(conn, job_id)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        async with asyncio.timeout(self._settings.database_timeout_s), self._engine.connect() as conn:
            yield conn

    # Time.

    async def _tick_forever(self) -> None:
        """Heartbeats, and an end for those who don't take what is sent to them."""
        settings = self._settings
        tick_s = min(1.0, settings.stream_heartbeat_s / 2, settings.stream_stall_s / 2)
        while not self._is_closed:
            await asyncio.sleep(tick_s)
            now = self._now()
            for reader in list(self._readers):
                if reader.busy_since:
                    if now - reader.busy_since >= settings.stream_stall_s:
                        reader.cut()
                elif now - reader.heard_at >= settings.stream_heartbeat_s:
                    reader.heard_at = now
                    reader.beat()
