"""How do nominations travel? Enqueue, claim, ack: each one Lua script, each harmless when repeated."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.queue.keys import PoolKeys
from app.queue.places import LANES, MAX_SOLO_SUSPECTS, PLACES, TIER_WEIGHTS, place_again
from app.redis import Redis, Scripts


@dataclass(frozen=True, slots=True)
class Nomination:
    """A job that is eligible to run: (job, gen), and what is needed to file it. `cost` is prompt + wanted output, in tokens."""

    job_id: UUID
    gen: int
    place: str  # app.queue.places
    tenant: str
    cost: int


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits in one tier."""

    jobs: int
    tokens: int


class JobQueue:
    """One pool's queue in Redis. It nominates; only Postgres turns a nomination into work."""

    def __init__(self, redis: Redis, pool: str) -> None:
        self.redis = redis
        self.keys = PoolKeys(pool)
        self._scripts = Scripts(redis, "app.queue.lua")

    async def enqueue(self, nominations: Iterable[Nomination], *, force: bool = False) -> int | None:
        """Nominate each (job, gen) once; an older gen of the same job is taken out.

        Returns:
            How many were new; None where this Redis lost its memory and nothing was added: the rebuild, which passes
            `force`, will bring the jobs in their order.
        """
        keys = self.keys
        args: list[str | int] = [keys.prefix, int(force)]
        for each in nominations:
            args += [each.job_id.hex, each.gen, each.place, each.tenant, each.cost]
        if len(args) == 2:
            return 0
        added = await self._scripts.run("enqueue", [keys.idx, keys.depth, keys.bell, keys.epoch, keys.tiers], args)
        return None if added < 0 else int(added)

    async def claim(self, consumer: str, *, max_jobs: int, room: int) -> list[Nomination]:
        """Take nominations worth up to `room` tokens (the last may pass it) and at most `max_jobs`.

        While suspects wait, they are all that is handed out: one, or one group of them. They run without company.
        """
        keys = self.keys
        args: list[str | int] = [keys.prefix, consumer, max_jobs, room, MAX_SOLO_SUSPECTS]
        for tier, weight in TIER_WEIGHTS.items():
            args += [tier, weight]
        flat: list[bytes] = await self._scripts.run("claim", [keys.idx, keys.tiers, keys.pend, keys.depth], args)
        return [
            Nomination(UUID(hex=job.decode()), int(gen), place.decode(), tenant.decode(), int(cost))
            for job, gen, place, tenant, cost in zip(*[iter(flat)] * 5, strict=True)
        ]

    async def ack(self, decided: Iterable[tuple[UUID, int]]) -> int:
        """Take out each (job, gen) that was decided; one whose gen has moved on stays."""
        args: list[str | int] = [self.keys.prefix]
        for job_id, gen in decided:
            args += [job_id.hex, gen]
        if len(args) == 1:
            return 0
        return int(await self._scripts.run("ack", [self.keys.idx, self.keys.depth], args))

    async def renominate(self, *, idle_s: float, most: int = 200) -> int:
        """Put back what was claimed and not decided for `idle_s`; return how many."""
        keys = self.keys
        args: list[str | int] = [keys.prefix, int(idle_s * 1000), most]
        return int(await self._scripts.run("renominate", [keys.idx, keys.pend, keys.bell], args))

    async def mend(self, job_ids: Sequence[UUID], *, page: int = 100) -> int:
        """Put back the nominations of these jobs that no claim can find any more, in this order; return how many repairs.

        Lost are stream entries, a tenant's place in `act` and a stream's in `pend`. Jobs that aren't nominated are passed over.
        """
        keys, mended = self.keys, 0
        for start in range(0, len(job_ids), page):
            jobs = [job_id.hex for job_id in job_ids[start : start + page]]
            mended += int(await self._scripts.run("mend", [keys.idx, keys.pend, keys.bell], [keys.prefix, *jobs]))
        return mended

    async def recount(self) -> bool:
        """Count the depth anew if it doesn't add up to what is nominated; return whether it had to."""
        return bool(await self._scripts.run("recount", [self.keys.idx, self.keys.depth], list(PLACES)))

    async def known_gens(self, job_ids: Sequence[UUID]) -> list[int | None]:
        """The gen under which each job is nominated; None where it isn't."""
        if not job_ids:
            return []
        values: list[Any] = await self.redis.hmget(self.keys.idx, [job_id.hex for job_id in job_ids])
        return [None if value is None else int(value.partition(b":")[0]) for value in values]

    async def scan(self, page: int = 1000) -> AsyncIterator[list[tuple[UUID, int]]]:
        """Every (job, gen) that is nominated all the while, in pages of about this size; one may come twice."""
        cursor = 0
        while True:
            reply: Any = await self.redis.hscan(self.keys.idx, cursor, count=page)
            cursor, found = reply
            if found:
                yield [(UUID(hex=job.decode()), int(value.partition(b":")[0])) for job, value in found.items()]
            if cursor == 0:
                return

    async def depth(self) -> dict[str, Depth]:
        """What waits, by tier; suspects, who wait in a lane, aren't among it."""
        raw: dict[Any, Any] = await self.redis.hgetall(self.keys.depth)
        found = {
            place: [int(raw.get(f"{place}:{unit}".encode(), 0)) for unit in ("jobs", "tokens")] for place in PLACES
        }
        return {
            tier: Depth(*(new + again for new, again in zip(found[tier], found[place_again(tier)], strict=True)))
            for tier in TIER_WEIGHTS
        }

    async def num_suspects(self) -> int:
        """How many jobs wait in the lanes."""
        counts = await self.redis.hmget(self.keys.depth, [f"{lane}:jobs" for lane in LANES])
        return sum(int(count or 0) for count in counts)

    async def wait_for_bell(self, timeout_s: float) -> bool:
        """Block until something was enqueued or the time is over; a ring may be for work that another worker takes."""
        return await self.redis.blpop([self.keys.bell], timeout=timeout_s) is not None

    async def has_epoch(self) -> bool:
        """Whether this Redis remembers the pool. False after a loss: rebuild."""
        return bool(await self.redis.exists(self.keys.epoch))

    async def open_epoch(self, name: str) -> None:
        """Say that this Redis now knows all that waits."""
        await self.redis.set(self.keys.epoch, name, nx=True)
