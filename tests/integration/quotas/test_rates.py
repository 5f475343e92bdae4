"""Do the scripts let through what GCRA does, to the microsecond, whoever asks at once and whatever Redis forgets?"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count, pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.clock import SystemClock
from app.embedded import EmbeddedRedis
from app.errors import BudgetExhausted, Unavailable
from app.quotas.buckets import PARTS
from app.quotas.limits import MAX_BURST, Limits, Rate, Rates
from app.quotas.rates import Charge, ExceedsBurst, RateLimited, RateLimiter
from app.redis import Redis, RedisError, create_redis
from app.settings import Settings
from tests.support.clocks import HandClock

KEY, OTHER_KEY = UUID(int=1), UUID(int=2)
MINUTE_US = 60_000_000
tenants = (f"t{number}" for number in count())


@pytest.fixture
async def limiter(redis: Redis) -> AsyncIterator[RateLimiter]:
    limiter = RateLimiter(redis, SystemClock(), local_share=0.5)
    yield limiter
    assert not limiter.is_away
    await limiter.aclose()


def of_key(**rates: tuple[int, int]) -> Limits:
    return Limits(key=Rates(**{unit: Rate(*rate) for unit, rate in rates.items()}))


async def admits(
    limiter: RateLimiter, limits: Limits, tokens: int = 1, *, key: UUID = KEY, tenant: str = "acme"
) -> bool:
    try:
        await limiter.admit(tenant, key, limits, tokens=tokens)
    except RateLimited:
        return False
    return True


# --- against a reference ---------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """GCRA by virtual scheduling, in fractions of a microsecond: the other form of the algorithm than the one under test."""

    rate: Rate
    arrival_us: Fraction = Fraction(0)  # the theoretical arrival time

    def increment(self, amount: int) -> Fraction:
        return Fraction(amount * MINUTE_US, self.rate.per_minute)

    def conforms_at(self, amount: int, now_us: int) -> Fraction:
        """The first moment, from now on, at which so much conforms."""
        after = max(Fraction(now_us), self.arrival_us) + self.increment(amount)
        return max(Fraction(now_us), after - self.increment(self.rate.burst))

    def take(self, amount: int, now_us: int) -> None:
        self.arrival_us = max(Fraction(now_us), self.arrival_us) + self.increment(amount)

    def give_back(self, amount: int, taken_us: int, now_us: int) -> None:
        back = max(Fraction(0), self.increment(amount) - (now_us - taken_us))
        self.arrival_us = max(Fraction(now_us), self.arrival_us - back)

    def level(self, now_us: int) -> Fraction:
        return max(Fraction(0), self.arrival_us - now_us) * self.rate.per_minute


@dataclass
class World:
    """Time that a test moves, buckets as they should be, and what was taken."""

    limits: Limits
    now_us: int = 1_800_000_000_000_000
    references: dict[str, Reference] = field(default_factory=dict)
    charges: list[Charge] = field(default_factory=list)
    kept: dict[UUID, tuple[int, int]] = field(default_factory=dict)  # charge -> when and tokens

    def __post_init__(self) -> None:
        for owner, rates in (("key", self.limits.key), ("tenant", self.limits.tenant)):
            for unit, rate in (("requests", rates.requests), ("tokens", rates.tokens)):
                if rate is not None:
                    self.references[f"{owner}-{unit}"] = Reference(rate)


rate_strategy = st.one_of(
    st.none(),
    st.builds(Rate, st.integers(1, 500), st.integers(20, 500)),
    st.builds(Rate, st.integers(10**6, 10**9), st.sampled_from([20, 10_000, MAX_BURST])),
    st.builds(Rate, st.sampled_from([7, 11, 60, 997]), st.sampled_from([20, 60])),
)
limits_strategy = st.builds(
    Limits, st.builds(Rates, rate_strategy, rate_strategy), st.builds(Rates, rate_strategy, rate_strategy)
)
step_strategy = st.tuples(
    st.one_of(st.just(0), st.integers(1, 1000), st.integers(1, 20_000_000), st.integers(10**9, 10**12)),
    st.one_of(st.integers(1, 20), st.just("refund"), st.just("wait")),
    st.integers(0, 30),
)


@given(limits_strategy, st.lists(step_strategy, min_size=1, max_size=40))
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_it_is_gcra_to_the_microsecond(
    redis: Redis, limits: Limits, steps: list[tuple[int, int | str, int]]
) -> None:
    world, tenant = World(limits), next(tenants)
    limiter = RateLimiter(redis, SystemClock(), local_share=0.5, redis_now_us=lambda: world.now_us)
    wait_us, refused_tokens = 0, 1
    for span_us, act, number in steps:
        world.now_us += span_us
        if act == "refund":
            if world.charges:
                await refund(limiter, world, number)
            continue
        if act == "wait":
            # To the moment that the last refusal has told, or to a microsecond before it.
            world.now_us += max(0, wait_us - number % 2)
        tokens = refused_tokens if act == "wait" else int(act)
        amounts = {name: tokens if "tokens" in name else 1 for name in world.references}
        due = {name: each.conforms_at(amounts[name], world.now_us) for name, each in world.references.items()}
        if any(amount > world.references[name].rate.burst for name, amount in amounts.items()):
            with pytest.raises(ExceedsBurst):
                await limiter.admit(tenant, KEY, limits, tokens=tokens)
            continue
        violated = {name for name in due if due[name] > world.now_us}
        if violated:
            with pytest.raises(RateLimited) as caught:
                await limiter.admit(tenant, KEY, limits, tokens=tokens)
            latest, told = max(due.values()), caught.value.extra
            assert due[told["policy"]] == latest
            wait_us, refused_tokens = -int((world.now_us - latest) // 1), tokens
            assert wait_us <= told["retry_after_s"] * 1_000_000 <= wait_us * 1.25 + 2_000_000
            assert set(told["violated-policies"]) == violated
            continue
        charge = await limiter.admit(tenant, KEY, limits, tokens=tokens)
        wait_us = 0
        for standing in charge.standings:
            reference = world.references[standing.bucket.policy]
            reference.take(amounts[standing.bucket.policy], world.now_us)
            assert standing.level == reference.level(world.now_us)
        world.charges.append(charge)
        world.kept[charge.id] = (world.now_us, tokens)
    assert not limiter.is_away
    for name, each in world.references.items():
        taken = [(at_us, tokens if "tokens" in name else 1) for at_us, tokens in world.kept.values()]
        assert most_at_once(taken, each.rate.per_minute) <= each.rate.burst


async def refund(limiter: RateLimiter, world: World, number: int) -> None:
    charge = world.charges[number % len(world.charges)]
    standings = await limiter.give_back(charge)
    for standing, amount in zip(standings, charge.amounts, strict=True):
        reference = world.references[standing.bucket.policy]
        if charge.id in world.kept:  # once
            reference.give_back(amount, charge.taken_us, world.now_us)
        assert standing.level == reference.level(world.now_us)
    world.kept.pop(charge.id, None)


def most_at_once(taken: list[tuple[int, int]], per_minute: int) -> Fraction:
    """The largest burst that was let in over and above the rate, over all spans of time."""
    worst = excess = Fraction(0)
    for (before_us, _), (at_us, amount) in pairwise([(0, 0), *taken]):
        excess = max(Fraction(0), excess - Fraction((at_us - before_us) * per_minute, MINUTE_US)) + amount
        worst = max(worst, excess)
    return worst


# --- many at once, by Redis' own clock ------------------------------------------------------------------------------


async def test_however_many_ask_at_once_no_span_gets_more_than_burst_and_rate(redis: Redis, settings: Settings) -> None:
    """Four processes' clients, two keys of one tenant, limits on both."""
    key_rate, tenant_rate = Rate(6000, 40), Rate(9000, 60)
    limits = Limits(Rates(tokens=key_rate), Rates(tokens=tenant_rate))
    taken: list[tuple[int, int, UUID]] = []
    refused = 0

    async def ask(client: Redis, number: int) -> None:
        nonlocal refused
        limiter = RateLimiter(client, SystemClock(), local_share=0.5)
        for turn in range(60):
            tokens, key = 1 + (number + turn) % 5, (KEY, OTHER_KEY)[turn % 2]
            try:
                charge = await limiter.admit("acme", key, limits, tokens=tokens)
            except RateLimited:
                refused += 1
            else:
                taken.append((charge.taken_us, tokens, key))
        assert not limiter.is_away

    clients = [create_redis(settings) for _ in range(4)]
    await asyncio.gather(*(ask(client, number) for client in clients for number in range(4)))
    for client in clients:
        await client.aclose()
    taken.sort()
    assert refused > 0, "nothing was tried that the limits should refuse"
    assert most_at_once([(at_us, tokens) for at_us, tokens, _ in taken], tenant_rate.per_minute) <= tenant_rate.burst
    for key in (KEY, OTHER_KEY):
        of_one = [(at_us, tokens) for at_us, tokens, owner in taken if owner == key]
        assert of_one
        assert most_at_once(of_one, key_rate.per_minute) <= key_rate.burst
    span_us = taken[-1][0] - taken[0][0]
    got = sum(tokens for _, tokens, _ in taken)
    assert got >= tenant_rate.burst - 5, "the burst was to be had"
    assert got <= tenant_rate.burst + tenant_rate.per_minute * span_us / MINUTE_US


async def test_a_refusal_takes_nothing_from_any_bucket(limiter: RateLimiter, redis: Redis) -> None:
    """The tenant's tokens are all gone: neither the key's requests nor its tokens count what is refused for it."""
    rate = Rate(1, 100)
    limits = Limits(Rates(rate, rate), Rates(rate, rate))
    assert await admits(limiter, limits, 60)
    before = {key: await redis.get(key) for key in await redis.keys("rate:*")}
    assert len(before) == 4
    assert not await admits(limiter, limits, 41, key=OTHER_KEY)
    for _ in range(5):
        assert not await admits(limiter, limits, 41)
    assert {key: await redis.get(key) for key in await redis.keys("rate:*")} == before
    assert await admits(limiter, limits, 40)


async def test_limits_of_a_tenant_hold_for_all_its_keys_and_for_nobody_else(limiter: RateLimiter) -> None:
    limits = Limits(tenant=Rates(requests=Rate(1, 2)))
    assert await admits(limiter, limits)
    assert await admits(limiter, limits, key=OTHER_KEY)
    assert not await admits(limiter, limits)
    assert await admits(limiter, limits, tenant="rival")
    own = of_key(requests=(1, 1))
    assert await admits(limiter, own)
    assert not await admits(limiter, own)
    assert await admits(limiter, own, key=OTHER_KEY)


async def test_without_limits_redis_is_not_asked(limiter: RateLimiter, redis: Redis) -> None:
    before = (await redis.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0)
    charge = await limiter.admit("acme", KEY, Limits(), tokens=10**9)
    assert charge.headers == {}
    assert await limiter.give_back(charge) == []
    assert (await redis.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0) == before


async def test_a_job_that_no_wait_would_let_in_is_told_so(limiter: RateLimiter, redis: Redis) -> None:
    limits = of_key(requests=(60, 60), tokens=(1000, 500))
    with pytest.raises(ExceedsBurst, match=r"max_tokens.*501.*500") as refused:
        await limiter.admit("acme", KEY, limits, tokens=501)
    assert refused.value.extra == {"param": "max_tokens", "policy": "key-tokens", "limit": 500}
    assert (refused.value.status, refused.value.retryable) == (422, False)
    assert await redis.keys("rate:*") == []
    assert await admits(limiter, limits, 500)


async def test_keys_go_when_their_bucket_is_empty_and_share_a_slot(limiter: RateLimiter, redis: Redis) -> None:
    rate, fast = Rate(1, 100), Rate(6000, 100)
    await limiter.admit("acme", KEY, Limits(Rates(rate, rate), Rates(rate, rate)), tokens=30)
    ttls = {key.decode(): await redis.pttl(key) for key in await redis.keys("*")}
    assert set(ttls) == {
        f"rate:{{acme}}:{KEY.hex}:requests", f"rate:{{acme}}:{KEY.hex}:tokens",
        "rate:{acme}:requests", "rate:{acme}:tokens",
    }  # fmt: skip
    for key, ttl_ms in ttls.items():
        assert 0 < ttl_ms <= (30 * 60_000 + 1 if "tokens" in key else 60_001)
    await limiter.admit("rival", KEY, Limits(tenant=Rates(requests=fast)), tokens=1)
    await wait_until(lambda: gone(redis, "rate:{rival}:requests"))


async def gone(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_a_clock_that_is_set_back_lets_nothing_in_and_stops_nobody(redis: Redis) -> None:
    now_us = 1_800_000_000_000_000
    limiter = RateLimiter(redis, SystemClock(), local_share=0.5, redis_now_us=lambda: now_us)
    limits = of_key(tokens=(60, 10))
    assert await admits(limiter, limits, 10)
    now_us -= 3_600_000_000
    assert not await admits(limiter, limits, 1)
    now_us += 999_999
    assert not await admits(limiter, limits, 1)
    now_us += 1
    assert await admits(limiter, limits, 1)


async def test_a_limit_that_was_lowered_or_raised_holds_from_the_next_request_on(redis: Redis) -> None:
    now_us = 1_800_000_000_000_000
    limiter = RateLimiter(redis, SystemClock(), local_share=0.5, redis_now_us=lambda: now_us)
    assert await admits(limiter, of_key(tokens=(60, 100)), 90)
    assert not await admits(limiter, of_key(tokens=(60, 20)), 1)
    now_us += 70_000_000
    assert not await admits(limiter, of_key(tokens=(60, 20)), 1)
    now_us += 1_000_000
    assert await admits(limiter, of_key(tokens=(60, 20)), 1)
    assert await admits(limiter, of_key(tokens=(60, 1000)), 980)


async def test_keys_that_hold_something_else_count_as_empty(limiter: RateLimiter, redis: Redis) -> None:
    await redis.set(f"rate:{{acme}}:{KEY.hex}:requests", "nonsense")
    await redis.rpush(f"rate:{{acme}}:{KEY.hex}:tokens", "no", "string")
    limits = of_key(requests=(1, 9), tokens=(1, 9))
    charge = await limiter.admit("acme", KEY, limits, tokens=9)
    assert [each.remaining for each in charge.standings] == [8, 0]
    assert not await admits(limiter, limits)


# --- giving back -----------------------------------------------------------------------------------------------------


async def test_what_a_refused_job_took_is_there_again_and_only_once(limiter: RateLimiter, redis: Redis) -> None:
    limits = of_key(tokens=(1, 100))
    charge = await limiter.admit("acme", KEY, limits, tokens=100)
    assert not await admits(limiter, limits, 50)
    await limiter.give_back(charge)
    assert await admits(limiter, limits, 100)
    await limiter.give_back(charge)
    assert not await admits(limiter, limits, 50), "it was given back twice"
    assert 0 < await redis.pttl(f"rate:{{acme}}:refund:{charge.id.hex}") <= 60_000


async def test_an_empty_bucket_stays_empty(limiter: RateLimiter, redis: Redis) -> None:
    limits = of_key(tokens=(1, 100))
    charge = await limiter.admit("acme", KEY, limits, tokens=60)
    await redis.flushdb()
    assert [each.level for each in await limiter.give_back(charge)] == [0]
    assert await admits(limiter, limits, 100)
    assert not await admits(limiter, limits, 1)


@pytest.mark.parametrize(
    ("error", "is_given_back"),
    [
        (BudgetExhausted("no"), True),
        (KeyError("ours"), True),
        (Unavailable("whether it was committed is unknown"), False),
        (OSError("so is this"), False),
        (asyncio.CancelledError(), False),
    ],
)
async def test_only_a_job_that_surely_was_not_made_gives_back(
    limiter: RateLimiter, error: BaseException, is_given_back: bool
) -> None:
    limits = of_key(tokens=(1, 100))
    with pytest.raises(type(error)):
        async with limiter.charged("acme", KEY, limits, tokens=60, undone_by=(KeyError,)):
            raise error
    assert await admits(limiter, limits, 90) == is_given_back
    if isinstance(error, BudgetExhausted):
        assert error.headers["x-ratelimit-remaining-tokens"] == "100"


async def test_a_submission_that_was_void_gives_back_and_one_that_was_not_keeps(limiter: RateLimiter) -> None:
    limits = of_key(tokens=(1, 100))
    async with limiter.charged("acme", KEY, limits, tokens=60) as charge:
        assert charge.headers["x-ratelimit-remaining-tokens"] == "40"
        charge.void()
    assert charge.headers == {}
    async with limiter.charged("acme", KEY, limits, tokens=60):
        pass
    assert not await admits(limiter, limits, 60)


# --- Redis forgets, or is away ---------------------------------------------------------------------------------------


async def test_a_flushed_redis_costs_one_burst_more_at_most(limiter: RateLimiter, redis: Redis) -> None:
    limits = of_key(requests=(1, 5))
    assert [await admits(limiter, limits) for _ in range(6)] == [True] * 5 + [False]
    await redis.flushdb()
    await redis.script_flush()
    assert [await admits(limiter, limits) for _ in range(6)] == [True] * 5 + [False]


@dataclass
class Process:
    """An API process's limiter on a Redis that a test may stop."""

    limiter: RateLimiter
    clock: HandClock
    redis: Redis

    async def until_back(self) -> None:
        """Ask again and again, as requests do, until Redis decides again."""
        async with asyncio.timeout(20):
            while self.limiter.is_away:
                self.clock.time_s += 1
                await admits(self.limiter, of_key(requests=(1, 1)), tenant="somebody")
                await asyncio.sleep(0.01)


@pytest.fixture
async def process(private_redis: EmbeddedRedis, settings: Settings) -> AsyncIterator[Process]:
    client, clock = create_redis(settings.model_copy(update={"redis_url": private_redis.url})), HandClock()
    limiter = RateLimiter(client, clock, local_share=0.5)
    yield Process(limiter, clock, client)
    await limiter.aclose()
    await client.aclose()


async def test_without_redis_a_process_admits_its_share_and_redis_hears_of_it(
    process: Process, private_redis: EmbeddedRedis
) -> None:
    limits = of_key(requests=(6, 10))
    assert [await admits(process.limiter, limits) for _ in range(3)] == [True] * 3
    private_redis.stop()
    # Five are the share, three are taken: two are left. Then one in twenty seconds.
    assert [await admits(process.limiter, limits) for _ in range(4)] == [True, True, False, False]
    assert process.limiter.is_away
    process.clock.time_s += 40
    assert [await admits(process.limiter, limits) for _ in range(3)] == [True, True, False]
    assert await admits(process.limiter, limits, tenant="rival"), "of whom it knows nothing"
    private_redis.start()
    await process.until_back()
    level, _ = (await process.redis.get(f"rate:{{acme}}:{KEY.hex}:requests")).split()
    assert int(level) > 3 * PARTS, "Redis knows only of the first three"
    assert await admits(process.limiter, limits)


async def test_what_is_let_in_while_redis_is_told_goes_along_with_the_next_request(
    process: Process, private_redis: EmbeddedRedis
) -> None:
    limits = of_key(tokens=(1, 100))
    private_redis.stop()
    assert await admits(process.limiter, limits, 50)
    private_redis.start()
    process.limiter._is_away = False  # as if it had been told before this one was let in
    assert await admits(process.limiter, limits, 50)
    assert not await admits(process.limiter, limits, 1)


async def test_redis_that_hangs_holds_up_one_request_only(
    process: Process, private_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = of_key(requests=(60, 100))
    assert await admits(process.limiter, limits)
    private_redis.pause()
    try:
        assert await admits(process.limiter, limits)
        assert process.limiter.is_away
        with monkeypatch.context() as patch:
            patch.setattr(process.limiter, "_ask", pytest.fail)
            assert all([await admits(process.limiter, limits) for _ in range(20)])
    finally:
        private_redis.resume()
    await process.until_back()


async def test_a_job_larger_than_the_share_passes_an_empty_bucket_and_is_paid_off(
    process: Process, private_redis: EmbeddedRedis
) -> None:
    limits = of_key(tokens=(60, 100))
    private_redis.stop()
    assert await admits(process.limiter, limits, 80)
    with pytest.raises(RateLimited) as refused:
        await process.limiter.admit("acme", KEY, limits, tokens=1)
    # From 80 down to 49, at half a token a second.
    assert 62 <= refused.value.extra["retry_after_s"] <= 62 * 1.25 + 2
    process.clock.time_s += 62.001
    assert await admits(process.limiter, limits, 1)


async def test_what_a_process_alone_let_in_it_gives_back_itself(process: Process, private_redis: EmbeddedRedis) -> None:
    limits = of_key(tokens=(60, 100))
    private_redis.stop()
    charge = await process.limiter.admit("acme", KEY, limits, tokens=50)
    assert not await admits(process.limiter, limits, 50)
    await process.limiter.give_back(charge)
    assert await admits(process.limiter, limits, 50)


async def test_a_refund_that_finds_redis_gone_is_no_error(process: Process, private_redis: EmbeddedRedis) -> None:
    charge = await process.limiter.admit("acme", KEY, of_key(tokens=(60, 100)), tokens=50)
    private_redis.stop()
    assert await process.limiter.give_back(charge) == charge.standings
    assert process.limiter.is_away


spans_us = st.one_of(st.integers(0, 1000), st.integers(0, 3_000_000), st.integers(0, 60_000_000))
acts = st.one_of(
    st.tuples(st.just("ask"), st.integers(1, 20)),
    st.tuples(st.just("wait"), spans_us),
    st.tuples(st.sampled_from(["cut", "forget", "heal", "refund"]), st.just(0)),
)


@given(
    st.builds(Rate, st.integers(1, 600), st.integers(20, 60)),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.lists(acts, min_size=3, max_size=30),
)
@example(Rate(60, 20), 0.5, [("ask", 1), ("cut", 0), ("forget", 0), ("heal", 0)])
@example(Rate(60, 20), 0.5, [("cut", 0), ("ask", 1), ("heal", 0)])
@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_alone_a_process_keeps_to_the_limit_through_any_outage(
    redis: Redis, rate: Rate, share: float, steps: list[tuple[str, int]]
) -> None:
    """Also if Redis comes back without its memory, where the process has seen that it was away."""
    clock, is_cut, tenant = HandClock(), False, next(tenants)
    limits, tiny = Limits(tenant=Rates(tokens=rate)), of_key(requests=(1, 1))
    limiter = RateLimiter(redis, clock, local_share=share, redis_now_us=lambda: int(clock.time_s * 1_000_000))
    run, ping = limiter._scripts.run, limiter._ping

    async def run_if_whole(*args: Any) -> Any:
        if is_cut:
            raise RedisError
        return await run(*args)

    async def ping_if_whole() -> None:
        if is_cut:
            raise RedisError
        await ping()

    limiter._scripts.run = run_if_whole  # type: ignore[method-assign]
    limiter._ping = ping_if_whole  # type: ignore[method-assign]
    charges: list[Charge] = []
    for act, number in [*steps, ("heal", 0), ("ask", 1)]:
        if act == "wait":
            clock.time_s += number / 1_000_000
        elif act == "cut":
            is_cut = True
            await admits(limiter, tiny, tenant="somebody")  # through whom it is seen
        elif act == "heal":
            is_cut = False
            while limiter.is_away:
                clock.time_s += 1
                await admits(limiter, tiny, tenant="somebody")
                assert limiter._look is not None
                await limiter._look
        elif act == "forget" and limiter.is_away:
            await redis.flushdb()
        elif act == "refund" and charges:
            await limiter.give_back(charges.pop())
        while act == "ask":  # for as much as there is
            try:
                charges.append(await limiter.admit(tenant, KEY, limits, tokens=number))
            except RateLimited:
                break
    # Both clocks are the same here, whoever has decided.
    taken = [(charge.taken_us, charge.amounts[0]) for charge in charges]
    assert most_at_once(taken, rate.per_minute) <= rate.burst
