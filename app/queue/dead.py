"""How do those who watch learn of a dead letter? By a stream of each pool, capped; Postgres has them all."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.queue.keys import PoolKeys
from app.redis import Redis

MAX_ENTRIES = 10_000  # of one pool's stream, about
_BLOCK_MS = 1000


@dataclass(frozen=True, slots=True)
class Obituary:
    """That a job was given up, and why."""

    pool: str
    job: str  # its public name
    tenant: str
    reason: str
    fingerprint: str
    at: str  # RFC 3339


async def publish_obituaries(redis: Redis, obituaries: Sequence[Obituary]) -> None:
    """Append them to their pools' streams, in one round trip.

    Raises:
        RedisError: Redis doesn't answer.
    """
    if not obituaries:
        return
    pipe = redis.pipeline(transaction=False)
    for each in obituaries:
        fields: dict[Any, Any] = {
            "job": each.job, "tenant": each.tenant, "reason": each.reason, "fingerprint": each.fingerprint, "at": each.at,
        }  # fmt: skip
        pipe.xadd(PoolKeys(each.pool).dlq, fields, maxlen=MAX_ENTRIES, approximate=True)
    await pipe.execute()


async def follow_obituaries(redis: Redis, pools: Sequence[str], *, backlog: int = 0) -> AsyncIterator[Obituary]:
    """Those to come, of these pools, and before them the newest `backlog` of each; goes on until it is closed.

    Raises:
        RedisError: Redis doesn't answer.
    """
    by_key = {PoolKeys(pool).dlq.encode(): pool for pool in pools}
    after: dict[Any, Any] = {}
    for key, pool in by_key.items():
        newest: Any = await redis.xrevrange(key, count=max(1, backlog))
        after[key] = newest[0][0] if newest else b"0-0"
        for _, fields in reversed(newest[:backlog]):
            yield _read(pool, fields)
    while True:
        found: Any = await redis.xread(after, count=100, block=_BLOCK_MS)
        for key, entries in found or []:
            for entry_id, fields in entries:
                after[key] = entry_id
                yield _read(by_key[key], fields)


def _read(pool: str, fields: dict[bytes, bytes]) -> Obituary:
    known = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
    return Obituary(pool, *(known.get(name, "") for name in ("job", "tenant", "reason", "fingerprint", "at")))
