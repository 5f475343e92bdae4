"""How do nominations travel? Enqueue, claim, ack: each one Lua script, each harmless when repeated."""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.queue.fairness import AGING_S, COMMON_LEVEL, LEVELS, Terms
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
    level: int = COMMON_LEVEL  # as claimed: the lower, the more it may displace others of its tier


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits in one tier."""

    jobs: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Room:
    """What a worker can take in of one tier and those above it, at the cost of those below it."""

    tokens: int
    jobs: int


@dataclass(frozen=True, slots=True)
class Ring:
    """A bell rang."""

    needs_room: (
        bool  # for work that would have to take the room of others here: a worker with free room should be faster
    )


@dataclass(frozen=True, slots=True)
class Work:
    """What a job that has ended has really cost: `app.queue.fairness.work_of`."""

    job_id: UUID
    tokens: float


class JobQueue:
    """One pool's queue in Redis. It nominates; only Postgres turns a nomination into work.

    `now`: Unix time in seconds, where it isn't Redis' own (a virtual clock).
    """

    def __init__(self, redis: Redis, pool: str, *, now: Callable[[], float] | None = None) -> None:
        self.redis = redis
        self.keys = PoolKeys(pool)
        self._scripts = Scripts(redis, "app.queue.lua")
        self._now = now

    async def enqueue(self, nominations: Iterable[Nomination], *, force: bool = False) -> int | None:
        """Nominate each (job, gen) once; an older gen of the same job is taken out.

        Returns:
            How many were new; None where this Redis lost its memory and nothing was added: the rebuild, which passes
            `force`, will bring the jobs in their order.
        """
        keys = self.keys
        args: list[str | int] = [keys.prefix, int(force), self._time()]
        for each in nominations:
            args += [each.job_id.hex, each.gen, each.place, each.tenant, each.cost]
        if len(args) == 3:
            return 0
        added = await self._scripts.run("enqueue", [keys.idx, keys.depth, keys.epoch, keys.tiers], args)
        return None if added < 0 else int(added)

    async def claim(
        self,
        consumer: str,
        *,
        max_jobs: int,
        room: int | Mapping[str, Room | Sequence[Room]],
        lead: int = 0,
        credit: int = 0,
        aging_s: float = AGING_S,
    ) -> list[Nomination]:
        """Take nominations worth up to `room` tokens (the last may pass it) and at most `max_jobs`.

        While suspects wait, they are all that is handed out: one, or one group of them. They run without company.

        Args:
            consumer: who claims.
            max_jobs: most jobs.
            room: tokens for all tiers together; or what each tier may take, where higher ones may take it from lower ones;
                or that by level, where a tenant that returned from idle may take it from others of its tier.
            lead: tokens that a tier may run ahead of its share where the tier whose turn it is has no room.
            credit: tokens of work by which a tenant that returns from idle may go ahead of the others, if it left them so much.
            aging_s: a tier that had no turn for so long gets one, out of turn.
        """
        keys = self.keys
        rooms: dict[str, Sequence[Room]] = {}
        for tier in TIER_WEIGHTS:
            own = Room(room, max_jobs) if isinstance(room, int) else room[tier]
            rooms[tier] = [own] * LEVELS if isinstance(own, Room) else own
        most = max(each.tokens for levels in rooms.values() for each in levels)
        args: list[str | int | float] = [
            keys.prefix, consumer, max_jobs, most, MAX_SOLO_SUSPECTS, lead, credit, aging_s, self._time(), LEVELS,
        ]  # fmt: skip
        for tier, weight in TIER_WEIGHTS.items():
            args += [tier, weight, *(figure for each in rooms[tier] for figure in (each.tokens, each.jobs))]
        flat: list[bytes] = await self._scripts.run("claim", [keys.idx, keys.tiers, keys.pend, keys.depth], args)
        return [
            Nomination(UUID(hex=job.decode()), int(gen), place.decode(), tenant.decode(), int(cost), int(level))
            for job, gen, place, tenant, cost, level in zip(*[iter(flat)] * 6, strict=True)
        ]

    async def ack(self, decided: Iterable[tuple[UUID, int]]) -> int:
        """Take out each (job, gen) that was decided; one whose gen has moved on stays."""
        args: list[str | int] = [self.keys.prefix]
        for job_id, gen in decided:
            args += [job_id.hex, gen]
        if len(args) == 1:
            return 0
        return int(await self._scripts.run("ack", [self.keys.idx, self.keys.depth], args))

    async def put_back(self, refused: Iterable[tuple[UUID, int]]) -> int:
        """Nominate claimed (job, gen) again, at the end of their stream: their tenant is at its cap, and is passed over for now."""
        args: list[str | int] = [self.keys.prefix]
        for job_id, gen in refused:
            args += [job_id.hex, gen]
        return int(await self._scripts.run("put_back", [self.keys.idx], args)) if len(args) > 1 else 0

    async def true_up(self, ended: Iterable[Work]) -> int:
        """Charge tenants and tiers what these jobs have really cost, instead of what their claims expected.

        Returns:
            How many were known to run. Repeating it changes nothing; what is lost leaves the expectation charged.
        """
        return await self._end_runs((each.job_id, each.tokens) for each in ended)

    async def release(self, never_ran: Iterable[UUID]) -> int:
        """These claimed jobs don't run, or run again later: take back what their claims charged. Return how many were known."""
        return await self._end_runs((job_id, "-") for job_id in never_ran)

    async def forget_running(self, ended: Iterable[UUID]) -> int:
        """These jobs have ended, nobody knows how: what was expected of them stays charged. Return how many were known."""
        return await self._end_runs((job_id, "?") for job_id in ended)

    async def _end_runs(self, ends: Iterable[tuple[UUID, float | str]]) -> int:
        args: list[str | float] = [self.keys.prefix]
        for job_id, work in ends:
            args += [job_id.hex, work]
        return int(await self._scripts.run("true_up", [], args)) if len(args) > 1 else 0

    async def share(self, terms: Mapping[str, Terms]) -> bool:
        """Make these tenants' terms hold in this pool; others have weight 1 and no cap.

        Returns:
            Whether anything had to be put right besides: counts, tenants that were passed over for no reason.
        """
        pairs = sorted(
            (tenant, f"{each.weight}:{'' if each.cap is None else each.cap}") for tenant, each in terms.items()
        )
        flat = [text for pair in pairs for text in pair]
        version = hashlib.sha256("\n".join(flat).encode()).hexdigest()[:16]
        args = [self.keys.prefix, version]
        changed = int(await self._scripts.run("share", [], args))
        if changed < 0:  # other terms hold
            changed = int(await self._scripts.run("share", [], [*args, "all", *flat]))
        return bool(changed)

    async def running(self, page: int = 1000) -> AsyncIterator[dict[UUID, str]]:
        """Every job that is known to be claimed or to run, with its tenant, in pages of about this size."""
        cursor = 0
        while True:
            reply: Any = await self.redis.hscan(self.keys.running, cursor, count=page)
            cursor, found = reply
            if found:
                yield {UUID(hex=job.decode()): value.partition(b":")[0].decode() for job, value in found.items()}
            if cursor == 0:
                return

    async def forget_tenants(self, tenants: Sequence[str]) -> int:
        """Forget the counters of those of these tenants that have nothing waiting or running here, and what is expected of their jobs.

        Such a tenant returns where the idle are lifted to, as one that was never seen.

        Returns:
            How many were remembered.
        """
        keys = self.keys
        args = [keys.prefix, len(PLACES), *PLACES, *tenants]
        return int(await self._scripts.run("forget", [keys.mean, keys.busy, keys.parked], args)) if tenants else 0

    async def adopt(self, running: Mapping[UUID, str]) -> int:
        """Count these jobs (job -> tenant) as running: a Redis that lost its memory didn't know. Return how many it didn't."""
        args: list[str] = [self.keys.prefix]
        for job_id, tenant in running.items():
            args += [job_id.hex, tenant]
        return int(await self._scripts.run("adopt", [], args)) if len(args) > 1 else 0

    async def disown(self, waiting: Iterable[UUID]) -> int:
        """These jobs wait: those that were adopted after they had stopped running don't count any more. Return how many did.

        One that a claim has charged meanwhile stays.
        """
        args = [self.keys.prefix, *(job_id.hex for job_id in waiting)]
        return int(await self._scripts.run("disown", [], args)) if len(args) > 1 else 0

    async def renominate(self, *, idle_s: float, most: int = 200) -> int:
        """Put back what was claimed and not decided for `idle_s`; return how many."""
        keys = self.keys
        args: list[str | int] = [keys.prefix, int(idle_s * 1000), most]
        return int(await self._scripts.run("renominate", [keys.idx, keys.pend], args))

    async def mend(self, job_ids: Sequence[UUID], *, page: int = 100) -> int:
        """Put back the nominations of these jobs that no claim can find any more, in this order; return how many repairs.

        Lost are stream entries, a tenant's place in `act` and a stream's in `pend`. Jobs that aren't nominated are passed over.
        """
        keys, mended = self.keys, 0
        for start in range(0, len(job_ids), page):
            jobs = [job_id.hex for job_id in job_ids[start : start + page]]
            mended += int(await self._scripts.run("mend", [keys.idx, keys.pend], [keys.prefix, *jobs]))
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

    async def is_ahead(self, tier: str, tenants: Sequence[str]) -> bool:
        """Whether one of these tenants returned from idle and may take the room of others."""
        return any(await self.redis.hmget(self.keys.ahead(tier), list(tenants)))

    async def num_suspects(self) -> int:
        """How many jobs wait in the lanes."""
        counts = await self.redis.hmget(self.keys.depth, [f"{lane}:jobs" for lane in LANES])
        return sum(int(count or 0) for count in counts)

    async def wait_for_bell(
        self, timeout_s: float, *, tiers: Iterable[str] = tuple(TIER_WEIGHTS), full: Iterable[str] = (), who: str = ""
    ) -> Ring | None:
        """Block until there is work that this worker may take, or the time is over; another worker may be faster.

        Args:
            timeout_s: seconds.
            tiers: in which it has room for everybody. Suspects are heard in any case.
            full: in which it has room only for tenants that may take it from others.
            who: by this name `wake` ends the wait.

        Returns:
            Which bell rang, if one did.
        """
        bells = {self.keys.bell("any").encode(): Ring(needs_room=False)}
        bells |= {self.keys.bell(tier).encode(): Ring(needs_room=False) for tier in tiers}
        bells |= {self.keys.bell(f"{tier}:full").encode(): Ring(needs_room=True) for tier in full}
        wake = [self.keys.bell(f"wake:{who}")] if who else []
        rung: Any = await self.redis.blpop([*bells, *wake], timeout=timeout_s)
        return None if rung is None else bells.get(rung[0])

    async def wake(self, who: str) -> None:
        """End the wait of `who`, to let it listen for something else."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.lpush(self.keys.bell(f"wake:{who}"), "1")
            pipe.expire(self.keys.bell(f"wake:{who}"), 60)
            await pipe.execute()

    async def has_epoch(self) -> bool:
        """Whether this Redis remembers the pool. False after a loss: rebuild."""
        return bool(await self.redis.exists(self.keys.epoch))

    def _time(self) -> str:
        return "" if self._now is None else repr(self._now())

    async def open_epoch(self, name: str) -> None:
        """Say that this Redis now knows all that waits."""
        await self.redis.set(self.keys.epoch, name, nx=True)
