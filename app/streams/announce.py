"""How do workers know whose tokens are read as they come? They are told at once, and Redis remembers it for those who start later."""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from uuid import UUID

from app.queue.events import announce_readers
from app.redis import Redis, RedisError

_TTL_S = 60
_AGAIN_S = 20.0  # what was lost is made good after so long: until then the reader's text comes in larger pieces


class Announcer:
    """Announces the jobs that a process's readers follow. `followed`: all of them now."""

    def __init__(self, redis: Redis, followed: Callable[[], Collection[UUID]]) -> None:
        self._redis = redis
        self._followed = followed
        self._new: set[UUID] = set()
        self._has_new = asyncio.Event()

    def came(self, job_id: UUID) -> None:
        """The first reader of this job has come."""
        self._new.add(job_id)
        self._has_new.set()

    async def run(self) -> None:
        """Announce until cancelled: those who come at once, all now and then."""
        loop = asyncio.get_running_loop()
        next_all = loop.time() + _AGAIN_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_all):
                    await self._has_new.wait()
            self._has_new.clear()
            wanted, self._new = self._new, set()
            if loop.time() >= next_all:
                wanted, next_all = set(self._followed()), loop.time() + _AGAIN_S
            if wanted:
                with contextlib.suppress(RedisError, OSError):
                    await announce_readers(self._redis, list(wanted), ttl_s=_TTL_S)
