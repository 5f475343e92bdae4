"""How loaded is each pool? Redis' depth and the workers' leases, read in the background: no answer waits for either."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import Clock
from app.jobs.pool_figures import QUEUED, WORKERS, Key, PoolFigures, Source, figures_of, read_waiting
from app.jobs.states import TIERS
from app.looks import Looks
from app.queue.streams import JobQueue
from app.quotas.pressure import Backlog
from app.racing import at_most
from app.redis import RedisError
from app.telemetry import emit

log = logging.getLogger(__name__)

READ_EVERY_S = 0.5
UNASKED_EVERY_S = 1.0  # while no tenant has asked for `_ASKED_S`
READ_TIMEOUT_S = 1.0
COUNT_EVERY_S = 5.0  # while Redis is away: counting the queue in Postgres is dear
COUNT_TIMEOUT_S = 3.0
BUSY_S = 600.0  # how long a tier that had work is believed to get some again: so long it keeps its share in predictions
_ASKED_S = 10.0  # how long the queue of a tenant that has asked is looked at
_MAX_ASKED = 1000


@dataclass(slots=True)
class _Taken:
    """What this process has accepted of a tenant: on its way, or enqueued since the last read began."""

    at: float | None  # when it was enqueued; None: on its way
    pool: str
    tier: str
    tenant: str
    tokens: int


@dataclass(slots=True)
class _Reading:
    own: dict[Key, int] = field(default_factory=dict)  # jobs
    weights: dict[Key, float] = field(default_factory=dict)
    owed: dict[Key, float] = field(default_factory=dict)  # tokens
    owed_to_tiers: dict[str, dict[str, float]] = field(default_factory=dict)  # pool -> by tier


class LoadBoard:
    """The pools as one API process knows them. Every figure is of the last round, at most about a second old while both servers answer.

    What this process has accepted since is added, so that a second of a flood doesn't pass unseen.
    """

    def __init__(
        self, engine: AsyncEngine, queue_of: Callable[[str], JobQueue], *, clock: Clock, timeout_s: float,
        looks: Looks | None = None,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._looks = looks or Looks(engine)
        self._queue_of = queue_of
        self._clock = clock
        self._timeout_s = timeout_s
        self._figures: dict[str, PoolFigures] = {}
        self._reading = _Reading()
        self._asked: dict[tuple[str, str, str], float] = {}
        self._taken: deque[_Taken] = deque()
        self.on_its_way: dict[int, _Taken] = {}
        self._counted_at: float | None = None
        self._busy_at: dict[tuple[str, str], float] = {}  # pool, tier -> when it last had work
        self._is_blind = False
        self._round = asyncio.Lock()
        self._is_asked = asyncio.Event()
        self._is_closed = asyncio.Event()

    async def run(self) -> None:
        """Read again and again until `close`; meanwhile its looks keep their connection."""
        async with self._looks:
            while not self._is_closed.is_set():
                try:
                    await self.refresh()
                except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
                    if not self._is_blind:
                        emit(log, logging.WARNING, "loads_not_read", error=error)
                    self._is_blind = True
                await self._pause()

    def close(self) -> None:
        """Let `run` end after its round: a connection that is being opened isn't to be cut."""
        self._is_closed.set()
        self._is_asked.set()

    async def _pause(self) -> None:
        """Until figures are `READ_EVERY_S` old; where nobody has asked lately until somebody does, but they get no older than `UNASKED_EVERY_S`."""
        began = asyncio.get_running_loop().time()
        if not (self._asked or self._is_closed.is_set()):
            self._is_asked.clear()
            await _at_most(UNASKED_EVERY_S, self._is_asked)
        await _at_most(began + READ_EVERY_S - asyncio.get_running_loop().time(), self._is_closed)

    async def refresh(self) -> None:
        """One round.

        Raises:
            SQLAlchemyError, TimeoutError: Postgres doesn't say which pools and workers there are; what was known stays.
        """
        async with self._round:
            now = self._clock.monotonic()
            rows = await at_most(self._timeout_s, self._workers())
            backlogs, source = await self._backlogs([row.pool for row in rows], now)
            for row in rows:
                tiers = backlogs.get(row.pool, {}) if backlogs is not None else self._last(row.pool)
                self._figures[row.pool] = figures_of(row, tiers, source, now, self._reading.owed_to_tiers.get(row.pool))
                self._busy_at |= {(row.pool, tier): now for tier, each in tiers.items() if each.tokens > 0}
            # What a round has seen, or added to the last figures, isn't to be added again.
            self._taken = deque(each for each in self._taken if each.at is not None and each.at >= now)
            if self._is_blind:
                self._is_blind = False
                emit(log, logging.INFO, "loads_read_again")

    def figures(self, pool: str) -> PoolFigures | None:
        """The pool now, with what this process has accepted since the last round; None where nothing was ever read."""
        known = self._figures.get(pool)
        if known is None:
            return None
        tiers = _with(known.load.tiers, [each for each in self._since() if each.pool == pool])
        recent = self._clock.monotonic() - BUSY_S
        busy = frozenset(tier for tier in TIERS if self._busy_at.get((pool, tier), recent) > recent)
        return replace(known, load=replace(known.load, tiers=tiers, busy=busy))

    def age_s(self, pool: str) -> float | None:
        """Of the pool's figures."""
        known = self._figures.get(pool)
        return None if known is None else self._clock.monotonic() - known.read_at

    def pools(self) -> list[str]:
        """Every pool that is known, by name."""
        return sorted(self._figures)

    def own_tokens(self, pool: str, tier: str, tenant: str) -> int:
        """What the tenant has waiting in the tier, about: its jobs, at the mean size of the tier's; 0 until the next round has looked."""
        if len(self._asked) < _MAX_ASKED or (pool, tier, tenant) in self._asked:
            self._asked[pool, tier, tenant] = self._clock.monotonic()
            self._is_asked.set()
        known = self._figures.get(pool)
        backlog = known.load.tier(tier) if known else Backlog()
        if (pool, tier, tenant) in self._asked:
            waiting = self._reading.own.get((pool, tier, tenant), 0) * backlog.mean_tokens
        else:  # more tenants ask than are looked at: an equal part
            waiting = backlog.tokens / max(1, backlog.tenants)
        since = sum(
            each.tokens for each in self._since() if (each.pool, each.tier, each.tenant) == (pool, tier, tenant)
        )
        return int(waiting) + since

    def weight_of(self, pool: str, tier: str, tenant: str) -> float:
        """The tenant's weight in the pool; 1 until a round has looked, which `own_tokens` asks for."""
        return self._reading.weights.get((pool, tier, tenant), 1.0)

    def owed_tokens(self, pool: str, tier: str, tenant: str) -> float:
        """What other tenants of the tier are served before this one's next turn; 0 until a round has looked, which `own_tokens` asks for."""
        return self._reading.owed.get((pool, tier, tenant), 0.0)

    def take(self, pool: str, tier: str, tenant: str, tokens: int) -> "Hold":
        """Count a job in from the decision on; leave the context when it is enqueued, or wasn't accepted."""
        return Hold(self, _Taken(None, pool, tier, tenant, tokens))

    def note(self, taken: _Taken) -> None:
        """A job of ours is in the queue now."""
        taken.at = self._clock.monotonic()
        self._taken.append(taken)

    def _last(self, pool: str) -> Mapping[str, Backlog]:
        """The backlog as it was known last, and what was enqueued since."""
        known = self._figures.get(pool)
        return _with(known.load.tiers if known else {}, [each for each in self._taken if each.pool == pool])

    def _since(self) -> list[_Taken]:
        return [*self.on_its_way.values(), *self._taken]

    async def _workers(self) -> Any:
        return await self._looks.rows(WORKERS)

    async def _backlogs(self, pools: list[str], now: float) -> tuple[dict[str, dict[str, Backlog]] | None, Source]:
        for key, at in list(self._asked.items()):
            if now - at > _ASKED_S:
                del self._asked[key]
        try:
            found = await at_most(READ_TIMEOUT_S, self._read_redis(pools))
        except (RedisError, OSError):
            return await self._count(now)
        self._counted_at = None
        return found, "redis"

    async def _read_redis(self, pools: list[str]) -> dict[str, dict[str, Backlog]]:
        """Every pool's depth, its tenants with work, and the queues of tenants that have asked lately."""
        reading, found = _Reading(), dict[str, dict[str, Backlog]]()
        for pool in pools:
            waiting = await read_waiting(self._queue_of(pool), [key for key in self._asked if key[0] == pool])
            found[pool] = waiting.tiers
            reading.own |= waiting.jobs
            reading.weights |= waiting.weights
            reading.owed |= waiting.owed
            reading.owed_to_tiers[pool] = waiting.owed_to_tiers
        self._reading = reading
        return found

    async def _count(self, now: float) -> tuple[dict[str, dict[str, Backlog]] | None, Source]:
        """What waits by Postgres' rows; now and then, since that reads all of them."""
        if self._counted_at is not None and now - self._counted_at < COUNT_EVERY_S:
            return None, self._last_source()
        self._counted_at = now
        try:
            rows = await at_most(COUNT_TIMEOUT_S, self._queued())
        except (SQLAlchemyError, OSError):
            return None, "last"
        found: dict[str, dict[str, Backlog]] = {}
        for row in rows:
            found.setdefault(row.pool, {})[row.tier] = Backlog(row.jobs, row.tokens, row.tenants)
        return found, "postgres"

    def _last_source(self) -> Source:
        return "postgres" if any(each.source == "postgres" for each in self._figures.values()) else "last"

    async def _queued(self) -> Any:
        async with self._engine.connect() as conn:
            return (await conn.execute(QUEUED)).all()


class Hold:
    """A job between the decision to take it and the queue: counted all the while."""

    def __init__(self, board: LoadBoard, taken: _Taken) -> None:
        self._board = board
        self._taken = taken
        self._is_kept = False

    def __enter__(self) -> Self:
        self._board.on_its_way[id(self)] = self._taken
        return self

    def move(self, pool: str, tokens: int) -> None:
        """Another pool is to take it, or it is known better how large it is."""
        self._taken.pool, self._taken.tokens = pool, tokens

    def keep(self, tokens: int) -> None:
        """It was accepted: it counts on, with all its tokens, until a round has seen it in the queue."""
        self._taken.tokens = tokens
        self._is_kept = True

    def __exit__(self, *_: object) -> None:
        taken = self._board.on_its_way.pop(id(self))
        if self._is_kept:
            self._board.note(taken)


async def _at_most(seconds: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _with(before: Mapping[str, Backlog], taken: list[_Taken]) -> dict[str, Backlog]:
    tiers = dict(before)
    for tier in {each.tier for each in taken}:
        seen, new = tiers.get(tier, Backlog()), [each for each in taken if each.tier == tier]
        tenants = max(seen.tenants, len({each.tenant for each in new}))
        weight = max(seen.weight, float(tenants)) if seen.weight else 0.0
        tiers[tier] = Backlog(seen.jobs + len(new), seen.tokens + sum(each.tokens for each in new), tenants, weight)
    return tiers
