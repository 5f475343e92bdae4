"""How much of what it may write does a tenant's job really write? Quantiles of what was billed lately, by tenant and model."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.clock import Clock

TTL_S = 30.0
_MOST = 2000
_CLOSE_S = 2.0
_AT_ONCE = 2  # reads: the other connections are for those who wait
_ENOUGH = 10  # jobs; with fewer a job is believed to write all that it may

# The tenant's last rows by its index, then those of the model.
_QUANTILES = text("""
    SELECT count(*) AS jobs, percentile_cont(ARRAY[0.05, 0.5, 0.95]) WITHIN GROUP (ORDER BY part) AS parts
    FROM (
        SELECT least(1.0, u.completion_tokens::float8 / (j.n * j.max_tokens)) AS part
        FROM (SELECT job_id, model, completion_tokens, at FROM usage
              WHERE tenant_id = :tenant AND kind = 'billed' ORDER BY at DESC LIMIT 1000) u
        JOIN jobs j ON j.id = u.job_id
        WHERE u.model = :model AND j.status = 'succeeded' ORDER BY u.at DESC LIMIT 200) recent
""")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Output as a part of what was asked for (n x max_tokens), in [0, 1]: 5 in 100 write less than `least`, half less than `usual`, 5 more than `most`."""

    least: float
    usual: float
    most: float
    num_jobs: int  # that say so; 0: nothing is known, and all of it is assumed

    @property
    def is_known(self) -> bool:
        """Whether there is evidence."""
        return self.num_jobs > 0


UNKNOWN = Lengths(0.0, 1.0, 1.0, 0)


async def read_lengths(conn: AsyncConnection, tenant_id: str, model: str) -> Lengths:
    """By the tenant's last 200 jobs of the model; UNKNOWN where there are fewer than 10."""
    row = (await conn.execute(_QUANTILES, {"tenant": tenant_id, "model": model})).one()
    if row.jobs < _ENOUGH:
        return UNKNOWN
    least, usual, most = row.parts
    return Lengths(least, usual, most, row.jobs)


class LengthBook:
    """Lengths as one process knows them. Asking never waits: what isn't known, or is old, is read behind the answer."""

    def __init__(self, engine: AsyncEngine, *, clock: Clock, timeout_s: float, ttl_s: float = TTL_S) -> None:
        self._engine = engine
        self._clock = clock
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._known: OrderedDict[tuple[str, str], tuple[Lengths, float]] = OrderedDict()
        self._reads: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._reading = asyncio.Semaphore(_AT_ONCE)

    def of(self, tenant_id: str, model: str) -> Lengths:
        """What is known now."""
        key = (tenant_id, model)
        lengths, until = self._known.get(key, (UNKNOWN, 0.0))
        if self._clock.monotonic() >= until and key not in self._reads:
            self._reads[key] = asyncio.create_task(self._read(key))
        return lengths

    async def settle(self) -> None:
        """Until what is being read is read."""
        while self._reads:
            await asyncio.wait(set(self._reads.values()))

    async def close(self) -> None:
        """Read nothing more; what is being read may end, for a while."""
        if self._reads:
            await asyncio.wait(set(self._reads.values()), timeout=_CLOSE_S)
        for each in self._reads.values():
            each.cancel()
        await asyncio.gather(*self._reads.values(), return_exceptions=True)

    async def _read(self, key: tuple[str, str]) -> None:
        lengths = self._known.get(key, (UNKNOWN, 0.0))[0]
        try:
            async with self._reading, asyncio.timeout(self._timeout_s), self._engine.connect() as conn:
                lengths = await read_lengths(conn, *key)
        except (SQLAlchemyError, OSError):
            pass  # what was known stays; it is asked for again
        finally:
            self._reads.pop(key, None)
            self._known[key] = (lengths, self._clock.monotonic() + self._ttl_s)
            self._known.move_to_end(key)
            while len(self._known) > _MOST:
                self._known.popitem(last=False)
