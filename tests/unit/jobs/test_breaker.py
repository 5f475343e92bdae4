"""When does a breaker open, try and close? Each rule by a table, and what always holds by any history."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.breaker import Breaker, Change, Evidence, Rules, State, judge
from app.jobs.breakers import Standing, unavailable

RULES = Rules(window_s=300, min_attempts=5, error_rate=0.5, open_s=30, probes=3)
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def breaker(state: State, *, due: bool = True, probes_left: int = 0) -> Breaker:
    retry_at = NOW + timedelta(seconds=-1 if due else 1)
    return Breaker("m", state, 1, NOW - timedelta(seconds=60), retry_at, probes_left)


def after(known: Breaker | None, bad: int, good: int, *, has_worker: bool = True) -> str | None:
    change = judge(known, Evidence(bad, good, has_worker), RULES, NOW)
    return None if change is None else change.state


@pytest.mark.parametrize(
    ("bad", "good", "state"),
    [
        (0, 0, None), (0, 9, None),
        (4, 0, None),  # too few to judge
        (5, 0, "open"), (3, 2, "open"), (3, 3, "open"),
        (3, 4, None),  # under the rate
        (50, 50, "open"), (50, 51, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("known", [None, breaker("closed")])
def test_it_opens_at_the_rate_of_enough_attempts(known: Breaker | None, bad: int, good: int, state: str | None) -> None:
    assert after(known, bad, good) == state


@pytest.mark.parametrize(("bad", "good"), [(0, 0), (0, 100), (100, 0)])
def test_open_stays_open_until_its_time_is_over(bad: int, good: int) -> None:
    assert after(breaker("open", due=False), bad, good) is None


@pytest.mark.parametrize(
    ("bad", "good", "state"),
    [
        (0, 0, "half_open"),  # nothing ran: probes
        (0, 2, "half_open"),  # too few successes
        (1, 0, "open"), (2, 2, "open"),  # the jobs that waited died again: no probe is put at risk
        (0, 3, "closed"), (1, 9, "closed"),  # the jobs that waited went through
        (2, 5, "half_open"),  # between the two rates
    ],
)  # fmt: skip
def test_when_its_time_is_over_the_jobs_that_waited_decide(bad: int, good: int, state: str) -> None:
    assert after(breaker("open"), bad, good) == state


@pytest.mark.parametrize(
    ("bad", "good", "state"),
    [(1, 0, "open"), (3, 3, "open"), (0, 3, "closed"), (1, 4, "closed"), (1, 3, None), (0, 2, None)],
)
def test_half_open_closes_only_under_half_of_the_rate(bad: int, good: int, state: str | None) -> None:
    assert after(breaker("half_open", due=False, probes_left=1), bad, good) == state


def test_probes_that_bring_no_verdict_are_followed_by_others() -> None:
    assert judge(breaker("half_open", due=False), Evidence(0, 0, True), RULES, NOW) is None
    assert judge(breaker("half_open", probes_left=1), Evidence(0, 0, True), RULES, NOW) is None
    more = judge(breaker("half_open"), Evidence(0, 0, True), RULES, NOW)
    assert more == Change("half_open", None, NOW + timedelta(seconds=30), 3)


def test_a_model_without_workers_is_not_refused_for_ever() -> None:
    assert after(breaker("open"), 0, 0, has_worker=False) == "half_open"
    assert after(breaker("half_open", due=False, probes_left=3), 0, 0, has_worker=False) == "closed"


def test_the_evidence_begins_anew_when_it_opens_and_closes_but_not_when_probes_come() -> None:
    assert judge(None, Evidence(5, 0, True), RULES, NOW) == Change("open", NOW, NOW + timedelta(seconds=30), 0)
    half_open = judge(breaker("open"), Evidence(0, 0, True), RULES, NOW)
    assert half_open == Change("half_open", None, NOW + timedelta(seconds=30), 3)
    closed = judge(breaker("half_open"), Evidence(0, 3, True), RULES, NOW)
    assert closed == Change("closed", NOW, None, 0)


rules = st.builds(
    Rules,
    window_s=st.just(300.0),
    min_attempts=st.integers(1, 20),
    error_rate=st.floats(0.01, 1.0),
    open_s=st.floats(1, 600),
    probes=st.integers(1, 20),
)
breakers = st.one_of(
    st.none(),
    st.builds(
        breaker,
        st.sampled_from(["closed", "open", "half_open"]),
        due=st.booleans(),
        probes_left=st.integers(0, 20),
    ),
)
counts = st.integers(0, 200)


@given(breakers, counts, counts, rules)
def test_counting_good_attempts_no_further_than_enough_decides_the_same(
    known: Breaker | None, bad: int, good: int, rules: Rules
) -> None:
    whole = judge(known, Evidence(bad, good, True), rules, NOW)
    capped = judge(known, Evidence(bad, min(good, rules.enough(bad)), True), rules, NOW)
    assert capped == whole


@given(breakers, counts, counts, rules)
def test_what_has_just_changed_does_not_change_back_on_the_same_evidence(
    known: Breaker | None, bad: int, good: int, rules: Rules
) -> None:
    change = judge(known, Evidence(bad, good, True), rules, NOW)
    if change is None:
        return
    assert (change.retry_at is None) == (change.state == "closed")
    assert (change.probes_left > 0) == (change.state == "half_open")
    left = Evidence(0, 0, True) if change.since == NOW else Evidence(bad, good, True)
    then = Breaker("m", change.state, 2, change.since or NOW, change.retry_at, change.probes_left)
    assert judge(then, left, rules, NOW) is None


@given(counts, rules)
def test_a_model_that_only_succeeds_is_never_refused_for_long(good: int, rules: Rules) -> None:
    now, known = NOW, breaker("open")
    for _ in range(3):
        change = judge(known, Evidence(0, max(good, rules.probes), True), rules, now)
        if change is not None and change.state == "closed":
            return
        now += timedelta(seconds=rules.open_s)
    pytest.fail("still not closed")


@pytest.mark.parametrize(("left_s", "least", "most"), [(0.0, 1, 9), (12.5, 13, 21), (3000.0, 120, 120)])
def test_retry_after_is_what_is_left_and_a_spread(left_s: float, least: int, most: int) -> None:
    standing = Standing("tiny", "open", "auto", left_s, 0, 5, 0)
    for draw in (0.0, 0.5, 0.999):
        error = unavailable([standing], open_s=30, draw=draw)
        assert least <= error.extra["retry_after_s"] <= most
