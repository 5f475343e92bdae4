"""How many submissions did all API processes decide lately, and why? A hash a minute, which goes by itself; it may be missed."""

from collections import Counter
from collections.abc import Mapping

from app.redis import Redis

KEPT_S = 3600


def decisions_key(minute: int | str) -> str:
    """Hash: `decision:reason` -> submissions of that minute since the epoch."""
    return f"adm:{minute}"


async def note_decisions(redis: Redis, minute: int, counts: Mapping[str, int]) -> None:
    """Add what one process has decided.

    Raises:
        RedisError: Redis doesn't answer; the counts are lost, or were added.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for name, count in counts.items():
            pipe.hincrby(decisions_key(minute), name, count)
        pipe.expire(decisions_key(minute), KEPT_S)
        await pipe.execute()


async def read_decisions(redis: Redis, minute: int, *, minutes: int) -> Counter[str]:
    """Of the `minutes` up to and with this one, by `decision:reason`, in one round trip.

    Raises:
        RedisError: Redis doesn't answer.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for each in range(minute - minutes + 1, minute + 1):
            pipe.hgetall(decisions_key(each))
        found = await pipe.execute()
    total: Counter[str] = Counter()
    for each in found:
        total.update({name.decode(): int(count) for name, count in each.items()})
    return total
