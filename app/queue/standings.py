"""Who goes before whom by the counters that claims go by? How much others may be served until they have caught up."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

from redis.asyncio.client import Pipeline

from app.queue.keys import PoolKeys
from app.queue.places import TIER_WEIGHTS


@dataclass(frozen=True, slots=True)
class Standings:
    """Counters of a pool: work that was charged / weight. `per_token`: work that is charged for a token of the queue, on the mean."""

    tenants: Mapping[str, Mapping[bytes, float]]  # by tier; without those that the queue doesn't remember
    tiers: Mapping[str, float]
    per_token: float

    def owed(self, tier: str, tenants: Sequence[bytes], others: Sequence[tuple[bytes, float]]) -> list[float]:
        """For each of these tenants, tokens of the others (tenant, weight) that claims hand out before its next job, if they have so many waiting.

        A tenant that isn't remembered begins where the least served stands, or before: nothing is owed.
        """
        known = self.tenants[tier]
        behind = sorted((known[other], weight) for other, weight in others if other in known)
        counters = [counter for counter, _ in behind]
        weights = [0.0, *accumulate(weight for _, weight in behind)]
        served = [0.0, *accumulate(counter * weight for counter, weight in behind)]

        def owed_by(tenant: bytes) -> float:
            at = known.get(tenant, 0.0)
            less = bisect_left(counters, at) if tenant in known else 0
            return max(0.0, at * weights[less] - served[less]) / self.per_token

        return [owed_by(each) for each in tenants]

    def owed_to_tiers(self, waiting: Mapping[str, int]) -> dict[str, float]:
        """By tier, the same of other tiers, of which so many tokens wait: more than that isn't handed out before anybody."""
        return {
            tier: sum(
                min(tokens, TIER_WEIGHTS[other] * max(0.0, at - self.tiers[other]) / self.per_token)
                for other, tokens in waiting.items()
            )
            for tier, at in self.tiers.items()
        }


def ask_for_tiers(pipe: Pipeline, keys: PoolKeys) -> None:
    """Ask for the counters of all tiers, and what a token is charged: two replies, the counters and the mean."""
    pipe.hmget(keys.tiers, list(TIER_WEIGHTS))
    pipe.hget(keys.mean, ":all")


def ask_for_tenants(pipe: Pipeline, keys: PoolKeys, tenants: Mapping[str, Sequence[bytes]]) -> None:
    """Ask for the counters of these tenants, by tier: two replies for each tier that has any."""
    for tier, names in tenants.items():
        if names:
            pipe.zmscore(keys.active(tier), cast("list[str]", names))  # bytes do, too
            pipe.hmget(keys.remembered(tier), cast("list[str]", names))


def standings_of(
    tiers: Sequence[bytes | None], mean: bytes | None, tenants: Mapping[str, Sequence[bytes]], counters: Sequence[Any]
) -> Standings:
    """From the replies to `ask_for_tiers` (`tiers` and `mean`) and to `ask_for_tenants` (`counters`) for the same tenants."""
    known: dict[str, dict[bytes, float]] = {tier: {} for tier in TIER_WEIGHTS}
    replies = iter(counters)
    for tier, names in tenants.items():
        if names:
            for name, active, idle in zip(names, next(replies), next(replies), strict=True):
                value = idle if active is None else active
                if value is not None:
                    known[tier][name] = float(value)
    at = {tier: float(value or 0.0) for tier, value in zip(TIER_WEIGHTS, tiers, strict=True)}
    return Standings(known, at, max(1e-6, float(mean or 1.0)))
