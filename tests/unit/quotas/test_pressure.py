"""Is the arithmetic of waits sane for any load: never negative, never less with more ahead, refusals that say when they end?"""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from app.quotas.pressure import (
    SPREAD,
    Ask,
    Backlog,
    Ceilings,
    PoolLoad,
    drain_of_tenant,
    judge,
    predicted_wait_s,
    soonest_wait_s,
    tokens_ahead,
)

WEIGHTS = {"interactive": 16.0, "standard": 4.0, "batch": 1.0}
TIERS = st.sampled_from(list(WEIGHTS))
BACKLOGS = st.builds(
    lambda jobs, each, tenants, mean: Backlog(jobs, jobs * each, min(jobs, tenants), min(jobs, tenants) * mean),
    st.integers(0, 10**5), st.integers(1, 10**4), st.integers(1, 50), st.sampled_from([0.0, 1.0, 2.5, 100.0]),
)  # fmt: skip
LOADS = st.builds(
    lambda tiers, rate, workers: PoolLoad(dict(zip(WEIGHTS, tiers, strict=True)), WEIGHTS, workers, rate, 0.01),
    st.tuples(BACKLOGS, BACKLOGS, BACKLOGS), st.none() | st.floats(0, 10**7), st.integers(0, 100),
)  # fmt: skip
OPEN = Ceilings(math.inf, 10**18, 10**18)


@st.composite
def asks(draw: st.DrawFn, load: PoolLoad) -> Ask:
    tier = draw(TIERS)
    return Ask(
        tier,
        draw(st.integers(1, 10**5)),
        draw(st.integers(0, load.tier(tier).tokens)),
        float(draw(st.integers(1, 1000))),
        draw(st.none() | st.floats(0.001, 10**5)),
        draw(st.floats(0, 1000)),
        draw(st.floats(0, 1000)),
    )


@given(st.data(), LOADS)
def test_waits_are_never_negative_and_draining_tiers_only_help(data: st.DataObject, load: PoolLoad) -> None:
    ask = data.draw(asks(load))
    soonest, wait = soonest_wait_s(load, ask), predicted_wait_s(load, ask)
    if wait is None or soonest is None:
        assert wait is soonest is None
        return
    assert 0 <= soonest <= wait * (1 + 1e-9)


@given(st.data(), LOADS, st.integers(0, 10**6))
def test_more_ahead_is_never_a_shorter_wait(data: st.DataObject, load: PoolLoad, more: int) -> None:
    ask = data.draw(asks(load))
    backlog = load.tier(ask.tier)
    fuller = replace(load, tiers={**load.tiers, ask.tier: replace(backlog, tokens=backlog.tokens + more)})
    longer = replace(ask, own_tokens=ask.own_tokens + more)
    for before, after in ((load, fuller),):
        for wait in (predicted_wait_s, soonest_wait_s):
            first, second, own = wait(before, ask), wait(after, ask), wait(after, longer)
            if first is not None and second is not None and own is not None:
                assert first <= second * (1 + 1e-9) + 1e-9
                assert second <= own * (1 + 1e-9) + 1e-9


@given(st.data(), LOADS, st.floats(1, 100))
def test_a_faster_pool_never_waits_longer_and_refuses_nothing_that_a_slower_one_takes(
    data: st.DataObject, load: PoolLoad, factor: float
) -> None:
    ask = data.draw(asks(load))
    ceilings = Ceilings(data.draw(st.floats(0.1, 10**5)), 10**18, 10**18)
    if not load.drain_per_s or load.num_workers == 0:
        return
    faster = replace(load, drain_per_s=load.drain_per_s * factor)
    assert (predicted_wait_s(faster, ask) or 0) <= (predicted_wait_s(load, ask) or 0) * (1 + 1e-9)
    if judge(load, ask, ceilings) is None:
        refusal = judge(faster, ask, ceilings)
        assert refusal is None or refusal.over_s < 1e-6  # by rounding


@given(st.data(), LOADS, st.floats(0.1, 10**5), st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_refusal_names_its_limit_and_ends_in_the_future(
    data: st.DataObject, load: PoolLoad, wait_s: float, tokens: int, pool_tokens: int
) -> None:
    ask = data.draw(asks(load))
    refusal = judge(load, ask, Ceilings(wait_s, tokens, pool_tokens))
    if refusal is not None:
        assert refusal.over_s >= 0
        assert refusal.limit in {wait_s, tokens, pool_tokens, ask.deadline_s}
        assert refusal.is_own == (refusal.reason == "share")


@given(st.data(), LOADS, st.floats(0.1, 1000))
def test_after_the_time_that_a_refusal_names_the_wait_is_under_the_ceiling(
    data: st.DataObject, load: PoolLoad, ceiling: float
) -> None:
    ask = replace(data.draw(asks(load)), deadline_s=None)
    refusal = judge(load, ask, Ceilings(ceiling, 10**18, 10**18))
    if refusal is None:
        return
    rate, wait = load.rate_of(ask.tier), predicted_wait_s(load, ask)
    assert rate is not None
    assert wait is not None
    ends = (wait - refusal.over_s) * SPREAD + min(ask.longest_s, ceiling / 2)
    assert ends <= ceiling * (1 + 1e-6)


def test_tiers_that_have_work_share_by_their_weights() -> None:
    busy = PoolLoad({tier: Backlog(1, 2100, 1) for tier in WEIGHTS}, WEIGHTS, 1, 210.0)
    assert [busy.rate_of(tier) for tier in WEIGHTS] == [160.0, 40.0, 10.0]
    assert replace(busy, tiers={}).rate_of("batch") == 210.0
    # Alone after the two others have run dry: 2100 each, 630 s of work for 210 a second in all, and batch ends last.
    assert soonest_wait_s(busy, Ask("batch", 1, own_tokens=2100)) == 30.0
    assert predicted_wait_s(busy, Ask("batch", 1, own_tokens=2100)) == 210.0


@given(st.data(), LOADS, st.floats(0, 10**9), st.floats(0, 10**9))
def test_what_others_are_owed_is_waited_for_as_far_as_it_may_be_there(
    data: st.DataObject, load: PoolLoad, to_tenants: float, to_tiers: float
) -> None:
    ask = data.draw(asks(load))
    wait, behind = predicted_wait_s(load, ask), predicted_wait_s(load, replace(ask, owed_tokens=to_tenants))
    after = predicted_wait_s(replace(load, owed={ask.tier: to_tiers}), ask)
    rate = load.rate_of(ask.tier)
    if wait is None or behind is None or after is None or rate is None or load.drain_per_s is None:
        return
    owed = min(to_tenants, load.tier(ask.tier).tokens)
    assert math.isclose(behind, wait + owed / rate, rel_tol=1e-6, abs_tol=1e-9)
    elsewhere = min(to_tiers, load.tokens - load.tier(ask.tier).tokens)
    assert math.isclose(after, wait + elsewhere / load.drain_per_s, rel_tol=1e-6, abs_tol=1e-9)


def test_what_was_owed_when_the_queue_was_last_seen_is_owed_no_more_when_nothing_waits() -> None:
    drained = PoolLoad({}, WEIGHTS, 1, 100.0, owed={"standard": 5000.0})
    assert predicted_wait_s(drained, Ask("standard", 10, owed_tokens=5000)) == 0
    assert judge(drained, Ask("standard", 10), Ceilings(12, 10**9, 10**9)) is None


def test_a_tenant_that_was_served_ahead_of_others_is_refused_what_these_are_served_first() -> None:
    load = PoolLoad({"standard": Backlog(10, 1000, 2)}, WEIGHTS, 1, 100.0)
    ask, ceilings = Ask("standard", 10, own_tokens=300), Ceilings(12, 10**9, 10**9)
    assert judge(load, ask, ceilings) is None  # 6 s of 8
    refusal = judge(load, replace(ask, owed_tokens=500), ceilings)
    assert refusal is not None
    assert (refusal.reason, refusal.wait_s, refusal.over_s) == ("tier_wait", 11.0, 3.0)


def test_a_lower_tier_is_slow_before_any_of_its_jobs_has_shown_it() -> None:
    crowded = PoolLoad({tier: Backlog(1, 2100, 1) for tier in WEIGHTS}, WEIGHTS, 1, 210.0, 0.04)
    # It holds 9/8 - 16/21 of the engine's places, and is served in 4/21 of them.
    assert math.isclose(crowded.crowded_pace_of("standard"), 0.04 * (9 / 8 - 16 / 21) * 21 / 4)
    assert crowded.crowded_pace_of("interactive") == 0
    assert crowded.slow_pace_of("standard") == SPREAD * crowded.crowded_pace_of("standard")
    alone = replace(crowded, tiers={"standard": Backlog(1, 2100, 1)})
    assert alone.crowded_pace_of("standard") == 0
    assert math.isclose(alone.slow_pace_of("standard") or 0, 0.06)


def test_a_tier_that_had_work_lately_keeps_its_share() -> None:
    load = PoolLoad({"standard": Backlog(1, 100, 1)}, WEIGHTS, 1, 210.0)
    assert load.rate_of("standard") == 210.0
    assert replace(load, busy=frozenset({"interactive", "batch"})).rate_of("standard") == 40.0


def test_a_job_that_runs_for_long_leaves_time_for_that() -> None:
    load = PoolLoad({"standard": Backlog(10, 1000, 1)}, WEIGHTS, 1, 100.0)
    ask = Ask("standard", 10, own_tokens=1000)
    ceilings = Ceilings(15.1, 10**9, 10**9)  # 10 s to wait, and half
    assert judge(load, ask, ceilings) is None
    assert judge(load, replace(ask, longest_s=1), ceilings) is not None
    # One that runs for longer than the ceiling isn't refused for that alone.
    assert judge(load, replace(ask, longest_s=1000), Ceilings(31, 10**9, 10**9)) is None


def test_behind_a_flooder_a_quiet_tenant_waits_for_its_own_work_only() -> None:
    load = PoolLoad({"standard": Backlog(1001, 100_100, 2)}, WEIGHTS, 1, 100.0)
    quiet, flooder = Ask("standard", 100, own_tokens=100), Ask("standard", 100, own_tokens=100_000)
    assert tokens_ahead(load, quiet) == 200
    assert tokens_ahead(load, flooder) == 100_100
    ceilings = Ceilings(600, 10**9, 10**9)
    assert judge(load, quiet, ceilings) is None
    refusal = judge(load, flooder, ceilings)
    assert refusal is not None
    assert (refusal.reason, refusal.is_own, refusal.unit) == ("share", True, "s")
    by_tokens = judge(load, flooder, Ceilings(10**9, 100_100, 10**9))
    assert by_tokens is not None
    assert (by_tokens.reason, by_tokens.is_own, by_tokens.unit, by_tokens.over_s) == ("share", True, "tokens", 1.0)
    assert drain_of_tenant(load, quiet) == drain_of_tenant(load, flooder) == 50.0, "as long as both go on"
    assert soonest_wait_s(load, flooder) == 1001.0
    assert predicted_wait_s(load, flooder) == 1501.5, "the quiet one may go on, too, but not for ever"


def test_tenants_wait_by_their_weights() -> None:
    load = PoolLoad({"standard": Backlog(30, 3000, 2, 5.0)}, WEIGHTS, 1, 100.0)
    heavy, light = Ask("standard", 100, own_tokens=400, weight=4.0), Ask("standard", 100, own_tokens=400)
    assert predicted_wait_s(load, heavy) == 5.0
    assert predicted_wait_s(load, light) == 20.0
    assert drain_of_tenant(load, heavy) == 80.0
    assert drain_of_tenant(load, light) == 20.0
    ceilings = Ceilings(15.0, 10**9, 10**9)
    assert judge(load, heavy, ceilings) is None
    refusal = judge(load, replace(light, own_tokens=700), ceilings)
    assert refusal is not None
    assert refusal.is_own, "a fifth of the weight, and more than a fifth of what waits"
    assert judge(load, replace(heavy, own_tokens=2000), ceilings).is_own is False  # type: ignore[union-attr]


def test_a_tier_that_is_preempted_has_its_own_pace() -> None:
    load = PoolLoad({}, WEIGHTS, 1, 100.0, 0.05, {"batch": 0.4})
    assert load.pace_of("batch") == 0.4
    assert load.pace_of("interactive") == 0.05


def test_the_lowest_tier_is_the_first_that_the_pool_refuses() -> None:
    load = PoolLoad({tier: Backlog(1, 300, 1) for tier in WEIGHTS}, WEIGHTS)
    refused = [
        tier
        for tier, part in (("interactive", 1.0), ("standard", 0.9), ("batch", 0.8))
        if judge(load, Ask(tier, 10), Ceilings(30, 10**9, int(1000 * part)))
    ]
    assert refused == ["standard", "batch"]


def test_without_a_rate_only_tokens_are_limited() -> None:
    load = PoolLoad({"interactive": Backlog(5, 500, 1)}, WEIGHTS, num_workers=0)
    ask = Ask("interactive", 10, own_tokens=500, deadline_s=0.001)
    assert judge(load, ask, Ceilings(0.001, 510, 10**9)) is None
    refusal = judge(load, ask, Ceilings(0.001, 509, 10**9))
    assert refusal is not None
    assert (refusal.reason, refusal.over_s) == ("tier_tokens", math.inf)


def test_an_empty_tier_takes_a_job_of_any_size() -> None:
    load = PoolLoad({"batch": Backlog(1, 10**9, 1)}, WEIGHTS, 1, 1000.0)
    assert judge(load, Ask("interactive", 10**9), Ceilings(30, 1000, 1000)) is None


def test_a_deadline_that_cannot_be_met_is_refused_until_the_queue_is_shorter() -> None:
    load = PoolLoad({"standard": Backlog(10, 1000, 1)}, WEIGHTS, 1, 100.0)
    ask = Ask("standard", 10, own_tokens=1000, deadline_s=8, service_s=2)
    refusal = judge(load, ask, OPEN)
    assert refusal is not None
    assert (refusal.reason, refusal.over_s) == ("deadline", 4.0)
    assert judge(load, replace(ask, deadline_s=12.5), OPEN) is None
    never = judge(load, replace(ask, service_s=9), OPEN)
    assert never is not None
    assert never.over_s == math.inf
