"""When may a refused request come back? Each is given a place in the capacity that will fall free, so that the answer is true for all of them.

Telling everybody the moment at which the queue has room again would bring all of them back at once, and all but a few would be refused again.
"""

from collections import OrderedDict
from dataclasses import dataclass

# A place that is further away isn't given: the answer can't tell so long a time, and whoever is told less comes too early. A line that
# is full for so long so keeps nobody out for the sake of those who have given up.
HORIZON_S = 120.0
MAX_BOOKINGS = 20_000  # of one process; the oldest are forgotten first
GRACE_S = 30.0  # who comes later than this after its time is a newcomer
EARLY_S = 0.25  # clocks and networks: so much before its time it is let in
# Places are given out a little more slowly than they should fall free, so that who comes at its time finds room.
PACE = 0.95
# A queue that has fallen to this part of its ceiling lets newcomers in all the same: those who had places didn't come.
IDLE_PART = 0.5


@dataclass(slots=True)
class _Booking:
    at: float
    line: str
    tokens: float


class Bookings:
    """Places of refused requests, by line (those who share one drain) and request. Time is passed in, monotonic seconds.

    A virtual clock a line, as of a leaky bucket: the next place is where the last one's tokens will have drained.
    """

    def __init__(self, *, most: int = MAX_BOOKINGS) -> None:
        self._most = most
        self._bookings: OrderedDict[bytes, _Booking] = OrderedDict()
        self._free_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._bookings)

    def is_due(self, request: bytes, now: float) -> bool:
        """Whether this request was refused before, and its time has come."""
        booking = self._bookings.get(request)
        return booking is not None and booking.at - EARLY_S <= now <= booking.at + GRACE_S

    def others_first(self, line: str, now: float) -> bool:
        """Whether what falls free next is given away to requests that were refused before."""
        return self._free_at.get(line, now) > now

    def book(self, request: bytes, line: str, now: float, *, over_s: float, tokens: float, rate: float) -> float:
        """Seconds after which this request may come back, at most `HORIZON_S`; asking again too early doesn't lose its place.

        Args:
            over_s: until the line has room again at all.
            rate: tokens a second that fall free in it.
        """
        known = self._bookings.get(request)
        if known is not None and known.line == line:
            if known.at > now:
                return known.at - now
            if (
                now <= known.at + GRACE_S
            ):  # its time has come, and there was no room after all: it stays ahead of the others
                known.at = now + over_s
                return over_s
        at = max(now + over_s, self._free_at.get(line, now))
        if at - now > HORIZON_S:
            return HORIZON_S
        self._free_at[line] = at + tokens / (rate * PACE)
        self._bookings[request] = _Booking(at, line, tokens)
        self._bookings.move_to_end(request)
        while len(self._bookings) > self._most:
            self._bookings.popitem(last=False)
        return at - now

    def leave(self, request: bytes) -> None:
        """The request was let in."""
        self._bookings.pop(request, None)

    def forget(self, now: float) -> None:
        """Drop what is over, so that memory is bounded by what is open. Cheap when called about once a second."""
        late = [request for request, each in self._bookings.items() if each.at + GRACE_S < now]
        for request in late:
            del self._bookings[request]
        self._free_at = {line: at for line, at in self._free_at.items() if at > now}
