"""What is due? All that maintenance looks for several times a second, asked by one statement."""

import asyncio
from collections.abc import Sequence

from sqlalchemy import text

from app.batches.store import IS_ANY_DUE as BATCHES
from app.jobs.held import IS_ANY_HELD
from app.jobs.hopeless import MAY_ANY_BE_HOPELESS
from app.jobs.leases import IS_ANY_EXPIRED
from app.jobs.sharing import IS_ANY_SHARED
from app.jobs.timekeeping import IS_ANY_DEADLINE_OVER, IS_ANY_RETRY_DUE
from app.looks import Looks
from app.webhooks.nominate import IS_ANY_DUE as DELIVERIES

# By round. Each is true whenever the round would find something, and for some of them more often.
QUESTIONS = {
    "reap": IS_ANY_EXPIRED,
    "wake": f"{IS_ANY_RETRY_DUE} OR {IS_ANY_HELD}",
    "expire": f"{IS_ANY_DEADLINE_OVER} OR {MAY_ANY_BE_HOPELESS}",
    "hand_on": IS_ANY_SHARED,
    "batches": BATCHES,
    "webhooks": DELIVERIES,
}
_ANYWAY_S = 10.0
_COLUMNS = ", ".join(f"({question}) AS {name}" for name, question in QUESTIONS.items())
LOOK = text(f"SELECT {_COLUMNS}, ARRAY(SELECT DISTINCT pool FROM models) AS pools")  # noqa: S608 - our own text


class Outlook:
    """Tells the rounds that wait for it when there is something for them."""

    def __init__(self, looks: Looks) -> None:
        self._looks = looks
        self._due = {name: asyncio.Event() for name in QUESTIONS}
        self.pools: Sequence[str] | None = None  # by the last look; None before the first

    async def look(self) -> int:
        """Ask Postgres. Returns 0: nothing was repaired.

        Raises:
            SQLAlchemyError: it doesn't answer; what was due stays due.
        """
        [found] = await self._looks.rows(LOOK)
        for name, event in self._due.items():
            if getattr(found, name):
                event.set()
            else:
                event.clear()
        self.pools = found.pools
        return 0

    async def until_due(self, name: str) -> None:
        """Until a look found something for this round since the last call, or for ten seconds: without looks each has its turn, too."""
        try:
            async with asyncio.timeout(_ANYWAY_S):
                await self._due[name].wait()
        except TimeoutError:
            return
        finally:
            self._due[name].clear()  # what is left is found by the next look
