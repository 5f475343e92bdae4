"""How full is a bucket? The generic cell rate algorithm, GCRA, as a leaky bucket whose level is a whole number.

Source: ITU-T Recommendation I.371, annex A, the continuous-state leaky bucket, which lets the same through as the algorithm's other form,
virtual scheduling, with its theoretical arrival time; B. Leach, "Rate Limiting, Cells, and GCRA", brandur.org, 2015, for its use on APIs.
What was admitted in any span of time is at most `burst` + `per_minute` x span.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from app.quotas.limits import Limits, Rate

PARTS = 60_000_000  # of a request or token, the microseconds of a minute: `per_minute` of them leak in a microsecond

Unit = Literal["requests", "tokens"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """One limit of one owner. `policy` is its name to callers, `key` where its level lives in Redis."""

    policy: str
    key: str
    unit: Unit
    rate: Rate

    def amount(self, tokens: int, requests: int = 1) -> int:
        """What jobs of so many tokens together take."""
        return tokens if self.unit == "tokens" else requests


def buckets_of(tenant_id: str, api_key_id: UUID | None, limits: Limits) -> tuple[Bucket, ...]:
    """The buckets of a caller who has limits. Their keys share the tenant's hash tag, so that one script may see them all."""
    owners = [("tenant", f"rate:{{{tenant_id}}}", limits.tenant)]
    if api_key_id is not None:
        owners.insert(0, ("key", f"rate:{{{tenant_id}}}:{api_key_id.hex}", limits.key))
    units: tuple[Unit, ...] = ("requests", "tokens")
    return tuple(
        Bucket(f"{owner}-{unit}", f"{prefix}:{unit}", unit, rate)
        for owner, prefix, rates in owners
        for unit in units
        if (rate := getattr(rates, unit)) is not None
    )


def refund_key(tenant_id: str, charge_id: UUID) -> str:
    """The mark that a charge was given back."""
    return f"rate:{{{tenant_id}}}:refund:{charge_id.hex}"


@dataclass(frozen=True, slots=True)
class Standing:
    """A bucket at one moment. `share` is that of the limit which holds now: less than 1 while a process decides alone."""

    bucket: Bucket
    level: int  # in parts
    share: float = 1.0

    @property
    def capacity(self) -> int:
        """What goes in, in parts."""
        return int(self.bucket.rate.burst * PARTS * self.share)

    @property
    def remaining(self) -> int:
        """Whole requests or tokens that may be taken now."""
        return max(0, self.capacity - self.level) // PARTS

    @property
    def next_us(self) -> int:
        """Microseconds until there is one more than `remaining`; 0 where there won't be more."""
        return self.until(self.capacity - (self.remaining + 1) * PARTS) if self.level else 0

    @property
    def reset_us(self) -> int:
        """Microseconds until the bucket is empty, all of the limit there again."""
        return self.until(0)

    def wait_us(self, amount: int) -> int:
        """Microseconds until so many may be taken, if nobody else takes any; 0 is now."""
        if self.share < 1 and amount * PARTS > self.capacity:
            return self.until(0)  # more than the share holds: it may have all of an empty bucket, and pay it off
        return self.until(self.capacity - amount * PARTS)

    def until(self, level: int) -> int:
        """Microseconds until the bucket is down to this level, or empty."""
        above = self.level - max(0, level)
        if above <= 0:
            return 0
        if self.share == 1:
            return -(-above // self.bucket.rate.per_minute)
        return 1 + int(above / (self.bucket.rate.per_minute * self.share))


def longest_wait(standings: Sequence[Standing], amounts: Sequence[int]) -> tuple[Standing, int]:
    """The limit that holds up such a job for longest, and the microseconds; 0 where none does."""
    waits = [(each.wait_us(amount), each) for each, amount in zip(standings, amounts, strict=True)]
    wait_us, binding = max(waits, key=lambda pair: pair[0])
    return binding, wait_us
