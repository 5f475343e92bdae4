"""Who serves a model, and what do they say of themselves? Workers, who of them listens, what waits, what leases would carry."""

from collections import Counter
from dataclasses import dataclass, field

from app.jobs.states import TIERS
from app.queue.places import TIER_WEIGHTS
from app.queue.streams import Depth, JobQueue, Room
from app.quotas.pressure import Backlog, PoolLoad
from benchmarks.simulation.engine import Engine
from benchmarks.simulation.gpus import Spec
from benchmarks.simulation.traffic import Job
from workers.generation.throughput import Throughput


@dataclass(slots=True, eq=False)
class Worker:
    """One GPU worker, which measures itself as real ones do."""

    name: str
    zone: int
    pool: "Pool"
    engine: Engine
    throughput: Throughput = field(default_factory=lambda: Throughput(0.0))
    is_alive: bool = True
    drain: float | None = None  # as the pool has added it up
    pace: float | None = None
    paces: dict[str, float] = field(default_factory=dict)  # by tier
    slow_paces: dict[str, float] = field(default_factory=dict)
    _brought: float = 0.0

    def advance(self, now: float) -> None:
        """Let the engine run, and measure it."""
        if now <= self.engine.now:
            return
        was_saturated = self.engine.is_saturated
        self.engine.advance(now)
        self.throughput.take("all", self.engine.output_tokens - self._brought, now)  # type: ignore[arg-type]  # part of a token
        self._brought = self.engine.output_tokens
        self.throughput.step(now, is_saturated=was_saturated)

    def note_end(self, job: Job, taken_s: float, now: float) -> None:
        """A job has ended here, of which all was computed here."""
        self.throughput.end(
            job.tier, reserved=job.cost, real=job.prompt + job.output, residence_s=now - taken_s, length=job.output
        )
        self.report()

    def report(self) -> None:
        """Renew the lease: the pool's figures have this worker's from now on, while it lives."""
        capacity, pace = self.throughput.capacity, self.throughput.seconds_per_token
        drain = None if capacity is None else capacity / self.throughput.token_yield
        self.pool.drains.replace(self.drain, drain)
        self.pool.paces.replace(self.pace, pace)
        self.drain, self.pace = drain, pace
        self._report_paces(self.throughput.paces, self.throughput.slow_paces)

    def die(self) -> None:
        """Its figures die with it; who comes back in its place has none yet."""
        self.is_alive = False
        self.pool.drains.replace(self.drain, None)
        self.pool.paces.replace(self.pace, None)
        self.drain = self.pace = None
        self._report_paces({}, {})
        for listening in (*self.pool.listening.values(), *self.pool.listening_full.values()):
            listening.pop(self.name, None)

    def _report_paces(self, now: dict[str, float], slow: dict[str, float]) -> None:
        for tier in TIERS:
            self.pool.tier_paces[tier].replace(self.paces.get(tier), now.get(tier))
            self.pool.slow_paces[tier].replace(self.slow_paces.get(tier), slow.get(tier))
        self.paces, self.slow_paces = now, slow

    def start_again(self, now: float) -> None:
        """A new incarnation."""
        self.is_alive = True
        self.engine.now = now
        self.throughput = Throughput(now)


@dataclass(slots=True)
class Sum:
    """Of figures that some workers have."""

    total: float = 0.0
    count: int = 0
    last_mean: float | None = None  # while there were any

    @property
    def mean(self) -> float | None:
        """None where there never was one."""
        return self.total / self.count if self.count else self.last_mean

    def replace(self, before: float | None, now: float | None) -> None:
        """Exchange one worker's part."""
        if before is not None:
            self.last_mean = self.mean
            self.total, self.count = self.total - before, self.count - 1
        if now is not None:
            self.total, self.count = self.total + now, self.count + 1
        if self.count == 0:
            self.total = 0.0


def _by_tier() -> dict[str, Sum]:
    return {tier: Sum() for tier in TIERS}


def _means(sums: dict[str, Sum]) -> dict[str, float]:
    return {tier: each.mean for tier, each in sums.items() if each.mean is not None}


@dataclass(slots=True)
class Pool:
    """The workers of one model, and what is known of their queue."""

    name: str
    kind: Spec
    queue: JobQueue
    workers: list[Worker] = field(default_factory=list)
    # By tier, who has room for it and waits for the bell; first who has listened longest.
    listening: dict[str, dict[str, Worker]] = field(default_factory=lambda: {tier: {} for tier in TIERS})
    # The same of those who have room only for tenants that may take it from others.
    listening_full: dict[str, dict[str, Worker]] = field(default_factory=lambda: {tier: {} for tier in TIERS})
    jobs: Counter[str] = field(default_factory=Counter)  # that wait, by tier
    tokens: Counter[str] = field(default_factory=Counter)
    busy_at: dict[str, float] = field(default_factory=dict)  # tier -> when it last had work
    num_alive: int = 0
    drains: Sum = field(default_factory=Sum)
    paces: Sum = field(default_factory=Sum)
    tier_paces: dict[str, Sum] = field(default_factory=_by_tier)
    slow_paces: dict[str, Sum] = field(default_factory=_by_tier)

    @property
    def waiting(self) -> int:
        """Nominations that nobody has claimed."""
        return self.jobs.total()

    def wait(self, tier: str, cost: int) -> None:
        """A nomination stands in the queue."""
        self.jobs[tier] += 1
        self.tokens[tier] += cost

    def wait_no_more(self, tier: str, cost: int) -> None:
        """It was claimed."""
        self.jobs[tier] -= 1
        self.tokens[tier] -= cost

    def look(self, now: float) -> None:
        """Note which tiers have work."""
        self.busy_at |= {tier: now for tier in TIERS if self.jobs[tier]}

    def listen(self, worker: Worker, rooms: dict[str, list[Room]]) -> None:
        """It waits for the bell of the tiers that it has room for; where it stood already it keeps its place.

        Where it has room only for tenants that may take it from others, it waits for theirs.
        """
        for tier, levels in rooms.items():
            has_room = [room.tokens > 0 and room.jobs > 0 for room in levels]
            for listening, hears in (
                (self.listening[tier], has_room[-1]),
                (self.listening_full[tier], has_room[0] and not has_room[-1]),
            ):
                if hears:
                    listening.setdefault(worker.name, worker)
                else:
                    listening.pop(worker.name, None)

    def depth(self) -> dict[str, Depth]:
        """What `JobQueue.depth` has to say."""
        return {tier: Depth(self.jobs[tier], self.tokens[tier]) for tier in TIERS}

    def load(self, tenants: dict[str, tuple[int, float]], now: float, busy_s: float) -> PoolLoad:
        """As the API adds it up from the queue and the leases (`app/jobs/loads.py`): who has no figure counts as the mean of the others."""
        unmeasured = (self.num_alive - self.drains.count) * (self.drains.mean or 0.0)
        tiers = {tier: Backlog(self.jobs[tier], self.tokens[tier], *tenants[tier]) for tier in TIERS}
        busy = frozenset(tier for tier, at in self.busy_at.items() if at > now - busy_s)
        paces, slow = _means(self.tier_paces), _means(self.slow_paces)
        drain = self.drains.total + unmeasured or None
        return PoolLoad(tiers, TIER_WEIGHTS, self.num_alive, drain, self.paces.mean, paces, slow, busy)
