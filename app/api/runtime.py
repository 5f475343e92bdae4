"""What does one API process hold? Pools, caches, threads and the waiting room, opened and closed with the app."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.requests import Request

from app.api.errands import Errands
from app.api.forecasts import ForecastMemory
from app.api.loops import Loops
from app.api.metrics import Metrics
from app.api.preparing import Lanes
from app.api.waiting import EndWatch
from app.clock import Clock
from app.db import create_engine
from app.errors import Unavailable
from app.jobs.admission import Admission
from app.jobs.breakers import BreakerBoard
from app.jobs.lengths import LengthBook
from app.jobs.loads import LoadBoard
from app.jobs.models import ModelCatalog
from app.looks import Looks
from app.observe.ends import count_ends
from app.observe.tracing import open_tracing
from app.queue.events import EventLog
from app.queue.streams import JobQueue
from app.quotas.keys import ApiKey
from app.quotas.rates import RateLimiter
from app.redis import Redis, create_redis
from app.settings import Settings
from app.streams import Hub

KNOWN_KEYS_TTL_S = 5.0  # how long a revoked key may still be believed
MAX_KNOWN_KEYS = 4096
_CLOSE_S = 2.0  # how long what is being read may take when the process ends


class KnownKeys:
    """API keys that were good a moment ago, by the digest of their token; the least recently used is forgotten first."""

    def __init__(self, clock: Clock, *, ttl_s: float = KNOWN_KEYS_TTL_S, most: int = MAX_KNOWN_KEYS) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._most = most
        self._keys: OrderedDict[bytes, tuple[ApiKey, float]] = OrderedDict()

    def get(self, digest: bytes) -> ApiKey | None:
        """The key, if it was put in within the last `ttl_s`."""
        found = self._keys.get(digest)
        if found is None:
            return None
        key, until = found
        if self._clock.monotonic() >= until:
            del self._keys[digest]
            return None
        self._keys.move_to_end(digest)
        return key

    def put(self, digest: bytes, key: ApiKey) -> None:
        """Remember a key that Postgres has just confirmed."""
        self._keys[digest] = (key, self._clock.monotonic() + self._ttl_s)
        self._keys.move_to_end(digest)
        if len(self._keys) > self._most:
            self._keys.popitem(last=False)


class Runtime:
    """One API process's state. Nothing here can't be lost."""

    def __init__(self, settings: Settings, clock: Clock, engine: AsyncEngine, redis: Redis) -> None:
        self.settings = settings
        self.clock = clock
        self.engine = engine
        self.redis = redis
        self.catalog = ModelCatalog(engine, clock=clock)
        self.breakers = BreakerBoard(engine, clock=clock, timeout_s=settings.database_timeout_s)
        self.events = EventLog(redis, ttl_s=settings.event_ttl_s, max_entries=settings.event_max_entries)
        self.known_keys = KnownKeys(clock)
        self.rates = RateLimiter(redis, clock, local_share=settings.rate_local_share)
        self.lanes = Lanes(threads=settings.tokenize_threads)
        self.watch = EndWatch(engine, redis)
        self.streams = Hub(engine, redis, settings, clock)
        self.loops = Loops()
        self.errands = Errands()
        self.metrics = Metrics()
        count_ends(engine, self.metrics.registry)
        self.tracing = open_tracing(settings, "penstock-api")
        self.forecasts = ForecastMemory()
        self._queues: dict[str, JobQueue] = {}
        self.looks = Looks(engine)
        self.loads = LoadBoard(engine, self.queue, clock=clock, timeout_s=settings.database_timeout_s, looks=self.looks)
        self.lengths = LengthBook(engine, clock=clock, timeout_s=settings.database_timeout_s)
        self.admission = Admission(settings, self.loads, self.lengths, clock=clock)

    def queue(self, pool: str) -> JobQueue:
        """The pool's queue, with its scripts registered once."""
        if pool not in self._queues:
            self._queues[pool] = JobQueue(self.redis, pool)
        return self._queues[pool]

    def decided(self) -> dict[str, int]:
        """How many submissions this process has decided since its start, by `decision:reason`."""
        return self.metrics.decided()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end; bounded, since a server that hangs refuses nothing.

        Raises:
            Unavailable: Postgres doesn't answer in time. Whether a commit went through is unknown then: the caller's Idempotency-Key tells.
        """
        try:
            async with asyncio.timeout(self.settings.database_timeout_s), self.engine.begin() as conn:
                yield conn
        except TimeoutError as error:
            raise Unavailable("Postgres doesn't answer in time; try again, with the same Idempotency-Key") from error


@asynccontextmanager
async def open_runtime(settings: Settings, clock: Clock) -> AsyncIterator[Runtime]:
    """The process's state, from its first request to its last. Neither server has to answer for it to open.

    Raises:
        Misconfigured: no database or no Redis is configured.
    """
    engine = create_engine(settings, application_name="penstock-api")
    redis = create_redis(settings)
    runtime = Runtime(settings, clock, engine, redis)
    runtime.loops.start("waiting", runtime.watch.run)
    runtime.loops.start("loads", runtime.loads.run)
    runtime.loops.start("streams", runtime.streams.run)
    runtime.loops.start("errands", runtime.errands.run)
    try:
        yield runtime
    finally:
        runtime.watch.release()
        runtime.streams.release()
        runtime.loads.close()
        await runtime.loops.wait("loads", _CLOSE_S)
        await runtime.loops.close()
        await runtime.lengths.close()
        runtime.lanes.close()
        await runtime.rates.aclose()
        await redis.aclose()
        await engine.dispose()
        if runtime.tracing is not None:
            await runtime.tracing.close()


def runtime_of(request: Request) -> Runtime:
    """The state of the app that serves this request."""
    runtime = request.app.state.runtime
    assert isinstance(runtime, Runtime)
    return runtime
