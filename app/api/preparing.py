"""Who does the work that would hold up the event loop? Threads: a short lane and a long one, so that no small prompt waits behind a book."""

from asyncio import get_running_loop
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from app.errors import Unavailable

TINY_BYTES = 2 * 2**10  # a body up to this size is worked on at once: less than the way to a thread and back takes
LONG_BYTES = 64 * 2**10  # a body from this size on takes the long lane
MAX_WAITING_BYTES = 256 * 2**20  # bodies that are being prepared or wait for it; beyond, requests are refused

P = ParamSpec("P")
R = TypeVar("R")


class Lanes:
    """The threads of one API process that parse large bodies and count tokens."""

    def __init__(self, *, threads: int, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self._short = ThreadPoolExecutor(threads, "prepare-short")
        self._long = ThreadPoolExecutor(threads, "prepare-long")
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_bytes = 0

    async def run(self, num_bytes: int, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`work(*args, **kwargs)` in a thread of the lane for bodies of this size; at once for tiny ones.

        Raises:
            Unavailable: too much waits already; it would only eat memory.
        """
        if num_bytes <= TINY_BYTES:
            return work(*args, **kwargs)
        if self._waiting_bytes and self._waiting_bytes + num_bytes > self._max_waiting_bytes:
            raise Unavailable("too many large requests are being prepared; try again")
        lane = self._long if num_bytes >= LONG_BYTES else self._short
        self._waiting_bytes += num_bytes
        try:
            return await get_running_loop().run_in_executor(lane, lambda: work(*args, **kwargs))
        finally:
            self._waiting_bytes -= num_bytes

    def close(self) -> None:
        """Take nothing more."""
        for lane in (self._short, self._long):
            lane.shutdown(wait=False, cancel_futures=True)
