"""What time is it? The seam through which tests move time."""

import time
from typing import Protocol


class Clock(Protocol):
    """Waits and local deadlines use `monotonic`; facts that are stored use Postgres' clock, never this one."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary point; never jumps."""
        ...

    def now(self) -> float:
        """Seconds since the epoch by this machine's wall clock; may jump."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary point; never jumps."""
        return time.monotonic()

    def now(self) -> float:
        """Seconds since the epoch by this machine's wall clock; may jump."""
        return time.time()
