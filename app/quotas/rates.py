"""May this caller submit that much now? One script in Redis decides for key and tenant, requests and tokens, at once."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from app.clock import Clock
from app.errors import InvalidRequest, PenstockError, Unavailable
from app.ids import new_id
from app.quotas.buckets import Bucket, Standing, buckets_of, longest_wait, refund_key
from app.quotas.limits import Limits
from app.quotas.rate_headers import rate_headers, retry_after_s
from app.quotas.rate_memory import RateMemory
from app.racing import at_most
from app.redis import Redis, RedisError, Scripts
from app.telemetry import emit

TIMEOUT_S = 0.5  # how long a submission waits for Redis to decide, before the process does
LOOK_AGAIN_S = 1.0  # while Redis is away: how often it is asked whether it is back, by nobody's request
_AWAY = (RedisError, OSError, TimeoutError)

log = logging.getLogger("penstock.rates")


class RateLimited(PenstockError):
    """The key or its tenant asks faster than it may. `policy` names the limit, `retry_after_s` says when to come back."""

    code = "rate_limited"
    status = 429
    retryable = True


class ExceedsBurst(InvalidRequest):
    """The job may need more tokens than a rate limit ever lets in at once: it can't pass, however long one waits."""

    code = "exceeds_burst"


@dataclass(slots=True)
class Charge:
    """What a submission has taken from its caller's buckets, and how they stood after it."""

    tenant_id: str
    buckets: tuple[Bucket, ...]
    amounts: tuple[int, ...]
    standings: list[Standing]
    taken_us: int
    is_local: bool
    is_void: bool = False
    id: UUID = field(default_factory=new_id)

    def void(self) -> None:
        """Nothing came of the submission: give back what it took."""
        self.is_void = True

    @property
    def headers(self) -> dict[str, str]:
        """What tells the caller how it stands; nothing after `void`."""
        return {} if self.is_void else rate_headers(self.standings)


class RateLimiter:
    """The rate limits as one API process holds its callers to them.

    While Redis is away the process decides by itself, for `local_share` of each limit, and no request waits for Redis. When that is back
    it is told the levels that are known here, which hold what was let in meanwhile, before it is asked for anything else.
    """

    def __init__(
        self, redis: Redis, clock: Clock, *, local_share: float, redis_now_us: Callable[[], int] | None = None
    ) -> None:
        """`redis_now_us`: the time that the scripts go by instead of Redis' own, for simulations and tests."""
        self._redis = redis
        self._scripts = Scripts(redis, "app.quotas.lua")
        self._clock = clock
        self._memory = RateMemory(share=local_share)
        self._redis_now_us = redis_now_us
        self._is_away = False
        self._looked_at = 0.0
        self._look: asyncio.Task[None] | None = None

    @property
    def is_away(self) -> bool:
        """Whether Redis is, so that this process decides alone."""
        return self._is_away

    @asynccontextmanager
    async def charged(
        self,
        tenant_id: str,
        api_key_id: UUID | None,
        limits: Limits,
        *,
        tokens: int,
        requests: int = 1,
        undone_by: tuple[type[Exception], ...] = (),
    ) -> AsyncIterator[Charge]:
        """Take one request (or many that come together) and its tokens, and give them back if nothing comes of it.

        That is: on `void`, on an error that is a refusal, and on those of `undone_by`. After any other error, `Unavailable` among
        them, the job may exist: what was taken stays taken.

        Raises:
            RateLimited: a limit is reached; nothing was taken.
            ExceedsBurst: a limit never lets so many tokens in at once.
        """
        refusals: tuple[type[Exception], ...] = (PenstockError, *undone_by)
        charge = await self.admit(tenant_id, api_key_id, limits, tokens=tokens, requests=requests)
        try:
            yield charge
        except refusals as error:
            if type(error) is not Unavailable:
                standings = await self.give_back(charge)
                if isinstance(error, PenstockError):
                    error.headers |= rate_headers(standings)
            raise
        if charge.is_void:
            await self.give_back(charge)

    async def admit(
        self, tenant_id: str, api_key_id: UUID | None, limits: Limits, *, tokens: int, requests: int = 1
    ) -> Charge:
        """Take one request (or many that come together) and its tokens, the most that the job may need, from every limit that applies, or nothing at all.

        Raises:
            RateLimited: a limit is reached.
            ExceedsBurst: a limit never lets so many tokens in at once.
        """
        buckets, amounts = _wanted(tenant_id, api_key_id, limits, tokens, requests)
        if not buckets:
            return Charge(tenant_id, (), (), [], 0, is_local=True)
        is_admitted, standings, taken_us, is_local = await self._decide(buckets, amounts)
        if not is_admitted:
            raise _limited(standings, amounts)
        return Charge(tenant_id, buckets, amounts, standings, taken_us, is_local)

    async def look(self, tenant_id: str, api_key_id: UUID | None, limits: Limits, *, tokens: int) -> None:
        """Refuse what `admit` would refuse now of one job; nothing is taken.

        Raises:
            RateLimited: a limit is reached.
            ExceedsBurst: a limit never lets so many tokens in at once.
        """
        buckets, amounts = _wanted(tenant_id, api_key_id, limits, tokens, 1)
        if not buckets:
            return
        standings = await self._look_at(buckets)
        if longest_wait(standings, amounts)[1] > 0:
            raise _limited(standings, amounts)

    async def give_back(self, charge: Charge) -> list[Standing]:
        """Undo a charge, once; how its buckets stand then. What has leaked since stays taken, and what Redis can't be told, too."""
        if not charge.buckets:
            return []
        if charge.is_local:
            return self._memory.put_back(charge.buckets, charge.amounts, charge.taken_us, self._now_us())
        if self._is_away:
            return charge.standings
        keys = [refund_key(charge.tenant_id, charge.id), *(bucket.key for bucket in charge.buckets)]
        args: list[Any] = [self._script_time(), charge.taken_us]
        for bucket, amount in zip(charge.buckets, charge.amounts, strict=True):
            args += [amount, bucket.rate.per_minute]
        try:
            reply = await at_most(TIMEOUT_S, self._scripts.run("refund", keys, args))
        except _AWAY as error:
            self._leave(error)
            return charge.standings
        return [Standing(bucket, level) for bucket, level in zip(charge.buckets, reply[2:], strict=True)]

    async def aclose(self) -> None:
        """Stop looking for Redis."""
        if self._look is not None:
            self._look.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._look

    async def _decide(
        self, buckets: Sequence[Bucket], amounts: Sequence[int]
    ) -> tuple[bool, list[Standing], int, bool]:
        """Whether it was taken, how the buckets stand, when that was, and whether this process has decided alone."""
        if self._is_away:
            self._look_for_redis()
        else:
            try:
                return await at_most(TIMEOUT_S, self._ask(buckets, amounts))
            except _AWAY as error:
                self._leave(error)
        now_us = self._now_us()
        is_admitted, standings = self._memory.take(buckets, amounts, now_us)
        return is_admitted, standings, now_us, True

    async def _look_at(self, buckets: Sequence[Bucket]) -> list[Standing]:
        if not self._is_away:
            try:
                return (await at_most(TIMEOUT_S, self._ask(buckets, [0] * len(buckets))))[1]
            except _AWAY as error:
                self._leave(error)
        self._look_for_redis()
        return self._memory.standings(buckets, self._now_us())

    async def _ask(self, buckets: Sequence[Bucket], amounts: Sequence[int]) -> tuple[bool, list[Standing], int, bool]:
        now_us = self._now_us()
        debts = [self._memory.debt(bucket) for bucket in buckets]
        args: list[Any] = [self._script_time()]
        for bucket, amount, debt in zip(buckets, amounts, debts, strict=True):
            floor = 0 if debt is None else self._memory.level(bucket, now_us)
            args += [amount, bucket.rate.per_minute, bucket.rate.burst, floor]
        is_admitted, redis_us, *levels = await self._scripts.run("admit", [bucket.key for bucket in buckets], args)
        for bucket, level, debt in zip(buckets, levels, debts, strict=True):
            self._memory.learn(bucket, level, self._now_us(), redis_us=redis_us, paid=debt)
        standings = [Standing(bucket, level) for bucket, level in zip(buckets, levels, strict=True)]
        return is_admitted == 1, standings, redis_us, False

    def _leave(self, error: BaseException) -> None:
        self._looked_at = self._clock.monotonic()
        if not self._is_away:
            self._is_away = True
            self._memory.doubt()
            emit(log, logging.WARNING, "rates.local", error=error)

    def _look_for_redis(self) -> None:
        if self._look is not None and not self._look.done():
            return
        if self._clock.monotonic() - self._looked_at >= LOOK_AGAIN_S:
            self._look = asyncio.create_task(self._return())

    async def _return(self) -> None:
        """Tell Redis what it may not know. What is let in while that is told goes along with its bucket's next request."""
        self._looked_at = self._clock.monotonic()
        try:
            await at_most(TIMEOUT_S, self._ping())
            for bucket in self._memory.owed(self._now_us()):
                await at_most(TIMEOUT_S, self._ask([bucket], [0]))
            self._is_away = False
            emit(log, logging.INFO, "rates.shared")
        except _AWAY:
            self._looked_at = self._clock.monotonic()

    async def _ping(self) -> None:
        await self._redis.ping()

    def _now_us(self) -> int:
        return int(self._clock.monotonic() * 1_000_000)

    def _script_time(self) -> int | str:
        return "" if self._redis_now_us is None else self._redis_now_us()


def _wanted(
    tenant_id: str, api_key_id: UUID | None, limits: Limits, tokens: int, requests: int
) -> tuple[tuple[Bucket, ...], tuple[int, ...]]:
    """The buckets that apply and what each has to give; ExceedsBurst where one never can."""
    buckets = buckets_of(tenant_id, api_key_id, limits)
    amounts = tuple(bucket.amount(tokens, requests) for bucket in buckets)
    for bucket, amount in zip(buckets, amounts, strict=True):
        if amount > bucket.rate.burst:
            raise _exceeds(bucket, amount)
    return buckets, amounts


def _limited(standings: Sequence[Standing], amounts: Sequence[int]) -> RateLimited:
    binding, wait_us = longest_wait(standings, amounts)
    bucket, wait_s = binding.bucket, retry_after_s(wait_us, random.random())  # noqa: S311
    owner = "API key" if bucket.policy.startswith("key") else "tenant"
    alone = "" if binding.share == 1 else ", while Redis is away and only a share of the limit is given out"
    error = RateLimited(
        f"this {owner} may submit {bucket.rate.per_minute} {bucket.unit} a minute, {bucket.rate.burst} at once; "
        f"{binding.remaining} are left now{alone}: come back in {wait_s} s, or have the limit raised",
        policy=bucket.policy,
        limit=bucket.rate.per_minute,
        retry_after_s=wait_s,
        **{
            "violated-policies": [
                each.bucket.policy for each, amount in zip(standings, amounts, strict=True) if each.wait_us(amount) > 0
            ]
        },
    )
    error.headers |= {"Retry-After": str(wait_s)} | rate_headers(standings)
    return error


def _exceeds(bucket: Bucket, amount: int) -> ExceedsBurst:
    owner = "API key" if bucket.policy.startswith("key") else "tenant"
    if bucket.unit == "requests":
        return ExceedsBurst(
            f"jobs: these are {amount} jobs, and this {owner} may submit {bucket.rate.burst} at once: send fewer in a call, "
            "or have the limit's burst raised",
            param="jobs",
            policy=bucket.policy,
            limit=bucket.rate.burst,
        )
    return ExceedsBurst(
        f"max_tokens: prompt and n x max_tokens may be {amount} tokens, and this {owner} may submit {bucket.rate.burst} at "
        "once: ask for less, or have the limit's burst raised",
        param="max_tokens",
        policy=bucket.policy,
        limit=bucket.rate.burst,
    )
