"""What happens next? Events in the order of virtual time; nobody waits for a real clock."""

import heapq
import math
from collections.abc import Awaitable, Callable

Happening = Callable[[], Awaitable[None]]


class EventLoop:
    """Runs happenings by their time; of those at one moment, first the one that was planned first.

    A happening may await Redis: no virtual time passes meanwhile.
    """

    def __init__(self) -> None:
        self.now = 0.0  # seconds since the simulation's start
        self.num_events = 0
        self._planned: list[tuple[float, int, Happening]] = []
        self._order = 0

    def at(self, time: float, happening: Happening) -> None:
        """Plan a happening.

        Raises:
            ValueError: it would be in the past, or never.
        """
        if not self.now <= time < math.inf:
            raise ValueError(f"can't plan for {time}: it is {self.now}")
        heapq.heappush(self._planned, (time, self._order, happening))
        self._order += 1

    async def run(self) -> None:
        """Until nothing is planned any more."""
        while self._planned:
            self.now, _, happening = heapq.heappop(self._planned)
            self.num_events += 1
            await happening()
