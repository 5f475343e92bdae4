"""Does a worker know how fast it is, by what it did while it was full, and does idleness take nothing from that?"""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.generation.throughput import Throughput


def run(
    meter: Throughput, began: float, seconds: float, per_s: float, *, is_saturated: bool, tier: str = "batch"
) -> float:
    """Steps of 0.1 s; return when it is over."""
    for i in range(1, round(seconds * 10) + 1):
        now = began + i / 10
        meter.take(tier, round(per_s / 10), now)
        meter.step(now, is_saturated=is_saturated)
    return began + seconds


def test_capacity_is_what_a_full_engine_serves() -> None:
    meter = Throughput(0.0)
    now = run(meter, 0.0, 20, 300, is_saturated=False)
    assert meter.capacity is None
    now = run(meter, now, 20, 1000, is_saturated=True)
    assert meter.capacity == pytest.approx(1000, rel=0.01)
    run(meter, now + 3600, 60, 10, is_saturated=False)
    assert meter.capacity == pytest.approx(1000, rel=0.01)


def test_capacity_follows_a_change() -> None:
    meter = Throughput(0.0)
    now = run(meter, 0.0, 60, 1000, is_saturated=True)
    run(meter, now, 30, 500, is_saturated=True)
    assert meter.capacity == pytest.approx(500, rel=0.1)


def test_the_rate_now_is_of_the_last_seconds_and_not_too_low_at_the_beginning() -> None:
    meter = Throughput(0.0)
    now = run(meter, 0.0, 2, 1000, is_saturated=True, tier="interactive")
    assert meter.stats(now)["served_tokens_per_s"] == pytest.approx(1000, rel=0.1)
    assert meter.stats(now)["served_by_tier"] == {"interactive": meter.stats(now)["served_tokens_per_s"]}
    assert meter.stats(now + 60)["served_tokens_per_s"] == pytest.approx(0, abs=5)


def test_jobs_that_end_early_let_the_queue_drain_faster_than_tokens_are_made() -> None:
    meter = Throughput(0.0)
    now = run(meter, 0.0, 10, 1000, is_saturated=True)
    for _ in range(200):
        meter.end("standard", reserved=1000, real=250, residence_s=5.0, length=200)
    stats = meter.stats(now)
    assert stats["token_yield"] == pytest.approx(0.25)
    assert stats["drain_tokens_per_s"] == pytest.approx(4 * float(str(stats["capacity_tokens_per_s"])), rel=0.01)
    assert stats["seconds_per_token"] == pytest.approx(0.025)


def test_each_tier_has_a_pace_of_its_own() -> None:
    meter = Throughput(0.0)
    for _ in range(5):
        meter.end("interactive", reserved=100, real=100, residence_s=1.0, length=100)
        meter.end("batch", reserved=100, real=100, residence_s=9.0, length=100)
    stats = meter.stats(1.0)
    assert stats["paces"] == {"interactive": pytest.approx(0.01), "batch": pytest.approx(0.09)}
    assert stats["seconds_per_token"] == pytest.approx(0.05)
    assert stats["slow_paces"] == stats["paces"], "all are alike"


def test_a_slow_pace_is_what_few_jobs_are_slower_than() -> None:
    meter, random = Throughput(0.0), Random(1)
    for _ in range(500):
        meter.end("standard", reserved=100, real=100, residence_s=random.expovariate(0.2), length=100)
    pace = meter.stats(1.0)["slow_paces"]["standard"]  # type: ignore[index]
    slower = sum(random.expovariate(0.2) / 100 > pace for _ in range(2_000)) / 2_000
    assert 0 < slower < 0.05


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**6), st.booleans()), max_size=50))
def test_no_history_gives_a_negative_figure(steps: list[tuple[float, int, bool]]) -> None:
    meter, now = Throughput(5.0), 5.0
    for passes, tokens, is_saturated in steps:
        now += passes
        meter.take("standard", tokens, now)
        meter.step(now, is_saturated=is_saturated)
        meter.end("standard", reserved=tokens + 1, real=tokens, residence_s=passes, length=tokens)
    stats = meter.stats(now)
    for name in (
        "served_tokens_per_s",
        "capacity_tokens_per_s",
        "drain_tokens_per_s",
        "token_yield",
        "seconds_per_token",
    ):
        value = stats[name]
        assert value is None or float(str(value)) >= 0
