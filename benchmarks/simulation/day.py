"""How does a fleet get through a day? Arrivals, the real admission and queue, workers that claim, engines that take time, a lost zone."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast
from uuid import UUID

from app.jobs.loads import READ_EVERY_S
from app.jobs.states import TIERS
from app.queue.fairness import OUTPUT_WEIGHT, credit_of, lead_of
from app.queue.places import place_again
from app.queue.streams import JobQueue, Nomination, Work
from app.redis import Redis
from benchmarks.simulation.admission import Gate
from benchmarks.simulation.engine import Engine
from benchmarks.simulation.gpus import POOLS, work_s
from benchmarks.simulation.loop import EventLoop
from benchmarks.simulation.measures import FAIR_WINDOW_S, Fairness, Traffic, Waits
from benchmarks.simulation.pool import Pool, Worker
from benchmarks.simulation.scripts import BlockingScripts
from benchmarks.simulation.traffic import Job, Plan, jobs_of, weight_of

NUM_ZONES = 3
LOST_AT, LOST_FOR = 14 / 24, 2 / 24  # of the day
LOSS_SEEN_S = 17.0  # lease_ttl_s and reap_every_s: until a lost worker's jobs wait again
MOST_REFUSALS = 3  # then a caller gives up: the openai client asks again twice
_POLL_S = 1.0  # a worker that waits for the bell looks by itself so often
_COMPARE_S = 60.0  # how often the depth that admission goes by is compared with the queue's
_SAMPLE = 5_000  # jobs by which pools are sized


class Day:
    """One day from its first job to its last; `run` and then read it off.

    The queue's clock is the day's. What still asks Redis for its own only notes it for `renominate`, which isn't called.
    """

    def __init__(self, plan: Plan, client: BlockingScripts, *, loses_zone: bool, say: Callable[[str], None]) -> None:
        self.plan, self.loses_zone = plan, loses_zone
        self.loop = EventLoop()
        self.waits = {tier: Waits() for tier in TIERS}  # acceptance to start
        self.first_tokens = {tier: Waits() for tier in TIERS}
        self.comebacks = Waits()  # from a worker's loss to the next start
        self.traffic = Traffic()
        self.offered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()  # jobs that weren't let in at once
        self.given_up: Counter[str] = Counter()  # those of them that never were
        self.reasons: Counter[str] = Counter()  # of all refusals
        self.retries: Counter[int] = Counter()  # that were let in, by the number of refusals before
        self.retry_after = Waits()
        self.num_ended = self.num_lost = self.most_waiting = self.output_tokens = 0
        self.ends_twice = 0
        self.last_end_s = 0.0
        self.busy_s = 0.0  # of all workers, in the day's length
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
        self._num_coming_back = 0
        for pool, count in workers_of(plan).items():
            self._staff(self.pools[pool], count)
        self.fairness = Fairness(
            {
                pool.name: OUTPUT_WEIGHT * pool.kind.kv_tokens * len(pool.workers)  # more than any prompt
                for pool in self.pools.values()
            }
        )
        self.gate = Gate(self.pools, self.fairness, lambda: self.loop.now, plan.seed)

    async def run(self) -> None:
        """The whole day, and what is left of it afterwards."""
        for pool in self.pools.values():
            for worker in pool.workers:
                pool.listen(worker, worker.engine.rooms())
        self._plan_arrival()
        self.loop.at(READ_EVERY_S, self._look)
        self.loop.at(_POLL_S, self._poll)
        self.loop.at(_COMPARE_S, self._compare_depths)
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
        await self._submit(job)

    async def _submit(self, job: Job) -> None:
        answer, now = self.gate.ask(job), self.loop.now
        if answer is not None:
            self.refused[job.tier] += job.num_refused == 0
            self.reasons[f"{answer.status} {answer.reason}"] += 1
            self.retry_after.add(answer.retry_after_s)
            job.num_refused += 1
            if job.num_refused < MOST_REFUSALS:
                self._num_coming_back += 1
                self.loop.at(now + answer.retry_after_s, partial(self._submit_again, job))
            else:
                self.given_up[job.tier] += 1
            return
        self.retries[job.num_refused] += 1
        job.accepted_s = now
        self._live[job.id] = job
        self.fairness.waits(now, (job.pool, job.tier), job.tenant)
        await self._nominate(self.pools[job.pool], [Nomination(job.id, job.gen, job.tier, job.tenant, job.cost)])

    async def _submit_again(self, job: Job) -> None:
        self._num_coming_back -= 1
        await self._submit(job)

    async def _nominate(self, pool: Pool, nominations: Sequence[Nomination]) -> None:
        self._client.foresee(len(nominations))
        await pool.queue.enqueue(nominations)
        self.traffic.call(self.loop.now, "enqueue")
        tiers = [self._live[each.job_id].tier for each in nominations]
        for tier, each in zip(tiers, nominations, strict=True):
            pool.wait(tier, each.cost)
        self.most_waiting = max(self.most_waiting, sum(each.waiting for each in self.pools.values()))
        for tier in TIERS:
            if tier in tiers:
                await self._ring(pool, tier)
                if pool.jobs[tier] and pool.listening_full[tier]:
                    mine = [each for each in nominations if self._live[each.job_id].tier == tier]
                    is_again = any(each.place != tier for each in mine)
                    if is_again or await pool.queue.is_ahead(tier, list({each.tenant for each in mine})):
                        await self._ring_full(pool, tier, len(mine))

    # --- work --------------------------------------------------------------------------------------------------------

    async def _ring_full(self, pool: Pool, tier: str, rings: int) -> None:
        """As many of those who would have to take the room of others claim as rings come, until the queue gives none."""
        listening = pool.listening_full[tier]
        for _ in range(rings):
            if not listening or not await self._claim(listening.pop(next(iter(listening)))):
                return

    async def _ring(self, pool: Pool, tier: str) -> None:
        """Whoever has listened longest claims, until there is no work, nobody with room for it, or the queue gives none."""
        listening = pool.listening[tier]
        while pool.jobs[tier] and listening:
            worker = listening.pop(next(iter(listening)))
            if not await self._claim(worker):
                return

    async def _claim(self, worker: Worker) -> int:
        """Claim as `claim_forever` of `workers/generation/claimer.py` does, until the queue gives none or there is no room; then listen."""
        pool, engine, claimed = worker.pool, worker.engine, 0
        worker.advance(self.loop.now)
        while True:
            rooms = engine.rooms()
            able = [tier for tier in TIERS if any(room.tokens > 0 and room.jobs > 0 for room in rooms[tier])]
            if not able:
                break
            if not any(pool.jobs[tier] for tier in able):
                self.traffic.call(self.loop.now, "empty claim")  # which a worker makes before it listens; not made here
                break
            max_jobs, held = max(room.jobs for tier in able for room in rooms[tier]), engine.held_tokens
            got = await pool.queue.claim(
                worker.name, max_jobs=max_jobs, room=rooms, lead=lead_of(held), credit=credit_of(held)
            )
            if not got:
                self.traffic.call(self.loop.now, "empty claim")
                break
            claimed += len(got)
            self.traffic.call(self.loop.now, "claim")
            engine.add([self._start(pool, each) for each in got])
            self._client.foresee(len(got))
            await pool.queue.ack([(each.job_id, each.gen) for each in got])
            self.traffic.call(self.loop.now, "ack")
        pool.listen(worker, rooms)
        self._plan_step(worker)
        return claimed

    def _start(self, pool: Pool, nomination: Nomination) -> Job:
        job, now = self._live[nomination.job_id], self.loop.now
        pool.wait_no_more(job.tier, nomination.cost)
        job.level = nomination.level
        if nomination.gen != job.gen:
            raise AssertionError(f"{nomination} isn't of gen {job.gen}")
        shelf = (pool.name, job.tier)
        self.fairness.is_given(shelf, job.tenant, job.work / weight_of(job.tenant))
        if nomination.place == job.tier:
            self.fairness.waits_no_more(shelf, job.tenant)
        if job.started_s is None:
            job.started_s = now
            self.waits[job.tier].add(now - _accepted(job))
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
        engine, now, pool = worker.engine, self.loop.now, worker.pool
        if engine.version != version:
            return
        worker.advance(now)
        begun, ended = engine.take_events()
        for job in begun:
            if job.first_token_s is None:
                job.first_token_s = now
                self.first_tokens[job.tier].add(now - _accepted(job))
                worker.throughput.take("all", job.prompt, now)
        for job in ended:
            self.ends_twice += self._live.pop(job.id, None) is None
            self.num_ended += 1
            self.output_tokens += job.output
            self.last_end_s = now
            if job.gen == 1 and job.started_s is not None:
                worker.note_end(job, job.started_s, now)
            self._client.foresee(1)
            await pool.queue.true_up([Work(job.id, job.work)])
            self.traffic.call(now, "true_up")
        if ended:
            await self._claim(worker)
        else:
            self._plan_step(worker)

    # --- what passes by itself ---------------------------------------------------------------------------------------

    async def _look(self) -> None:
        for pool in self.pools.values():
            pool.look(self.loop.now)
        self._again(READ_EVERY_S, self._look)

    async def _poll(self) -> None:
        """Those who listen look by themselves. Once one has found nothing the others would, too: theirs are only counted."""
        for pool in self.pools.values():
            self.traffic.call(self.loop.now, "poll", len(pool.listening[TIERS[0]]))
            for tier in TIERS:
                await self._ring(pool, tier)
        self._again(_POLL_S, self._poll)

    async def _compare_depths(self) -> None:
        """Admission goes by depths that are counted here.

        Raises:
            AssertionError: the queue counts others.
        """
        for pool in self.pools.values():
            depth = await pool.queue.depth()
            if depth != pool.depth():
                raise AssertionError(f"{pool.name}: {depth} wait in the queue, {pool.depth()} here")
        self._again(_COMPARE_S, self._compare_depths)

    async def _compare(self) -> None:
        self.fairness.close_window(self.loop.now)
        self._again(FAIR_WINDOW_S, self._compare)

    def _again(self, after_s: float, happening: Callable[[], object]) -> None:
        if self._is_open or self._live or self._num_coming_back:
            self.loop.at(self.loop.now + after_s, happening)  # type: ignore[arg-type]

    async def _close_day(self) -> None:
        now = self.loop.now
        for pool in self.pools.values():
            for worker in pool.workers:
                worker.advance(now)
                self.busy_s += worker.engine.busy_s
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
                worker.advance(now)
                gone = worker.engine.lose_all()
                for job in gone:
                    self.fairness.is_given((pool.name, job.tier), job.tenant, -job.work / weight_of(job.tenant))
                lost += gone
                worker.die()
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
        await self._nominate(pool, again)

    async def _restore(self, pool: Pool) -> None:
        for worker in pool.workers:
            if not worker.is_alive:
                worker.start_again(self.loop.now)
                pool.num_alive += 1
                await self._claim(worker)


def _accepted(job: Job) -> float:
    return job.arrives_s if job.accepted_s is None else job.accepted_s


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
