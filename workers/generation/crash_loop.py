"""How long does a worker wait before it starts yet another engine? Not at all, until engines die one after the other."""

from collections import deque

_MAX_PAUSE_S = 600.0


class CrashLoop:
    """Counts deaths in a sliding window. From `limit` deaths on each new start waits, twice as long each time."""

    def __init__(self, *, limit: int, window_s: float, pause_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._pause_s = pause_s
        self._deaths: deque[float] = deque()
        self._num_pauses = 0

    @property
    def num_recent(self) -> int:
        """Deaths in the window, as of the last call."""
        return len(self._deaths)

    def note(self, now: float) -> None:
        """An engine died, by the monotonic clock in seconds."""
        self._forget(now)
        self._deaths.append(now)

    def pause_s(self, now: float) -> float:
        """Seconds to wait before the next start; 0 unless it is a loop."""
        self._forget(now)
        if len(self._deaths) < self._limit:
            self._num_pauses = 0
            return 0.0
        pause_s = min(_MAX_PAUSE_S, self._pause_s * 2.0 ** min(self._num_pauses, 30))
        self._num_pauses += 1
        return float(pause_s)

    def _forget(self, now: float) -> None:
        while self._deaths and self._deaths[0] <= now - self._window_s:
            self._deaths.popleft()
