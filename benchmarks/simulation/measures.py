"""What did the day show? Waits by tier, the gap between tenants, what a minute cost Redis, GPU hours."""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.simulation.traffic import weight_of

FAIR_WINDOW_S = 300.0

Shelf = tuple[str, str]  # pool, tier


class Waits:
    """Seconds, many of them."""

    def __init__(self) -> None:
        self._values = array("d")
        self._is_sorted = False

    def add(self, seconds: float) -> None:
        """One more."""
        self._values.append(seconds)
        self._is_sorted = False

    def __len__(self) -> int:
        return len(self._values)

    def quantile(self, q: float) -> float:
        """The least value that at least q of all don't pass; NaN without any."""
        if not self._values:
            return math.nan
        if not self._is_sorted:
            self._values = array("d", sorted(self._values))
            self._is_sorted = True
        return self._values[max(0, math.ceil(q * len(self._values)) - 1)]

    def share_over(self, limit: float) -> float:
        """How many of them are longer."""
        return sum(value > limit for value in self._values) / len(self._values) if self._values else 0.0


@dataclass(frozen=True, slots=True)
class Gap:
    """How far two tenants of a shelf were apart in a window: work by weight."""

    work: float
    bound: float
    of_jobs: float  # in the largest jobs of the shelf, by weight
    shelf: Shelf | None


class Fairness:
    """In each window: of the tenants that had work waiting all through it, how far apart is the work that they were given, by weight?

    Kept from what callers and workers saw, not from the queue's own counters: a job's whole real work counts when it is claimed, and is
    taken back where its worker is lost. The bound is that of Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024:
    2 max(work of the longest prompt, work of all output that runs at once).
    """

    def __init__(self, most_work: Mapping[str, float]) -> None:
        self._most_work = most_work  # of what runs at once in a pool
        self._since: dict[Shelf, dict[str, float]] = defaultdict(dict)  # tenant -> since when its queue isn't empty
        self._weights: Counter[Shelf] = Counter()  # of the tenants that have work waiting
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._given: dict[Shelf, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._largest: dict[Shelf, float] = defaultdict(float)
        self._begin = 0.0
        self.widest = Gap(0.0, 0.0, 0.0, None)  # by its part of the bound
        self.num_windows = 0  # in which at least two tenants had work waiting all the while

    def waits(self, now: float, shelf: Shelf, tenant: str) -> None:
        """A new job stands in the queue."""
        self._counts[*shelf, tenant] += 1
        if tenant not in self._since[shelf]:
            self._since[shelf][tenant] = now
            self._weights[shelf] += weight_of(tenant)

    def waits_no_more(self, shelf: Shelf, tenant: str) -> None:
        """It was claimed."""
        self._counts[*shelf, tenant] -= 1
        if not self._counts[*shelf, tenant]:
            del self._counts[*shelf, tenant]
            del self._since[shelf][tenant]
            self._weights[shelf] -= weight_of(tenant)

    def is_given(self, shelf: Shelf, tenant: str, work: float) -> None:
        """A worker took a job of so much work by weight; negative: it is gone with its work."""
        self._largest[shelf] = max(self._largest[shelf], work)
        self._given[shelf][tenant] += work

    def num_waiting(self, shelf: Shelf, tenant: str) -> int:
        """Jobs of this tenant."""
        return self._counts.get((*shelf, tenant), 0)

    def tenants_of(self, shelf: Shelf) -> tuple[int, float]:
        """How many have work waiting, and their weights together."""
        return len(self._since[shelf]), float(self._weights[shelf])

    def close_window(self, now: float) -> None:
        """Compare, and begin anew."""
        for shelf, since in self._since.items():
            given = [self._given[shelf][tenant] for tenant, at in since.items() if at <= self._begin]
            if len(given) < 2:
                continue
            self.num_windows += 1
            gap, bound = max(given) - min(given), 2 * self._most_work[shelf[0]]
            if gap * self.widest.bound > self.widest.work * bound or self.widest.shelf is None:
                self.widest = Gap(gap, bound, gap / self._largest[shelf] if self._largest[shelf] else 0.0, shelf)
        self._given.clear()
        self._begin = now


@dataclass(slots=True)
class Traffic:
    """Calls of Redis in virtual time, minute by minute."""

    by_minute: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))

    def call(self, now: float, name: str, count: float = 1) -> None:
        """So many calls."""
        self.by_minute[name][int(now // 60)] += count

    def total(self, name: str) -> float:
        """In the whole day."""
        return sum(self.by_minute[name].values())

    def peak_per_s(self, name: str) -> float:
        """In the busiest minute."""
        return max(self.by_minute[name].values(), default=0) / 60
