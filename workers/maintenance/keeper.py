"""Who repairs and keeps the time? Idempotent loops; any number of processes may run them, there is no leader."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import Clock
from app.db import has_lost_connection, looking
from app.errors import Unavailable
from app.ids import new_id
from app.jobs import breakers, caps, held, rescue, resync, sharing, timekeeping
from app.jobs.breaker import Rules
from app.jobs.dead.announce import announce_ends
from app.jobs.hopeless import expire_hopeless
from app.jobs.lengths import LengthBook
from app.jobs.rescue import Rescued
from app.jobs.resync import SweepCursor
from app.jobs.store import Fate
from app.looks import Looks
from app.queue.events import announce_end
from app.queue.streams import JobQueue
from app.quotas.usage_hours import roll_up_next
from app.racing import race
from app.redis import Redis, RedisError
from app.settings import Settings
from app.telemetry import emit
from workers.maintenance.meters import LOOK_EVERY_S, Meters
from workers.maintenance.outlook import QUESTIONS, Outlook

log = logging.getLogger(__name__)

_PAGE = 1000
_POOLS = text("SELECT DISTINCT pool FROM models")
_FAILED_AGAIN_S = 2.0  # a round that failed doesn't wait for its turn: what it mends may have gone wrong just then
_MOST_HOURS = 48
_CANARY_TTL_S = 90 * 86_400.0


def until_beat(since_s: float, every_s: float) -> float:
    """Seconds to rest for a round that ends so long after the start, so that those of different intervals begin together: a process that wakes is cold, and pays for it.

    A round that took longer than half of its interval rests for all of it.
    """
    rest_s = every_s - since_s % every_s
    return rest_s if rest_s >= every_s / 2 else every_s


class Keeper:
    """The repairs of all pools. Each public coroutine is one round of one repair, so that tests can call it."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        db: AsyncEngine,
        redis: Redis,
        random: Random,
        meters: Meters | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._db = db
        self._passing = looking(db)
        self._looks = Looks(db)
        self._seldom = Looks(db)  # keeps no connection: a slow one must not keep the outlook from looking
        self.outlook = Outlook(self._looks)
        self._redis = redis
        self._random = random
        self._queues: dict[str, JobQueue] = {}
        self._cursors: dict[str, SweepCursor] = {}
        self._redis_run: str | None = None
        self._began = clock.monotonic()
        self._blind_until = clock.monotonic()  # after a Postgres outage no expiry is believed until then
        self._fate = Fate.of(settings)
        self._lengths = LengthBook(db, clock=clock, timeout_s=settings.database_timeout_s)
        self._failing: set[str] = set()  # rounds
        self._meters = meters or Meters()

    async def run(self, extra: dict[str, tuple[float, Callable[[], Awaitable[int]]]] | None = None) -> None:
        """Run all rounds at their intervals until cancelled. `extra`: further rounds, by name, with their interval in seconds."""
        settings = self._settings
        rounds: dict[str, tuple[float, Callable[[], Awaitable[int]]]] = {
            "outlook": (
                min(settings.webhook_dispatch_every_s, settings.batch_every_s, settings.expire_every_s),
                self.outlook.look,
            ),
            "reap": (settings.reap_every_s, self.reap),
            "rebuild": (settings.sweep_every_s / 2, self.rebuild),
            "sweep": (settings.sweep_every_s, self.sweep),
            "renominate": (settings.sweep_every_s, self.renominate),
            "share": (settings.sweep_every_s, self.share),
            "wake": (settings.expire_every_s, self.wake),
            "expire": (settings.expire_every_s, self.expire),
            "hand_on": (settings.expire_every_s, self.hand_on),
            "breakers": (settings.breaker_every_s, self.breakers),
            "audit": (settings.audit_every_s, self.audit),
            "forget": (settings.audit_every_s, self.forget),
            "drift": (
                settings.drift_every_s,
                partial(self._meters.compare, self._db, self._clock, settings.drift_every_s),
            ),
            "look": (LOOK_EVERY_S, partial(self._meters.look, self._seldom, self._redis, settings)),
            "roll_up": (settings.audit_every_s, self.roll_up),
            **(extra or {}),
        }
        self._meters.runs(rounds)
        try:
            async with self._looks:
                await race(*[self._repeat(name, every_s, work) for name, (every_s, work) in rounds.items()])
        finally:
            await self._lengths.close()

    def why_not_ready(self) -> str | None:
        """The rounds that didn't succeed the last time; None where all did."""
        return f"failed the last time: {', '.join(sorted(self._failing))}" if self._failing else None

    async def reap(self) -> int:
        """Requeue the jobs of workers whose lease ran out."""
        if self._clock.monotonic() < self._blind_until:
            return 0
        async with self._db.begin() as conn:
            rescued = await rescue.reap(conn, ttl_s=self._settings.lease_ttl_s, fate=self._fate, random=self._random)
        return await self._spread(rescued)

    async def rebuild(self) -> int:
        """Fill a Redis that lost its memory, then open its epoch; compare all after a restart of Redis."""
        total = 0
        queues = await self._pools()
        async with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.exists(queue.keys.epoch)
            pipe.info("server")
            *has_epoch, server = await pipe.execute()
        for queue in (queue for queue, is_known in zip(queues, has_epoch, strict=True) if not is_known):
            await self._share([queue], everyone=True)
            found = await resync.sweep(self._looks, queue, SweepCursor(), grace_s=0.0, force=True)
            await queue.open_epoch(new_id().hex)
            emit(log, logging.INFO, "redis_rebuilt", pool=queue.keys.pool, jobs=found)
            total += found
        return total + await self._audit_after_restart(str(server["run_id"]))

    async def _audit_after_restart(self, run_id: str) -> int:
        """A Redis that restarted may have come back from an older copy, epoch and all: compare everything at once."""
        mended = await self.audit() if self._redis_run not in {None, run_id} else 0
        self._redis_run = run_id  # not before: a comparison that failed is to be made by the next round
        return mended

    async def sweep(self) -> int:
        """Nominate jobs that have waited for long and that Redis doesn't know: their enqueue was lost."""
        found = 0
        for queue in await self._pools():
            cursor = self._cursors.setdefault(queue.keys.pool, SweepCursor())
            found += await resync.sweep(self._looks, queue, cursor, grace_s=self._settings.sweep_after_s)
        return found

    async def renominate(self) -> int:
        """Put back nominations whose worker died before it decided them."""
        return sum([await queue.renominate(idle_s=self._settings.renominate_after_s) for queue in await self._pools()])

    async def share(self) -> int:
        """Tell the queues the tenants' weights and caps, and, where there are caps, who really runs."""
        return await self._share(await self._pools())

    async def wake(self) -> int:
        """Nominate retries whose delay is over, and jobs for which a budget has room at last."""
        async with self._db.begin() as conn:
            due = await timekeeping.wake_due(conn)
        return await self._spread(Rescued(due, [])) + await self._wake_held()

    async def _wake_held(self) -> int:
        async with self._passing.connect() as conn:
            ready = await held.ready_budgets(conn)
        woken = 0
        for budget_id in ready:
            try:
                async with self._db.begin() as conn:
                    nominations = await held.wake_line(conn, budget_id)
            except Unavailable:  # somebody has just changed the budget: the next round finds it as it is then
                continue
            woken += await self._spread(Rescued(nominations, []))
        return woken

    async def expire(self) -> int:
        """End waiting jobs whose deadline has passed, or can't be met any more."""
        # Each by a transaction of its own: the first locks budgets at its end, and the second's jobs come before theirs.
        async with self._db.begin() as conn:
            overdue = await timekeeping.expire_queued(conn)
        await self._tell_expired(overdue)
        async with self._db.begin() as conn:
            hopeless = await expire_hopeless(conn, self._lengths.of)
        await self._tell_expired(hopeless)
        return len(overdue) + len(hopeless)

    async def _tell_expired(self, ended: Sequence[tuple[UUID, int, str]]) -> None:
        for job_id, gen, pool in ended:
            await self._queue(pool).ack([(job_id, gen)])
        await announce_end(self._redis, [(job_id, "expired") for job_id, _, _ in ended])

    async def hand_on(self) -> int:
        """Give results to the jobs that wait for one of identical work, or have one of them compute it."""
        async with self._db.begin() as conn:
            found = await sharing.hand_on(conn)
        return await self._spread(found)

    async def breakers(self) -> int:
        """Open, try and close the breakers of models by what became of their attempts."""
        rules = Rules.of(self._settings)
        if not await breakers.is_any_to_judge(self._looks, rules):
            return 0
        async with self._db.begin() as conn:
            changes = await breakers.keep(conn, rules)
        for each in changes:
            level = logging.ERROR if each.after == "open" else logging.INFO
            emit(
                log, level, "breaker_changed", model=each.model, before=each.before, after=each.after,
                bad=each.evidence.bad, good=each.evidence.good,
            )  # fmt: skip
        return len(changes)

    async def audit(self) -> int:
        """Compare all of Postgres' queue with Redis', in both directions and down to each stream's entry, and mend what differs."""
        async with self._db.begin() as conn:
            rescued = await rescue.reap_orphans(conn, fate=self._fate, random=self._random)
        mended = await self._spread(rescued)
        for queue in await self._pools():
            grace_s = self._settings.sweep_after_s
            mended += await resync.sweep(self._looks, queue, SweepCursor(), grace_s=grace_s, deep=True)
            mended += await resync.drop_stale(self._db, queue)
            mended += await queue.recount()
        return mended + await self._share(await self._pools(), everyone=True)

    async def forget(self) -> int:
        """Delete Idempotency-Keys and outputs that are past their time, and self-tests of machines that aren't there any more."""
        async with self._db.begin() as conn:
            total = await timekeeping.forget_canaries(conn, ttl_s=_CANARY_TTL_S)
        total += await self._forget_pages(timekeeping.forget_keys, self._settings.idempotency_ttl_s)
        if self._settings.output_retention_s is not None:
            total += await self._forget_pages(timekeeping.forget_outputs, self._settings.output_retention_s)
        return total

    async def roll_up(self) -> int:
        """Add up the usage of hours that are over, the oldest first, some in each round."""
        for done in range(_MOST_HOURS):
            async with self._db.begin() as conn:
                if await roll_up_next(conn) is None:
                    return done
        return _MOST_HOURS

    async def _forget_pages(self, forget: Callable[..., Awaitable[int]], ttl_s: float) -> int:
        total = 0
        while True:
            async with self._db.begin() as conn:
                found = await forget(conn, ttl_s=ttl_s, most=_PAGE)
            total += found
            if found < _PAGE:
                return total

    async def _share(self, queues: Sequence[JobQueue], *, everyone: bool = False) -> int:
        shares = await caps.read_shares(self._looks, everyone=everyone)
        recount = everyone or bool(shares.caps)
        return sum([await caps.keep_shares(self._db, queue, shares, recount=recount) for queue in queues])

    async def _repeat(self, name: str, every_s: float, work: Callable[[], Awaitable[int]]) -> None:
        while True:
            try:
                done = await work()
                self._failing.discard(name)
                if done:
                    self._meters.repairs.labels(name).inc(done)
                    emit(log, logging.INFO, "repaired", round=name, count=done)
            except SQLAlchemyError as error:
                self._failed(name)
                if has_lost_connection(error):
                    self._blind_until = self._clock.monotonic() + self._settings.lease_ttl_s
                emit(log, logging.WARNING, "round_failed", round=name, error=error)
            except (RedisError, OSError) as error:
                self._failed(name)
                emit(log, logging.WARNING, "round_failed", round=name, error=error)
            pause_s = min(every_s, _FAILED_AGAIN_S) if name in self._failing else every_s
            await asyncio.sleep(until_beat(self._clock.monotonic() - self._began, pause_s))
            if name in QUESTIONS and name not in self._failing:
                await self.outlook.until_due(name)

    def _failed(self, name: str) -> None:
        self._failing.add(name)
        self._meters.failures.labels(name).inc()

    async def _spread(self, rescued: Rescued) -> int:
        """Tell Redis, after the commit; what this loses the sweep finds."""
        for pool, nominations in rescued.nominations.items():
            await self._queue(pool).enqueue(nominations)
        await announce_ends(self._db, self._redis, rescued.ended)
        return sum(map(len, rescued.nominations.values())) + len(rescued.ended)

    async def _pools(self) -> list[JobQueue]:
        pools = self.outlook.pools
        if pools is None:
            pools = [row.pool for row in await self._looks.rows(_POOLS)]
        return [self._queue(pool) for pool in pools]

    def _queue(self, pool: str) -> JobQueue:
        if pool not in self._queues:
            self._queues[pool] = JobQueue(self._redis, pool)
        return self._queues[pool]
