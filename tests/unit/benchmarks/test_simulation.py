"""Does virtual time pass as it should, and do the modelled engines, the traffic and the measures say what they promise?"""

from functools import partial
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.queue.streams import Depth
from benchmarks.simulation.admission import CEILING_S, Ask, admit
from benchmarks.simulation.day import workers_of
from benchmarks.simulation.engine import CHUNK, POOLS, Engine, Spec
from benchmarks.simulation.loop import EventLoop
from benchmarks.simulation.measures import Fairness, Gap, Traffic, Waits
from benchmarks.simulation.traffic import Job, Plan, jobs_of

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
        begun, ended = engine.take_events()
        assert begun or ended
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
    assert engine.over_s == 0


def test_a_prompt_that_is_being_computed_stays_when_the_others_grow_past_the_pool():
    engine = Engine(KIND)
    engine.add([job(i, prompt=24_985, output=3_000) for i in range(4)])
    assert len(drain(engine)) == 4
    assert engine.over_s > 0


@given(st.lists(st.tuples(st.integers(1, 30_000), st.integers(1, 3_000)), min_size=1, max_size=20))
def test_all_end_and_the_room_comes_back(sizes):
    engine = Engine(KIND)
    empty = engine.token_room
    engine.add([job(i, prompt=prompt, output=output) for i, (prompt, output) in enumerate(sizes)])
    assert engine.token_room < empty
    assert len(drain(engine)) == len(sizes)
    assert engine.token_room == pytest.approx(empty, abs=1)
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


def depths(**tokens: int) -> dict[str, Depth]:
    return {tier: Depth(tokens.get(tier, 0) // 100, tokens.get(tier, 0)) for tier in CEILING_S}


def test_a_wait_past_the_ceiling_is_refused_and_says_by_how_much():
    refusal = admit(depths(interactive=4000), 100.0, Ask("interactive", 100, 3900, 1))
    assert refusal is not None
    assert refusal.predicted_s == pytest.approx(40)
    assert refusal.retry_after_s == pytest.approx(10)
    assert admit(depths(interactive=4000), 200.0, Ask("interactive", 100, 3900, 1)) is None


def test_other_tiers_take_their_share_of_the_rate():
    ask = Ask("interactive", 100, 2700, 1)
    assert admit(depths(interactive=2800), 100.0, ask) is None
    assert admit(depths(interactive=2800, standard=1), 100.0, ask) is not None


def test_a_quiet_tenant_comes_in_where_a_flooding_one_is_refused():
    waiting = depths(interactive=100_000)
    assert admit(waiting, 100.0, Ask("interactive", 100, 90_000, 10)) is not None
    assert admit(waiting, 100.0, Ask("interactive", 100, 0, 10)) is None


def test_without_a_measured_drain_or_a_queue_nobody_is_refused():
    assert admit(depths(interactive=10**9), None, Ask("interactive", 100, 10**8, 1)) is None
    assert admit(depths(), 1.0, Ask("interactive", 10**9, 0, 1)) is None


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
