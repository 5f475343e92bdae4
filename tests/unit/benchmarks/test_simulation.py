"""Does virtual time pass as it should, and do the modelled engines, the traffic and the measures say what they promise?"""

from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from types import SimpleNamespace
from typing import cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.states import TIERS
from app.queue.fairness import LEVELS, priority_of
from app.queue.streams import JobQueue, Room
from benchmarks.simulation.admission import Answer, Gate
from benchmarks.simulation.day import workers_of
from benchmarks.simulation.engine import CHUNK, Engine
from benchmarks.simulation.gpus import POOLS, Spec
from benchmarks.simulation.loop import EventLoop
from benchmarks.simulation.measures import Fairness, Gap, Traffic, Waits
from benchmarks.simulation.pool import Pool, Worker
from benchmarks.simulation.traffic import Job, Plan, jobs_of
from workers.generation.claimer import room
from workers.generation.context import WorkerContext

KIND = Spec("any", "any", base_s=0.01, kv_token_s=0.0, prefill_token_s=1e-5, kv_tokens=100_000)
PLAN = Plan(7, 5_000, 20, 50, {name: share for name, (share, _) in POOLS.items()})


def job(number: int = 1, *, prompt: int = 1000, output: int = 100, tier: str = "standard") -> Job:
    return Job(UUID(int=number), 0.0, "small", tier, "acme", prompt, output, 2 * output)


# --- the event loop --------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), max_size=50))
async def test_events_happen_in_the_order_of_their_times_and_ties_in_the_order_of_their_planning(times):
    loop, seen = EventLoop(), []

    async def happen(number: int) -> None:
        seen.append((loop.now, number))

    for number, time in enumerate(times):
        loop.at(time, partial(happen, number))
    await loop.run()
    assert seen == sorted((time, number) for number, time in enumerate(times))


async def test_what_an_event_plans_happens_too_also_at_the_same_moment():
    loop, seen = EventLoop(), []

    async def count(left: int) -> None:
        seen.append(loop.now)
        if left:
            loop.at(loop.now + (left % 2), partial(count, left - 1))

    loop.at(1.0, partial(count, 4))
    await loop.run()
    assert seen == [1.0, 1.0, 2.0, 2.0, 3.0]
    assert loop.num_events == 5


async def test_nothing_is_planned_for_the_past_or_for_never():
    loop = EventLoop()

    async def plan(time: float) -> None:
        with pytest.raises(ValueError, match="can't plan"):
            loop.at(time, partial(plan, time))

    loop.at(5.0, partial(plan, 4.9))
    await loop.run()
    for time in (float("inf"), float("nan")):
        await plan(time)


# --- the engine ------------------------------------------------------------------------------------------------------


def drain(engine: Engine) -> dict[int, tuple[float, float]]:
    """Run on until all have ended; when each had its first token and its end."""
    begins: dict[int, float] = {}
    times = {}
    while (at := engine.next_s()) is not None:
        engine.advance(at)
        evicted = engine.num_evicted
        begun, ended = engine.take_events()
        assert begun or ended or engine.num_evicted > evicted
        begins |= {each.id.int: engine.now for each in begun}
        times |= {each.id.int: (begins[each.id.int], engine.now) for each in ended}
    return times


def test_one_sequence_takes_its_prompt_in_chunks_and_a_step_a_token():
    engine = Engine(KIND)
    engine.add([job(prompt=2 * CHUNK, output=100)])
    ((first, end),) = drain(engine).values()
    assert first == pytest.approx(2 * (0.01 + CHUNK * 1e-5))
    assert end - first == pytest.approx(100 * (0.01 + 20e-6))
    assert engine.busy_s == pytest.approx(end)


def test_a_batch_is_faster_than_one_after_the_other_and_slower_than_one_alone():
    def last_end(count: int) -> float:
        engine = Engine(KIND)
        engine.add([job(i) for i in range(count)])
        return max(end for _, end in drain(engine).values())

    assert last_end(1) < last_end(8) < 8 * last_end(1)


def test_reading_the_keys_and_values_slows_the_steps():
    dear = Engine(Spec("any", "any", 0.01, 1e-7, 1e-5, 100_000))
    cheap = Engine(KIND)
    for engine in (dear, cheap):
        engine.add([job(prompt=50_000)])
    assert drain(dear)[1][1] > drain(cheap)[1][1]


def stats_of(engine: Engine) -> tuple[int, int]:
    return engine.num_displaced, engine.num_evicted


def test_prompts_are_computed_interactive_first():
    engine = Engine(KIND)
    engine.add([job(1, tier="batch"), job(2, tier="interactive")])
    times = drain(engine)
    assert times[2][0] < times[1][0]


def test_a_prompt_without_room_in_the_kv_pool_waits_until_others_have_ended():
    engine = Engine(KIND)
    engine.add([job(1, prompt=60_000), job(2, prompt=60_000)])
    times = drain(engine)
    assert times[2][0] > times[1][1]
    assert stats_of(engine) == (0, 0)


def test_a_pool_that_is_full_evicts_the_last_who_goes_on_where_it_was():
    engine = Engine(KIND)
    jobs = [job(i, prompt=24_500, output=3_000) for i in range(4)]
    engine.add(jobs)
    times = drain(engine)
    assert len(times) == 4
    assert engine.num_displaced == 0
    assert engine.num_evicted > 0
    assert engine.lost_tokens >= 24_500
    assert max(times, key=lambda number: times[number][1]) == 3
    assert 0 < jobs[3].done < 3_000


def test_interactive_work_displaces_batch_work_and_never_its_own_tier():
    engine = Engine(KIND)
    engine.add([job(1, prompt=60_000, output=500, tier="batch"), job(2, prompt=30_000, output=500, tier="interactive")])
    assert engine.next_s() is not None
    engine.advance(engine.next_s() or 0)
    assert [each.id.int for each in engine.take_events()[0]] == [2]
    engine.add([job(3, prompt=50_000, tier="interactive"), job(4, prompt=30_000, tier="interactive")])
    seen = []
    while (at := engine.next_s()) is not None:
        engine.advance(at)
        begun, ended = engine.take_events()
        seen += [f"{each.id.int} ends" for each in ended] + [f"{each.id.int} begins" for each in begun]
    assert engine.num_displaced == 1  # the batch job; 4 waits for one of its own tier to end
    assert seen == ["3 begins", "3 ends", "4 begins", "4 ends", "1 begins", "2 ends", "1 ends"]


@given(
    st.lists(
        st.tuples(st.sampled_from(TIERS), st.integers(1, 20_000), st.integers(1, 500), st.integers(0, LEVELS - 1)),
        min_size=1,
        max_size=90,
    ),
    st.integers(0, 40),
)
def test_rooms_are_what_a_worker_would_claim_for(sizes, num_events):
    engine = Engine(Spec("any", "any", 0.01, 0.0, 1e-6, 300_000, max_seqs=24))
    jobs = {
        i: replace(job(i, prompt=prompt, output=output, tier=tier), level=level)
        for i, (tier, prompt, output, level) in enumerate(sizes)
    }
    engine.add(list(jobs.values()))
    begun: set[int] = set()
    for _ in range(num_events):
        at = engine.next_s()
        if at is None:
            break
        engine.advance(at)
        began, ended = engine.take_events()
        begun |= {each.id.int for each in began}
        for each in ended:
            del jobs[each.id.int]
    hand = {
        number: SimpleNamespace(
            started=SimpleNamespace(priority=priority_of(TIERS.index(each.tier), each.level)),
            cost=each.cost,
            has_output=number in begun,
            num_unfinished=1,
        )
        for number, each in jobs.items()
    }
    info = SimpleNamespace(max_num_seqs=24, num_blocks=300_000, block_size=1)
    stats = engine.stats()
    worker = SimpleNamespace(stats=stats, engine=SimpleNamespace(info=info), hand=hand)
    real, ours = room(cast("WorkerContext", worker)), engine.rooms()
    for tier, level in product(TIERS, range(LEVELS)):
        assert ours[tier][level].jobs == real[tier][level].jobs
        assert ours[tier][level].tokens == pytest.approx(real[tier][level].tokens, abs=15)  # each sum is rounded
    assert engine.held_tokens == pytest.approx(stats.held_tokens, abs=3)
    assert engine.num_seqs == len(jobs)


@given(st.lists(st.tuples(st.integers(1, 30_000), st.integers(1, 3_000)), min_size=1, max_size=20))
def test_all_end_and_the_room_comes_back(sizes):
    engine = Engine(KIND)
    empty = engine.rooms()["batch"]
    engine.add([job(i, prompt=prompt, output=output) for i, (prompt, output) in enumerate(sizes)])
    assert engine.rooms()["batch"][-1].tokens < empty[-1].tokens
    assert len(drain(engine)) == len(sizes)
    assert engine.rooms()["batch"] == empty
    assert engine.num_seqs == 0


def test_a_lost_job_goes_on_from_the_tokens_that_it_had():
    engine = Engine(KIND)
    ours = job(output=100)
    engine.add([ours])
    engine.advance(engine.next_s() or 0)
    engine.take_events()
    engine.advance(engine.now + 40.5 * (0.01 + 20e-6))
    assert engine.lose_all() == [ours]
    assert ours.done == 40
    assert engine.next_s() is None
    again = Engine(KIND)
    again.add([ours])
    ((first, end),) = drain(again).values()
    assert end - first == pytest.approx(60 * (0.01 + 20e-6))


# --- traffic ---------------------------------------------------------------------------------------------------------


def test_a_seed_says_all_of_it():
    assert list(jobs_of(PLAN)) == list(jobs_of(PLAN))
    other = Plan(8, PLAN.num_jobs, PLAN.num_workers, PLAN.num_tenants, PLAN.pools)
    assert next(jobs_of(other)) != next(jobs_of(PLAN))


def test_the_day_has_its_jobs_in_order_and_within_its_length():
    jobs = list(jobs_of(PLAN))
    assert len(jobs) == PLAN.num_jobs
    assert all(one.arrives_s <= two.arrives_s for one, two in pairwise(jobs))
    assert jobs[0].arrives_s >= 0
    assert jobs[-1].arrives_s <= PLAN.day_s
    assert all(each.output <= each.max_tokens for each in jobs)


def test_afternoons_are_busier_than_nights_and_few_tenants_bring_most():
    jobs = list(jobs_of(PLAN))
    of_hours = [0] * 24
    tenants: dict[str, int] = {}
    for each in jobs:
        of_hours[min(23, int(each.arrives_s / PLAN.day_s * 24))] += 1
        tenants[each.tenant] = tenants.get(each.tenant, 0) + 1
    assert sum(of_hours[12:18]) > 2 * sum(of_hours[0:6])
    assert sum(sorted(tenants.values())[-10:]) > len(jobs) / 2


def test_every_pool_has_workers_and_none_is_forgotten():
    for count in (3, 20, 1000):
        plan = Plan(1, 1000 * count, count, 50, PLAN.pools)
        counts = workers_of(plan)
        assert sum(counts.values()) == count
        assert min(counts.values()) >= 1


# --- admission and measures ------------------------------------------------------------------------------------------


class Scene:
    """One pool of one worker, and its gate."""

    def __init__(self, drain_per_s: float | None) -> None:
        self.now = 1000.0
        self.pool = Pool("small", KIND, cast("JobQueue", None), num_alive=1)
        self.pool.drains.replace(None, drain_per_s)
        self.fairness = Fairness({"small": 400.0})
        self.gate = Gate({"small": self.pool}, self.fairness, lambda: self.now, 1)
        self.num = 0

    def wait(self, tenant: str, tier: str, *costs: int) -> None:
        for cost in costs:
            self.pool.wait(tier, cost)
            self.fairness.waits(self.now, ("small", tier), tenant)

    def ask(self, tenant: str = "acme", tier: str = "interactive") -> Answer | None:
        self.num += 1
        return self.gate.ask(Job(UUID(int=self.num), 0.0, "small", tier, tenant, 100, 10, 20))


def test_admission_is_the_apis_with_its_reasons_and_its_times():
    scene = Scene(drain_per_s=100.0)
    scene.wait("acme", "interactive", 2000, 2000)
    answer = scene.ask()  # 40 s, where 30 / 1.5 are the most
    assert answer is not None
    assert (answer.reason, answer.status) == ("tier_wait", 503)
    assert 20 <= answer.retry_after_s <= 23
    later = scene.ask()  # another request isn't told the same time
    assert later is not None
    assert later.retry_after_s > answer.retry_after_s
    assert Scene(drain_per_s=400.0).ask() is None


def test_other_tiers_take_their_share_of_the_rate():
    scene = Scene(drain_per_s=100.0)
    scene.wait("acme", "interactive", 1900)
    assert scene.ask() is None
    scene.wait("acme", "standard", 1)
    assert scene.ask() is not None


def test_a_quiet_tenant_comes_in_where_a_flooding_one_is_refused():
    scene = Scene(drain_per_s=100.0)
    scene.wait("flooder", "interactive", *[1000] * 90)
    scene.wait("other", "interactive", 1000)
    refused = scene.ask("flooder")
    assert refused is not None
    assert (refused.reason, refused.status) == ("share", 429)
    assert scene.ask("quiet") is None


def test_who_comes_back_at_its_time_goes_ahead_of_newcomers():
    scene = Scene(drain_per_s=100.0)
    scene.wait("acme", "interactive", 2000, 2000)
    job = Job(UUID(int=7), 0.0, "small", "interactive", "acme", 100, 10, 20)
    answer = scene.gate.ask(job)
    assert answer is not None
    scene.now += answer.retry_after_s
    scene.pool.wait_no_more("interactive", 2000)
    scene.fairness.waits_no_more(("small", "interactive"), "acme")
    assert scene.gate.ask(job) is None


def test_without_a_measured_drain_nobody_is_refused_for_waits():
    scene = Scene(drain_per_s=None)
    scene.wait("acme", "interactive", *[1000] * 1000)
    assert scene.ask() is None


def test_a_pool_counts_workers_without_figures_as_the_mean_of_the_others():
    pool = Pool("small", KIND, cast("JobQueue", None), num_alive=4)
    for rate in (100.0, 300.0):
        pool.drains.replace(None, rate)
    none_waits = dict.fromkeys(TIERS, (0, 0.0))
    assert pool.load(none_waits, 0.0, 600.0).drain_per_s == pytest.approx(800.0)
    for rate in (100.0, 300.0):
        pool.drains.replace(rate, None)
    assert pool.load(none_waits, 0.0, 600.0).drain_per_s == pytest.approx(4 * 300.0)  # as who died last had it


def test_a_tier_that_had_work_keeps_its_share_for_a_while():
    pool = Pool("small", KIND, cast("JobQueue", None), num_alive=1)
    pool.wait("standard", 10)
    pool.look(100.0)
    pool.wait_no_more("standard", 10)
    none_waits = dict.fromkeys(TIERS, (0, 0.0))
    assert pool.load(none_waits, 699.0, 600.0).busy == {"standard"}
    assert pool.load(none_waits, 700.0, 600.0).busy == set()


def test_a_worker_that_had_all_it_could_take_knows_what_it_serves():
    worker = Worker("small-0", 0, Pool("small", KIND, cast("JobQueue", None), num_alive=1), Engine(KIND))
    jobs = [job(i, prompt=1500, output=200) for i in range(64)]
    worker.engine.add(jobs)
    while (at := worker.engine.next_s()) is not None:
        worker.advance(at)
        for each in worker.engine.take_events()[1]:
            worker.note_end(each, 0.0, at)
    assert worker.throughput.token_yield == pytest.approx(1700 / 1900)
    assert worker.pool.drains.count == 1
    assert worker.pool.drains.total == pytest.approx((worker.throughput.capacity or 0) / worker.throughput.token_yield)
    worker.die()
    assert (worker.pool.drains.count, worker.pool.drains.total, worker.pool.paces.count) == (0, 0.0, 0)


def test_workers_listen_for_tiers_that_they_have_room_for_in_the_order_of_their_coming():
    pool = Pool("small", KIND, cast("JobQueue", None))
    one, two = (Worker(name, 0, pool, Engine(KIND)) for name in ("one", "two"))
    some, none = Room(10, 1), Room(0, 1)
    pool.listen(one, dict.fromkeys(TIERS, [some] * LEVELS))
    pool.listen(two, dict.fromkeys(TIERS, [some] * LEVELS))
    displacing = [some] * (LEVELS - 1) + [none]
    pool.listen(one, {"interactive": [some] * LEVELS, "standard": displacing, "batch": [none] * LEVELS})
    assert {tier: list(each) for tier, each in pool.listening_full.items()} == {
        "interactive": [], "standard": ["one"], "batch": [],
    }  # fmt: skip
    assert {tier: list(each) for tier, each in pool.listening.items()} == {
        "interactive": ["one", "two"], "standard": ["two"], "batch": ["two"],
    }  # fmt: skip
    two.die()
    assert {tier: list(each) for tier, each in pool.listening.items()} == {
        "interactive": ["one"], "standard": [], "batch": [],
    }  # fmt: skip


def test_quantiles_are_values_that_were_seen():
    waits = Waits()
    for value in (3.0, 1.0, 2.0, 4.0):
        waits.add(value)
    assert [waits.quantile(q) for q in (0.0, 0.25, 0.5, 0.95)] == [1.0, 1.0, 2.0, 4.0]
    assert waits.share_over(2.0) == 0.5


def test_the_gap_is_between_those_who_waited_all_the_while():
    fairness, shelf = Fairness({"small": 400.0}), ("small", "batch")
    for tenant in ("a", "b", "late"):
        for _ in range(5):
            fairness.waits(0.0 if tenant != "late" else 150.0, shelf, tenant)
    for tenant, work in (("a", 100.0), ("a", 60.0), ("b", 30.0)):
        fairness.waits_no_more(shelf, tenant)
        fairness.is_given(shelf, tenant, work)
    fairness.close_window(300.0)
    assert fairness.widest == Gap(130.0, 800.0, 1.3, shelf)


def test_work_that_is_lost_with_its_worker_was_not_given():
    fairness, shelf = Fairness({"small": 400.0}), ("small", "batch")
    for tenant in ("a", "b"):
        fairness.waits(0.0, shelf, tenant)
    for work in (100.0, -100.0):
        fairness.is_given(shelf, "a", work)
    fairness.close_window(300.0)
    assert (fairness.widest.work, fairness.num_windows) == (0.0, 1)


def test_an_emptied_queue_ends_the_comparison():
    fairness, shelf = Fairness({"small": 400.0}), ("small", "batch")
    for tenant in ("a", "b"):
        fairness.waits(0.0, shelf, tenant)
    fairness.waits_no_more(shelf, "a")
    fairness.waits(10.0, shelf, "a")
    fairness.close_window(300.0)
    assert fairness.num_windows == 0  # a's queue was empty for a moment
    fairness.close_window(600.0)
    assert fairness.num_windows == 1


def test_the_busiest_minute_is_found():
    traffic = Traffic()
    for now in (0.0, 59.9, 60.0, 61.0, 119.0):
        traffic.call(now, "claim")
    assert traffic.total("claim") == 5
    assert traffic.peak_per_s("claim") == 3 / 60
