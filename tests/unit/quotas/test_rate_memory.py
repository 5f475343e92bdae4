"""Does a process that decides alone let in no more than it may?"""

from fractions import Fraction
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.quotas.buckets import PARTS, Bucket
from app.quotas.limits import Rate
from app.quotas.rate_memory import RateMemory


def bucket(per_minute: int = 60, burst: int = 60, *, name: str = "tokens") -> Bucket:
    return Bucket(f"key-{name}", f"rate:{{acme}}:{name}", "tokens", Rate(per_minute, burst))


def most_in_any_span(taken: list[tuple[int, int]], per_minute: int) -> Fraction:
    """Over all spans from one acceptance to another: what was taken less what the rate brings, in tokens."""
    worst, excess = Fraction(0), Fraction(0)
    for (before_us, _), (at_us, amount) in pairwise([(0, 0), *taken]):
        excess = max(Fraction(0), excess - Fraction((at_us - before_us) * per_minute, PARTS)) + amount
        worst = max(worst, excess)
    return worst


steps = st.lists(st.tuples(st.integers(0, 90_000_000), st.integers(1, 50)), max_size=60)


@given(st.integers(1, 300), st.integers(1, 50), st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 1.0]), steps)
def test_it_admits_its_share_over_any_span_and_a_larger_job_only_when_empty(
    per_minute: int, burst: int, share: float, wanted: list[tuple[int, int]]
) -> None:
    memory, limit, now_us, taken = RateMemory(share=share), bucket(per_minute, burst), 0, []
    for step_us, most in wanted:
        now_us += step_us
        amount = min(most, burst)
        is_admitted, (after,) = memory.take([limit], [amount], now_us)
        if is_admitted:
            taken.append((now_us, amount))
        else:
            # Not earlier than it says, but for what rounding to parts of a token costs; but then.
            at_us = now_us + after.wait_us(amount)
            assert not memory.take([limit], [amount], at_us - 2 - ceil(1 / (per_minute * share)))[0]
            assert memory_at(memory, limit, at_us, share).take([limit], [amount], at_us)[0]
        assert 0 <= after.remaining <= burst
    tolerance = Fraction(1, 1000)
    assert most_in_any_span(taken, per_minute) <= burst
    largest = max((amount for _, amount in taken), default=0)
    share_of_rate = Fraction(per_minute) * Fraction(share)
    excess, before_us = Fraction(0), 0
    for at_us, amount in taken:
        excess = max(Fraction(0), excess - (at_us - before_us) * share_of_rate / PARTS) + amount
        before_us = at_us
        assert excess <= max(Fraction(burst) * Fraction(share), largest) + tolerance


def memory_at(memory: RateMemory, limit: Bucket, now_us: int, share: float) -> RateMemory:
    """A copy, so that a trial leaves no trace."""
    copy = RateMemory(share=share)
    copy.learn(limit, memory.level(limit, now_us), now_us, redis_us=1, paid=None)
    return copy


def test_all_or_none() -> None:
    memory, wide, narrow = RateMemory(share=1.0), bucket(burst=10, name="a"), bucket(burst=2, name="b")
    assert memory.take([wide, narrow], [2, 2], 0)[0]
    refused, standings = memory.take([wide, narrow], [1, 1], 0)
    assert not refused
    assert [each.remaining for each in standings] == [8, 0]
    assert memory.level(wide, 0) == 2 * PARTS


def test_it_goes_on_from_what_redis_had_told() -> None:
    memory, limit = RateMemory(share=0.5), bucket(per_minute=60, burst=10)
    memory.learn(limit, 4 * PARTS, 0, redis_us=1, paid=None)
    assert not memory.take([limit], [2], 0)[0]
    assert memory.take([limit], [1], 0)[0]
    # Half of the rate: a token in two seconds.
    assert not memory.take([limit], [1], 1_999_998)[0]
    assert memory.take([limit], [1], 2_000_000)[0]


def test_what_comes_back_is_never_more_than_what_has_not_leaked() -> None:
    memory, limit = RateMemory(share=1.0), bucket(per_minute=60, burst=10)
    assert memory.take([limit], [10], 0)[0]
    assert memory.take([limit], [5], 5_000_000)[0]
    # Five of the ten have leaked, and were used by the five.
    (after,) = memory.put_back([limit], [10], 0, 5_000_000)
    assert after.remaining == 5
    (after,) = memory.put_back([limit], [10], 5_000_000, 5_000_000)
    assert after.level == 0


def test_what_was_let_in_is_owed_until_redis_knows_it() -> None:
    memory, limit = RateMemory(share=1.0), bucket(burst=10)
    memory.learn(limit, PARTS, 0, redis_us=100, paid=None)
    assert memory.owed(0) == []
    assert memory.take([limit], [2], 0)[0]
    debt = memory.debt(limit)
    assert debt is not None
    assert debt.level == 3 * PARTS
    assert memory.take([limit], [1], 0)[0]
    memory.learn(limit, 3 * PARTS, 0, redis_us=200, paid=debt)
    assert memory.owed(0) == [limit], "one was let in after the debt was told"
    assert memory.level(limit, 0) == 4 * PARTS
    assert memory.owed(4_000_001) == [], "it has leaked out: there is nothing to tell"
    memory.learn(limit, 4 * PARTS, 0, redis_us=300, paid=memory.debt(limit))
    assert memory.owed(0) == []


def test_an_answer_that_was_overtaken_tells_nothing_but_a_clock_that_was_set_back_does() -> None:
    memory, limit = RateMemory(share=1.0), bucket(burst=10)
    memory.learn(limit, 5 * PARTS, 0, redis_us=10_000_000, paid=None)
    memory.learn(limit, 4 * PARTS, 0, redis_us=9_999_000, paid=None)
    assert memory.level(limit, 0) == 5 * PARTS
    memory.learn(limit, 2 * PARTS, 0, redis_us=1_000_000, paid=None)
    assert memory.level(limit, 0) == 2 * PARTS


@pytest.mark.parametrize("most", [1, 3])
def test_it_is_bounded(most: int) -> None:
    memory = RateMemory(share=0.5, most=most)
    for number in range(10):
        assert memory.take([bucket(name=f"t{number}")], [1], 0)[0]
    assert len(memory) == most
