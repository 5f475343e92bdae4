"""Are a bucket's figures, and the headers that tell them, true?"""

import re
from fractions import Fraction
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from app.quotas.buckets import PARTS, Bucket, Standing, buckets_of
from app.quotas.limits import MAX_BURST, NO_LIMITS, Limits, Rate, Rates
from app.quotas.rate_headers import duration, rate_headers, retry_after_s

KEY = UUID(int=7)
# RFC 9651: a string with parameters that are strings or integers of at most 15 digits, all without escapes.
STRUCTURED_ITEM = re.compile(r'"[ !#-\[\]-~]*"(;[a-z*][a-z0-9_.*-]*=(-?\d{1,15}|"[ !#-\[\]-~]*"))*')
rates = st.builds(Rate, st.integers(1, 10**9), st.integers(1, MAX_BURST))


def standing(rate: Rate, level: int, *, policy: str = "key-requests", unit: str = "requests") -> Standing:
    return Standing(Bucket(policy, "rate:{acme}", unit, rate), level)  # type: ignore[arg-type]


def test_a_limit_without_a_burst_lets_a_minutes_worth_in_at_once() -> None:
    assert Rate.read(None, 5) is None
    assert Rate.read(60, None) == Rate(60, 60)
    assert Rate.read(60, 5) == Rate(60, 5)
    assert Rate.read(10**9, None) == Rate(10**9, MAX_BURST)


def test_key_and_tenant_share_a_hash_tag_and_no_limit_is_no_bucket() -> None:
    assert buckets_of("acme", KEY, NO_LIMITS) == ()
    rate = Rate(60, 60)
    limits = Limits(Rates(rate, rate), Rates(rate, rate))
    buckets = buckets_of("acme", KEY, limits)
    assert [each.policy for each in buckets] == ["key-requests", "key-tokens", "tenant-requests", "tenant-tokens"]
    assert {re.findall(r"\{(.+?)\}", each.key)[0] for each in buckets} == {"acme"}
    assert len({each.key for each in buckets}) == 4
    assert [each.amount(300) for each in buckets] == [1, 300, 1, 300]
    assert [each.policy for each in buckets_of("acme", None, limits)] == ["tenant-requests", "tenant-tokens"]
    assert [each.policy for each in buckets_of("acme", KEY, Limits(tenant=Rates(tokens=rate)))] == ["tenant-tokens"]


@given(rates, st.data())
def test_waits_are_exact_to_the_microsecond(rate: Rate, data: st.DataObject) -> None:
    level = data.draw(st.integers(0, rate.burst * PARTS))
    amount = data.draw(st.integers(1, rate.burst))
    bucket = standing(rate, level)

    def fits(wait_us: int, wanted: int) -> bool:
        return max(Fraction(0), level - Fraction(wait_us * rate.per_minute)) + wanted * PARTS <= rate.burst * PARTS

    wait_us = bucket.wait_us(amount)
    assert fits(wait_us, amount)
    assert wait_us == 0 or not fits(wait_us - 1, amount)
    assert fits(0, bucket.remaining)
    assert bucket.remaining == rate.burst or not fits(0, bucket.remaining + 1)
    if bucket.remaining < rate.burst:
        assert fits(bucket.next_us, bucket.remaining + 1)
        assert not fits(bucket.next_us - 1, bucket.remaining + 1)
    assert fits(bucket.reset_us, rate.burst)
    assert bucket.reset_us == 0 or not fits(bucket.reset_us - 1, rate.burst)


@given(st.integers(1, 10**10), st.floats(0, 1, exclude_max=True))
def test_retry_after_is_never_too_early_and_at_most_a_quarter_and_two_seconds_late(wait_us: int, draw: float) -> None:
    told_us = retry_after_s(wait_us, draw) * 1_000_000
    assert wait_us <= told_us <= wait_us * 1.25 + 2_000_000


def test_those_who_were_refused_together_are_told_different_times() -> None:
    assert len({retry_after_s(20_000_000, draw / 10) for draw in range(10)}) > 3
    assert {retry_after_s(500_000, draw / 10) for draw in range(10)} == {1, 2}


def test_spans_are_written_as_openais_clients_read_them() -> None:
    spans = {
        0: "0s", 1: "1ms", 119_001: "120ms", 999_001: "1s", 1_000_000: "1s", 8_640_000: "8.64s", 59_999_000: "59.999s",
        60_000_000: "1m0s", 360_000_000: "6m0s", 3_600_000_000: "1h0m0s", 93_784_005_000: "26h3m4.005s",
    }  # fmt: skip
    assert {span: duration(span) for span in spans} == spans


def test_headers_tell_policy_rest_and_the_tighter_of_two_limits() -> None:
    told = rate_headers(
        [
            standing(Rate(60, 60), 2 * PARTS),
            standing(Rate(600, 90), 10 * PARTS + 1, policy="tenant-requests"),
            standing(Rate(20_000, 20_000), 270 * PARTS, policy="tenant-tokens", unit="tokens"),
        ]
    )
    assert told == {
        "RateLimit-Policy": '"key-requests";q=60;w=60, "tenant-requests";q=90;w=9, "tenant-tokens";q=20000;qu="tokens";w=60',
        "RateLimit": '"key-requests";r=58;t=1, "tenant-requests";r=79;t=1, "tenant-tokens";r=19730;t=1',
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "58",
        "x-ratelimit-reset-requests": "2s",
        "x-ratelimit-limit-tokens": "20000",
        "x-ratelimit-remaining-tokens": "19730",
        "x-ratelimit-reset-tokens": "810ms",
    }
    assert rate_headers([]) == {}
    assert rate_headers([standing(Rate(60, 60), 0)])["RateLimit"] == '"key-requests";r=60'


@given(rates, st.data())
def test_a_policys_window_never_promises_more_than_its_rate(rate: Rate, data: st.DataObject) -> None:
    level = data.draw(st.integers(0, rate.burst * PARTS))
    told = rate_headers([standing(rate, level)])
    for field in ("RateLimit-Policy", "RateLimit"):
        assert all(STRUCTURED_ITEM.fullmatch(item) for item in told[field].split(", "))
    found = re.fullmatch(r'"key-requests";q=(\d+);w=(\d+)', told["RateLimit-Policy"])
    assert found
    assert int(found[1]) * 60 <= rate.per_minute * int(found[2])
    assert 0 <= int(told["x-ratelimit-remaining-requests"]) <= int(told["x-ratelimit-limit-requests"])
