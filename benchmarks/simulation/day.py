"""How does a fleet get through a day? Arrivals, admission, the real queue, workers that claim, engines that take time, a zone that is lost."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast
from uuid import UUID

from app.queue.fairness import OUTPUT_WEIGHT
from app.queue.places import TIER_WEIGHTS, place_again
from app.queue.streams import Depth, JobQueue, Nomination, Work
from app.redis import Redis
from benchmarks.simulation.admission import Ask, admit
from benchmarks.simulation.engine import POOLS, Engine, Spec, work_s
from benchmarks.simulation.loop import EventLoop
from benchmarks.simulation.measures import FAIR_WINDOW_S, Fairness, Traffic, Waits
from benchmarks.simulation.scripts import BlockingScripts
from benchmarks.simulation.traffic import Job, Plan, jobs_of, weight_of

NUM_ZONES = 3
LOST_AT, LOST_FOR = 14 / 24, 2 / 24  # of the day
LOSS_SEEN_S = 17.0  # lease_ttl_s and reap_every_s: until a lost worker's jobs wait again
_LOOK_S = 2.0  # how often admission reads the queue's depth
_DRAIN_S = 120.0  # over which the drain is smoothed
_MEASURED_S = 30.0  # of a full pool, before its drain is believed
_MAX_CLAIM = 64
_SAMPLE = 5_000  # jobs by which pools are sized


@dataclass(slots=True)
class Worker:
    """One GPU worker."""

    name: str
    zone: int
    pool: "Pool"
    engine: Engine
    is_alive: bool = True
    is_listening: bool = False  # for the bell

    def room(self) -> tuple[int, int]:
        """(jobs, tokens) as `workers/generation/claimer.py` asks for them."""
        most = self.engine.kind.max_seqs
        jobs = most + max(1, most // 8) - self.engine.num_seqs
        tokens = self.engine.token_room if self.engine.num_seqs else max(1, self.engine.token_room)
        return max(0, min(jobs, _MAX_CLAIM)), tokens


@dataclass(slots=True)
class Pool:
    """The workers of one model, and what is known of their queue."""

    name: str
    kind: Spec
    queue: JobQueue
    workers: list[Worker] = field(default_factory=list)
    listening: deque[Worker] = field(default_factory=deque)  # first the one that has listened longest
    waiting: int = 0  # nominations that nobody has claimed
    depths: dict[str, Depth] = field(default_factory=lambda: dict.fromkeys(TIER_WEIGHTS, Depth(0, 0)))
    num_alive: int = 0
    claimed: int = 0  # tokens, since the last look
    was_full: bool = False  # all the while since the last look: work waited, and nobody listened
    num_full: int = 0  # looks that found it so
    drain_of_worker: float = 0.0  # tokens a second, of those looks


class Day:
    """One day from its first job to its last; `run` and then read it off.

    The queue's clock is the day's. What still asks Redis for its own only notes it for `renominate`, which isn't called.
    """

    def __init__(self, plan: Plan, client: BlockingScripts, *, loses_zone: bool, say: Callable[[str], None]) -> None:
        self.plan, self.loses_zone = plan, loses_zone
        self.loop = EventLoop()
        self.waits = {tier: Waits() for tier in TIER_WEIGHTS}  # arrival to start
        self.first_tokens = {tier: Waits() for tier in TIER_WEIGHTS}
        self.comebacks = Waits()  # from a worker's loss to the next start
        self.traffic = Traffic()
        self.offered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.num_ended = self.num_lost = self.most_waiting = self.output_tokens = 0
        self.ends_twice = 0
        self.last_end_s = 0.0
        self.busy_s = self.over_s = 0.0  # of all workers, in the day's length
        self.provisioned_s = 0.0
        self.pools = {
            name: Pool(name, kind, JobQueue(cast("Redis", client), name, now=lambda: self.loop.now))
            for name, (_, kind) in POOLS.items()
        }
        self._client, self._say = client, say
        self._jobs = jobs_of(plan)
        self._live: dict[UUID, Job] = {}
        self._lost_at: dict[UUID, float] = {}
        self._is_open = True  # more will arrive
        for pool, count in workers_of(plan).items():
            self._staff(self.pools[pool], count)
        self.fairness = Fairness(
            {
                pool.name: OUTPUT_WEIGHT * pool.kind.kv_tokens * len(pool.workers)  # more than any prompt
                for pool in self.pools.values()
            }
        )

    async def run(self) -> None:
        """The whole day, and what is left of it afterwards."""
        for pool in self.pools.values():
            for worker in pool.workers:
                self._listen(worker)
        self._plan_arrival()
        self.loop.at(_LOOK_S, self._look)
        self.loop.at(FAIR_WINDOW_S, self._compare)
        self.loop.at(self.plan.day_s, self._close_day)
        for hour in range(1, 25):
            self.loop.at(self.plan.day_s * hour / 24, partial(self._tell, hour))
        if self.loses_zone:
            self.loop.at(self.plan.day_s * LOST_AT, self._lose_zone)
        await self.loop.run()
        self._client.settle()

    @property
    def num_live(self) -> int:
        """Accepted and not ended."""
        return len(self._live)

    def _staff(self, pool: Pool, count: int) -> None:
        pool.workers = [Worker(f"{pool.name}-{i}", i % NUM_ZONES, pool, Engine(pool.kind)) for i in range(count)]
        pool.num_alive = count

    # --- arrival -----------------------------------------------------------------------------------------------------

    def _plan_arrival(self) -> None:
        job = next(self._jobs, None)
        if job is None:
            self._is_open = False
        else:
            self.loop.at(job.arrives_s, partial(self._arrive, job))

    async def _arrive(self, job: Job) -> None:
        self._plan_arrival()
        self.offered[job.tier] += 1
        pool, shelf = self.pools[job.pool], (job.pool, job.tier)
        if self._is_refused(pool, job):
            self.refused[job.tier] += 1
            return
        self._live[job.id] = job
        self.fairness.waits(self.loop.now, shelf, job.tenant)
        depth = pool.depths[job.tier]
        pool.depths[job.tier] = Depth(depth.jobs + 1, depth.tokens + job.cost)
        await self._nominate(pool, [Nomination(job.id, job.gen, job.tier, job.tenant, job.cost)])

    def _is_refused(self, pool: Pool, job: Job) -> bool:
        shelf, depth = (job.pool, job.tier), pool.depths[job.tier]
        mean = depth.tokens / depth.jobs if depth.jobs else 0.0
        own = round(self.fairness.num_waiting(shelf, job.tenant) * mean)
        if pool.waiting == 0:
            return False
        is_measured = pool.num_full * _LOOK_S >= _MEASURED_S and pool.drain_of_worker > 0
        drain = pool.drain_of_worker * pool.num_alive if is_measured else None
        return (
            admit(pool.depths, drain, Ask(job.tier, job.cost, own, max(1, self.fairness.num_tenants(shelf))))
            is not None
        )

    async def _nominate(self, pool: Pool, nominations: Sequence[Nomination]) -> None:
        self._client.foresee(len(nominations))
        await pool.queue.enqueue(nominations)
        self.traffic.call(self.loop.now, "enqueue")
        pool.waiting += len(nominations)
        self.most_waiting = max(self.most_waiting, sum(each.waiting for each in self.pools.values()))
        while pool.waiting and pool.listening:
            worker = pool.listening.popleft()
            worker.is_listening = False
            if worker.is_alive:
                await self._claim(worker)

    # --- work --------------------------------------------------------------------------------------------------------

    def _listen(self, worker: Worker) -> None:
        if not worker.is_listening:
            worker.is_listening = True
            worker.pool.listening.append(worker)

    async def _claim(self, worker: Worker) -> None:
        """Claim until there is no more room or work; then listen, if there is room."""
        pool, engine = worker.pool, worker.engine
        engine.advance(self.loop.now)
        while min(room := worker.room()) > 0:
            if not pool.waiting:
                self.traffic.call(self.loop.now, "empty claim")  # which a worker makes before it listens; not made here
                self._listen(worker)
                break
            max_jobs, tokens = room
            got = await pool.queue.claim(worker.name, max_jobs=max_jobs, room=tokens)
            if not got:
                raise AssertionError(f"{pool.waiting} jobs wait in {pool.name}, and the queue gives none")
            self.traffic.call(self.loop.now, "claim")
            engine.add([self._start(pool, each) for each in got])
            self._client.foresee(len(got))
            await pool.queue.ack([(each.job_id, each.gen) for each in got])
            self.traffic.call(self.loop.now, "ack")
        self._plan_step(worker)

    def _start(self, pool: Pool, nomination: Nomination) -> Job:
        job, now = self._live[nomination.job_id], self.loop.now
        pool.waiting -= 1
        pool.claimed += nomination.cost
        if nomination.gen != job.gen:
            raise AssertionError(f"{nomination} isn't of gen {job.gen}")
        shelf = (pool.name, job.tier)
        self.fairness.is_given(shelf, job.tenant, job.work / weight_of(job.tenant))
        if nomination.place == job.tier:
            self.fairness.waits_no_more(shelf, job.tenant)
        if job.started_s is None:
            job.started_s = now
            self.waits[job.tier].add(now - job.arrives_s)
        else:
            self.comebacks.add(now - self._lost_at.pop(job.id))
        return job

    def _plan_step(self, worker: Worker) -> None:
        """The next change in this engine; what was planned before is void."""
        worker.engine.version += 1
        at = worker.engine.next_s()
        if at is not None:
            self.loop.at(max(at, self.loop.now), partial(self._step, worker, worker.engine.version))

    async def _step(self, worker: Worker, version: int) -> None:
        engine, now = worker.engine, self.loop.now
        if engine.version != version:
            return
        engine.advance(now)
        begun, ended = engine.take_events()
        for job in begun:
            if job.first_token_s is None:
                job.first_token_s = now
                self.first_tokens[job.tier].add(now - job.arrives_s)
        for job in ended:
            self.ends_twice += self._live.pop(job.id, None) is None
            self.num_ended += 1
            self.output_tokens += job.output
            self.last_end_s = now
            self._client.foresee(1)
            await worker.pool.queue.true_up([Work(job.id, job.work)])
            self.traffic.call(now, "true_up")
        if ended and not worker.is_listening:
            await self._claim(worker)
        else:
            self._plan_step(worker)

    # --- what passes by itself ---------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Read the depths, as the API does, and measure what drains from pools that have all the work that they can take."""
        for pool in self.pools.values():
            is_full = pool.waiting > 0 and not pool.listening
            if is_full and pool.was_full and pool.num_alive:
                pool.num_full += 1
                drain = pool.claimed / _LOOK_S / pool.num_alive
                pool.drain_of_worker += (drain - pool.drain_of_worker) * max(_LOOK_S / _DRAIN_S, 1 / pool.num_full)
            pool.was_full, pool.claimed = is_full, 0
            if any(depth.jobs for depth in pool.depths.values()):
                pool.depths = await pool.queue.depth()
            self.traffic.call(self.loop.now, "poll", _LOOK_S * sum(each.is_alive for each in pool.listening))
        self._again(_LOOK_S, self._look)

    async def _compare(self) -> None:
        self.fairness.close_window(self.loop.now)
        self._again(FAIR_WINDOW_S, self._compare)

    def _again(self, after_s: float, happening: Callable[[], object]) -> None:
        if self._is_open or self._live:
            self.loop.at(self.loop.now + after_s, happening)  # type: ignore[arg-type]

    async def _close_day(self) -> None:
        now = self.loop.now
        for pool in self.pools.values():
            for worker in pool.workers:
                worker.engine.advance(now)
                self.busy_s += worker.engine.busy_s
                self.over_s += worker.engine.over_s
                self.provisioned_s += now - (self.plan.day_s * LOST_FOR if self._is_of_lost_zone(worker) else 0.0)
                self._plan_step(worker)

    async def _tell(self, hour: int) -> None:
        waiting = sum(pool.waiting for pool in self.pools.values())
        self._say(
            f"hour {hour}: {sum(self.offered.values()):,} of {self.plan.num_jobs:,} jobs have come, "
            f"{sum(self.refused.values()):,} were refused, {waiting:,} wait"
        )

    # --- the loss ----------------------------------------------------------------------------------------------------

    def _is_of_lost_zone(self, worker: Worker) -> bool:
        return self.loses_zone and worker.zone == 0

    async def _lose_zone(self) -> None:
        now = self.loop.now
        for pool in self.pools.values():
            lost: list[Job] = []
            for worker in pool.workers:
                if not self._is_of_lost_zone(worker):
                    continue
                worker.engine.advance(now)
                gone = worker.engine.lose_all()
                for job in gone:
                    self.fairness.is_given((pool.name, job.tier), job.tenant, -job.work / weight_of(job.tenant))
                lost += gone
                worker.is_alive = False
                pool.num_alive -= 1
            self.num_lost += len(lost)
            self._lost_at |= dict.fromkeys((job.id for job in lost), now)
            if lost:
                self.loop.at(now + LOSS_SEEN_S, partial(self._bring_back, pool, lost))
            self.loop.at(now + self.plan.day_s * LOST_FOR + pool.kind.load_s, partial(self._restore, pool))

    async def _bring_back(self, pool: Pool, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.gen += 1
        again = [Nomination(job.id, job.gen, place_again(job.tier), job.tenant, job.cost) for job in jobs]
        pool.depths = await pool.queue.depth()
        await self._nominate(pool, again)

    async def _restore(self, pool: Pool) -> None:
        for worker in pool.workers:
            if not worker.is_alive:
                worker.is_alive, worker.is_listening = True, False
                worker.engine.now = self.loop.now
                pool.num_alive += 1
                await self._claim(worker)


def workers_of(plan: Plan) -> dict[str, int]:
    """So many for each pool that all have the same load."""
    work: Counter[str] = Counter()
    for job in jobs_of(replace(plan, seed=0, num_jobs=_SAMPLE)):
        work[job.pool] += work_s(POOLS[job.pool][1], job)  # type: ignore[assignment]
    whole = sum(work.values())
    counts = {pool: max(1, round(plan.num_workers * work[pool] / whole)) for pool in plan.pools}
    largest = max(counts, key=lambda pool: counts[pool])
    counts[largest] += plan.num_workers - sum(counts.values())
    return counts
