"""What grows with each tenant or server that was ever seen? A part of it is looked at in each round, and what nobody needs is dropped."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs import tables as t
from app.jobs.quiet import quiet_tenants
from app.queue.memory import MemoryCursor, next_remembered
from app.queue.streams import JobQueue
from app.redis import Redis
from app.webhooks.tidy import FIRST_DELIVERY, bring_home, forget_rooms

PAGE = 500
_STEPS = 20  # of each kind in a round


class Tidier:
    """Goes through tables and hashes a page at a time, round after round. Any number of processes may do so."""

    def __init__(self, db: AsyncEngine, redis: Redis, *, page: int = PAGE) -> None:
        self._db = db
        self._redis = redis
        self._page = page
        self._lane = ""
        self._delivery = FIRST_DELIVERY
        self._queues: dict[str, tuple[JobQueue, MemoryCursor]] = {}

    async def round(self) -> int:
        """Look at the next pages of everything; return how much was dropped or put right."""
        return await self.lanes() + await self.deliveries() + await self.queues()

    async def lanes(self) -> int:
        """Forget rooms of lanes that nobody used for long."""
        total = 0
        for _ in range(_STEPS):
            async with self._db.begin() as conn:
                self._lane, done = await forget_rooms(conn, self._lane, page=self._page)
            total += done
            if not self._lane:
                break
        return total

    async def deliveries(self) -> int:
        """Bring waiting deliveries into the lanes that they belong to."""
        total = 0
        for _ in range(_STEPS):
            async with self._db.begin() as conn:
                self._delivery, done = await bring_home(conn, self._delivery, page=self._page)
            total += done
            if self._delivery == FIRST_DELIVERY:
                break
        return total

    async def queues(self) -> int:
        """Let queues forget tenants that have had nothing for long."""
        total = 0
        async with self._db.connect() as conn:
            pools = list(await conn.scalars(select(t.models.c.pool).distinct()))
        for pool in pools:
            if pool not in self._queues:
                self._queues[pool] = JobQueue(self._redis, pool), MemoryCursor()
            queue, cursor = self._queues[pool]
            for _ in range(_STEPS):
                tenants = await next_remembered(queue, cursor, page=self._page)
                if tenants:
                    async with self._db.connect() as conn:
                        quiet = await quiet_tenants(conn, tenants)
                    total += await queue.forget_tenants(quiet)
                if cursor == MemoryCursor():
                    break
        return total
