"""How did it go in the last half hour? A sample every two seconds, in the memory of each API process."""

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from app.dashboard.services import Services
from app.jobs.live import served_tokens_per_s
from app.jobs.states import TIERS
from app.queue.decisions import note_decisions
from app.racing import at_most
from app.redis import RedisError
from app.telemetry import emit

log = logging.getLogger("penstock.dashboard")
EVERY_S = 2.0
KEPT = 900
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment; `at` is seconds since the epoch, `queued` jobs by tier in the order of TIERS."""

    at: float
    tokens_per_s: float
    queued: tuple[int, ...]


class History:
    """Samples, oldest first. It also hands this process' counts of decisions on, so that any process can show all of them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._noted: dict[str, int] = {}
        self._is_blind = False
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Let `run` return after the sample that it is at: cancelled amid its log-in, a connection is left to Postgres for a minute."""
        self._closing.set()

    async def run(self) -> None:
        """Sample until closed; a server that is away leaves a gap."""
        while not self._closing.is_set():
            try:
                await at_most(_TIMEOUT_S, self.sample())
                self._is_blind = False
            except (SQLAlchemyError, RedisError, OSError) as error:  # TimeoutError is an OSError
                if not self._is_blind:
                    emit(log, logging.WARNING, "dashboard.not_sampled", error=error)
                self._is_blind = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._closing.wait()

    async def sample(self) -> Sample:
        """Take one now.

        Raises:
            SQLAlchemyError, RedisError: a server doesn't answer.
        """
        services = self._services
        served = await served_tokens_per_s(services.looks)
        queued = [0] * len(TIERS)
        for pool in services.loads.pools():
            figures = services.loads.figures(pool)
            if figures is not None:
                for place, tier in enumerate(TIERS):
                    queued[place] += figures.load.tier(tier).jobs
        found = Sample(services.clock.now(), served, tuple(queued))
        self._samples.append(found)
        await self._tell()
        return found

    def columns(self) -> list[list[float] | list[int]]:
        """All samples as uPlot wants them: times, tokens a second, queued jobs of each tier."""
        rows = list(self._samples)
        return [
            [round(each.at, 1) for each in rows],
            [round(each.tokens_per_s, 1) for each in rows],
            *[[each.queued[place] for each in rows] for place in range(len(TIERS))],
        ]

    @property
    def latest(self) -> list[float] | None:
        """The last sample as a row of `columns`."""
        if not self._samples:
            return None
        last = self._samples[-1]
        return [round(last.at, 1), round(last.tokens_per_s, 1), *last.queued]

    async def _tell(self) -> None:
        now = self._services.decided()
        fresh = {
            name: count - self._noted.get(name, 0) for name, count in now.items() if count > self._noted.get(name, 0)
        }
        if fresh:
            # Told before it is sent: what may have been counted isn't counted again.
            self._noted = now
            await note_decisions(self._services.redis, int(self._services.clock.now() // 60), fresh)
