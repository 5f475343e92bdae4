"""Who goes before whom by the counters that claims go by? How much others may be served until they have caught up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from app.queue.places import TIER_WEIGHTS
from app.queue.streams import JobQueue


@dataclass(frozen=True, slots=True)
class Standings:
    """Counters of a pool: work that was charged / weight. `per_token`: work that is charged for a token of the queue, on the mean."""

    tenants: Mapping[str, Mapping[bytes, float]]  # by tier; without those that the queue doesn't remember
    tiers: Mapping[str, float]
    per_token: float

    def owed(self, tier: str, tenant: bytes, others: Sequence[tuple[bytes, float]]) -> float:
        """Tokens of these (tenant, weight) that claims hand out before this tenant's next job, if they have so many waiting.

        A tenant that isn't remembered begins where the least served stands, or before: nothing is owed.
        """
        known = self.tenants[tier]
        if tenant not in known:
            return 0.0
        work = sum(weight * max(0.0, known[tenant] - known.get(other, known[tenant])) for other, weight in others)
        return work / self.per_token

    def owed_to_tiers(self, waiting: Sequence[str]) -> dict[str, float]:
        """By tier, the same of other tiers, of which `waiting` have work."""
        return {
            tier: sum(TIER_WEIGHTS[other] * max(0.0, at - self.tiers[other]) for other in waiting) / self.per_token
            for tier, at in self.tiers.items()
        }


async def read_standings(queue: JobQueue, tenants: Mapping[str, Sequence[bytes]]) -> Standings:
    """Of all tiers, and by tier of these tenants; one round trip.

    Raises:
        RedisError: it doesn't answer.
    """
    keys, names = queue.keys, list(TIER_WEIGHTS)
    looked_for = {tier: list(dict.fromkeys(tenants.get(tier, ()))) for tier in names}
    asked = [tier for tier in names if looked_for[tier]]
    async with queue.redis.pipeline(transaction=False) as pipe:
        pipe.hmget(keys.tiers, names)
        pipe.hget(keys.mean, ":all")
        for tier in asked:
            pipe.zmscore(keys.active(tier), cast("list[str]", looked_for[tier]))  # bytes do, too
            pipe.hmget(keys.remembered(tier), looked_for[tier])
        found: list[Any] = await pipe.execute()
    known: dict[str, dict[bytes, float]] = {tier: {} for tier in names}
    for place, tier in enumerate(asked):
        for name, active, idle in zip(looked_for[tier], found[2 + 2 * place], found[3 + 2 * place], strict=True):
            value = idle if active is None else active
            if value is not None:
                known[tier][name] = float(value)
    at = {tier: float(value or 0.0) for tier, value in zip(names, found[0], strict=True)}
    return Standings(known, at, max(1e-6, float(found[1] or 1.0)))
