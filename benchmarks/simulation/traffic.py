"""Who asks for what, and when? A day of jobs, drawn from a seed."""

import math
from array import array
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from uuid import UUID

from app.queue.fairness import COMMON_LEVEL, work_of

DAY_S = 86_400.0
JOBS_A_WORKER = (
    1_000  # in a day of full length; fewer jobs a worker make a shorter day, so that the load stays the same
)

_SWING = 0.6  # the busiest moment has (1 + swing) times the mean rate, the quietest (1 - swing) times
_PEAK = 15 / 24  # of the day
_NUM_BURSTS = 40
_IN_BURSTS = 0.12  # share of the day's jobs
_BURST = (2 / 1440, 10 / 1440)  # length, as a share of the day
_ZIPF = 1.1
_MAX_CONTEXT = 131_072  # tokens; prompt and output together
_PROFILE_STEPS = 1_440


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lognormal lengths of a tier's jobs, in tokens."""

    prompt: float  # median
    prompt_sigma: float
    output: float  # median
    output_sigma: float


# Share of the jobs, and how long they are: agents and reasoning rather than chat, or 1,000 GPUs would idle at a million jobs a day.
TIERS = {
    "interactive": (0.5, Lengths(4_000, 1.0, 1_500, 0.8)),
    "standard": (0.3, Lengths(8_000, 1.0, 8_000, 0.8)),
    "batch": (0.2, Lengths(16_000, 1.0, 20_000, 0.8)),
}


@dataclass(slots=True)
class Job:
    """What a caller wants, and how far it has come."""

    id: UUID
    arrives_s: float
    pool: str
    tier: str
    tenant: str
    prompt: int  # tokens
    output: int  # tokens that it will really bring
    max_tokens: int  # what the caller allows; at least `output`
    gen: int = 1
    done: int = 0  # tokens of output that readers have
    level: int = COMMON_LEVEL  # of its claim
    accepted_s: float | None = None
    num_refused: int = 0  # answers
    started_s: float | None = None
    first_token_s: float | None = None

    @property
    def work(self) -> float:
        """What it really costs, as the queue counts it at the end; nothing is found in a prefix cache."""
        return work_of(self.prompt, 0, self.output)

    @property
    def cost(self) -> int:
        """Tokens by which the queue files it."""
        return self.prompt + self.max_tokens


def weight_of(tenant: str) -> int:
    """A third of the tenants each has weight 1, 2 and 4; one without a number has 1."""
    number = tenant.rpartition("-")[2]
    return (1, 2, 4)[int(number) % 3] if number.isdigit() else 1


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it. All follows from these."""

    seed: int
    num_jobs: int
    num_workers: int
    num_tenants: int
    pools: dict[str, float]  # share of the jobs

    @property
    def tenants(self) -> list[str]:
        """First the one that asks most."""
        return [f"tenant-{i}" for i in range(self.num_tenants)]

    @property
    def day_s(self) -> float:
        """Length of the day."""
        return DAY_S * self.num_jobs / self.num_workers / JOBS_A_WORKER


def jobs_of(plan: Plan) -> Iterator[Job]:
    """The day's jobs in the order of their arrival. The same plan gives the same jobs."""
    random = Random(f"penstock {plan.seed}")
    bursts = _bursts(plan, random)
    times, sources = _times(plan, bursts, random)
    tenants = plan.tenants
    zipf = list(accumulate((i + 1) ** -_ZIPF for i in range(plan.num_tenants)))
    tiers = list(TIERS)
    of_tiers = list(accumulate(share for share, _ in TIERS.values()))
    pools, of_pools = list(plan.pools), list(accumulate(plan.pools.values()))
    for i in sorted(range(len(times)), key=times.__getitem__):
        if sources[i] < 0:
            pool = random.choices(pools, cum_weights=of_pools)[0]
            tier = random.choices(tiers, cum_weights=of_tiers)[0]
            tenant = tenants[bisect(zipf, random.random() * zipf[-1], hi=plan.num_tenants - 1)]
        else:
            burst = bursts[sources[i]]
            pool, tier, tenant = burst.pool, burst.tier, burst.tenant
        lengths = TIERS[tier][1]
        prompt = _length(random, lengths.prompt, lengths.prompt_sigma, _MAX_CONTEXT // 2)
        output = _length(random, lengths.output, lengths.output_sigma, _MAX_CONTEXT // 2)
        allowed = min(_MAX_CONTEXT - prompt, int(output * (1 + random.expovariate(1.0))))
        yield Job(UUID(int=random.getrandbits(128)), times[i], pool, tier, tenant, prompt, output, max(output, allowed))


@dataclass(frozen=True, slots=True)
class _Burst:
    """One tenant's flood of like jobs."""

    begin_s: float
    length_s: float
    pool: str
    tier: str
    tenant: str


def _bursts(plan: Plan, random: Random) -> list[_Burst]:
    return [
        _Burst(
            random.random() * plan.day_s * (1 - _BURST[1]),
            random.uniform(*_BURST) * plan.day_s,
            random.choices(list(plan.pools), weights=list(plan.pools.values()))[0],
            random.choices(list(TIERS), weights=[share for share, _ in TIERS.values()])[0],
            f"tenant-{random.randrange(plan.num_tenants)}",
        )
        for _ in range(_NUM_BURSTS)
    ]


def _times(plan: Plan, bursts: list[_Burst], random: Random) -> tuple["array[float]", "array[int]"]:
    """When each job arrives, and the number of its burst or -1.

    Of a Poisson process whose count is known, the points are independent draws from its rate.
    """
    edges = [i / _PROFILE_STEPS for i in range(_PROFILE_STEPS + 1)]
    rate = [1 + _SWING * math.cos(2 * math.pi * (edge - _PEAK)) for edge in edges[:-1]]
    summed = list(accumulate(rate))
    times, sources = array("d"), array("h")
    for _ in range(plan.num_jobs):
        if random.random() < _IN_BURSTS:
            which = random.randrange(len(bursts))
            times.append(bursts[which].begin_s + random.random() * bursts[which].length_s)
            sources.append(which)
        else:
            step = bisect(summed, random.random() * summed[-1], hi=_PROFILE_STEPS - 1)
            times.append((edges[step] + random.random() / _PROFILE_STEPS) * plan.day_s)
            sources.append(-1)
    return times, sources


def _length(random: Random, median: float, sigma: float, most: int) -> int:
    return max(1, min(most, round(random.lognormvariate(math.log(median), sigma))))
