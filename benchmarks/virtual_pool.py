"""How does a pool share its engine? The real queue in a real Redis and the real scheduler of an engine, under a virtual clock.

The engine makes its tokens up (`workers.engine.null`): a step takes a fixed time and feeds at most so many tokens. Everything else is
what runs in production: enqueue, claim, ack, true_up, admission, preemption.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from uuid import UUID

from app.ids import new_id
from app.queue.fairness import INPUT_WEIGHT, LEVELS, OUTPUT_WEIGHT, Terms, credit_of, lead_of, priority_of, work_of
from app.queue.places import TIER_WEIGHTS
from app.queue.streams import JobQueue, Nomination, Room, Work
from app.redis import Redis
from workers.engine.config import EngineConfig
from workers.engine.null import NullEngine
from workers.engine.protocol import EngineStats, Request, SamplingParams, StepOutput

TIERS = tuple(TIER_WEIGHTS)
STEP_S = 0.02
NUM_SEQS = 32
NUM_BLOCKS = 300
BLOCK = 16
CAPACITY = NUM_BLOCKS * BLOCK  # tokens


@dataclass(slots=True)
class Job:
    """One job of the play: what it asks for, what it will really generate, and when what happened to it."""

    tenant: str
    tier: str
    at_s: float
    prompt: int
    output: int
    asked: int
    id: UUID = field(default_factory=new_id)
    queue_tenant: str = ""  # as whose the queue knows it; its own where empty
    started_s: float = -1.0
    first_token_s: float = -1.0
    num_generated: int = 0

    @property
    def cost(self) -> int:
        """What the nomination says."""
        return self.prompt + self.asked


@dataclass(slots=True)
class Moment:
    """After a step: work done so far by tenant, and how many of its jobs wait."""

    at_s: float
    work: dict[str, float]
    waiting: dict[str, int]


class Clock:
    """Seconds since the beginning; the engine's steps move it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return 1e9 + self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class VirtualPool:
    """One worker and its queue, playing jobs."""

    def __init__(self, redis: Redis, name: str) -> None:
        self.clock = Clock()
        self.queue = JobQueue(redis, name, now=self.clock)
        self.engine = NullEngine(
            EngineConfig(
                engine="null", num_blocks=NUM_BLOCKS, block_size=BLOCK, max_num_seqs=NUM_SEQS, null_step_s=STEP_S,
                prefix_cache=False, max_model_len=CAPACITY // 4,
            ),
            sleep=self.clock.sleep,
        )  # fmt: skip
        self.history: list[Moment] = []
        self._work: dict[str, float] = {}
        self._waiting: dict[str, int] = {}
        self._known: dict[str, Job] = {}

    async def play(self, jobs: list[Job], until_s: float, weights: dict[str, int] | None = None) -> None:
        """Submit each job at its time and run until `until_s`."""
        await self.queue.open_epoch("play")
        await self.queue.share({tenant: Terms(weight) for tenant, weight in (weights or {}).items()})
        coming = deque(sorted(jobs, key=lambda job: job.at_s))
        for job in jobs:
            self._known[job.id.hex] = job
            self._work.setdefault(job.tenant, 0.0)
            self._waiting.setdefault(job.tenant, 0)
        while self.clock.now < until_s and (coming or any(self._waiting.values()) or self.engine.has_work()):
            await self._submit(coming)
            if any(self._waiting.values()):
                await self._claim()
            if self.engine.has_work():
                await self._take(self.engine.step())
                self.history.append(Moment(self.clock.now, dict(self._work), dict(self._waiting)))
            elif coming:
                self.clock.now = max(self.clock.now, coming[0].at_s)

    async def _submit(self, coming: deque[Job]) -> None:
        due = []
        while coming and coming[0].at_s <= self.clock.now:
            job = coming.popleft()
            due.append(Nomination(job.id, 1, job.tier, job.queue_tenant or job.tenant, job.cost))
            self._waiting[job.tenant] += 1
        for start in range(0, len(due), 1000):
            await self.queue.enqueue(due[start : start + 1000])

    async def _claim(self) -> None:
        stats = self.engine.stats()
        rooms = {}
        for rank, tier in enumerate(TIERS):
            rooms[tier] = [_room(stats, priority_of(rank, level)) for level in range(LEVELS)]
        jobs = max((room.jobs for levels in rooms.values() for room in levels if room.tokens > 0), default=0)
        if jobs == 0:
            return
        nominated = await self.queue.claim(
            "play", max_jobs=jobs, room=rooms, lead=lead_of(stats.held_tokens), credit=credit_of(stats.held_tokens)
        )
        await self.queue.ack([(each.job_id, each.gen) for each in nominated])
        for each in nominated:
            job = self._known[each.job_id.hex]
            job.started_s = self.clock.now
            self._waiting[job.tenant] -= 1
            self.engine.add(
                Request(
                    id=each.job_id.hex,
                    prompt_ids=[65] * job.prompt,
                    sampling=SamplingParams(max_tokens=job.output),
                    priority=priority_of(TIERS.index(job.tier), each.level),
                )
            )

    async def _take(self, output: StepOutput) -> None:
        assert not output.failed, output.failed
        ended = []
        for delta in output.deltas:
            job = self._known[delta.request_id]
            if job.first_token_s < 0:
                job.first_token_s = self.clock.now
                self._work[job.tenant] += INPUT_WEIGHT * job.prompt
            job.num_generated += len(delta.token_ids)
            self._work[job.tenant] += OUTPUT_WEIGHT * len(delta.token_ids)
            if delta.finish_reason:
                ended.append(Work(job.id, work_of(job.prompt, 0, job.num_generated)))
        await self.queue.true_up(ended)


def _room(stats: EngineStats, priority: int) -> Room:
    held = sum(load.sequences for each, load in stats.load.items() if each <= priority)
    return Room(stats.room_for(priority), max(0, stats.sequence_capacity - held))


def service_gap(history: list[Moment], weights: dict[str, int]) -> float:
    """The most by which weighted work of two tenants drifted apart while both had jobs waiting all the time."""
    tenants = list(history[0].work) if history else []
    largest = 0.0
    for i, one in enumerate(tenants):
        for other in tenants[i + 1 :]:
            lowest = highest = None
            for before, now in pairwise(history):
                # Both had work waiting at the end of the last step and of this one.
                if not (before.waiting[one] and before.waiting[other] and now.waiting[one] and now.waiting[other]):
                    lowest = highest = None
                    continue
                apart = now.work[one] / weights[one] - now.work[other] / weights[other]
                lowest = apart if lowest is None else min(lowest, apart)
                highest = apart if highest is None else max(highest, apart)
                largest = max(largest, highest - lowest)
    return largest
