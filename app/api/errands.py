"""What was left undone because Postgres didn't answer? Each errand is tried until it succeeds, or the process ends."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import SQLAlchemyError

from app.db import is_outage
from app.errors import PenstockError, StreamsFull, Unavailable
from app.telemetry import emit

log = logging.getLogger("penstock.api")

AGAIN_S = 0.5
MOST = 10_000  # the oldest is dropped for one more

Errand = Callable[[], Awaitable[object]]


def is_passing(error: BaseException) -> bool:
    """Whether this says that Postgres doesn't answer now, so that the same again may work."""
    return (isinstance(error, Unavailable) and not isinstance(error, StreamsFull)) or is_outage(error)


class Errands:
    """What an API process owes, oldest first. They are lost with it."""

    def __init__(self, *, again_s: float = AGAIN_S) -> None:
        self._again_s = again_s
        self._owed: deque[Errand] = deque(maxlen=MOST)
        self._has_some = asyncio.Event()

    def __len__(self) -> int:
        """How many are owed."""
        return len(self._owed)

    def add(self, errand: Errand) -> None:
        """Owe this; doing it twice must be as good as once."""
        self._owed.append(errand)
        self._has_some.set()

    async def run(self) -> None:
        """Do what is owed until cancelled."""
        try:
            while True:
                await self._has_some.wait()
                await asyncio.sleep(self._again_s)
                await self._do_owed()
        finally:
            if self._owed:
                emit(log, logging.WARNING, "api.errands_dropped", errands=len(self._owed))

    async def _do_owed(self) -> None:
        """All that can be done now. The first that can't ends the round: to the others Postgres would say the same."""
        while self._owed:
            errand = self._owed[0]
            try:
                await errand()
            except (PenstockError, SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
                if is_passing(error):
                    return
                emit(log, logging.WARNING, "api.errand_failed", error=error)
            if self._owed and self._owed[0] is errand:
                self._owed.popleft()
        self._has_some.clear()
