"""Who sees to it that an API process's background loops turn? A loop that breaks is logged, told by /readyz and started again."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from app.telemetry import emit

log = logging.getLogger("penstock.api")

FIRST_PAUSE_S = 0.5  # before a broken loop is started again; doubled for each break in a row
MOST_PAUSE_S = 15.0
STEADY_S = 5.0  # so long it must turn to be trusted again
_CANCEL_AGAIN_S = 0.5


class Loops:
    """Loops that run as long as the process does. One that returns was told to end."""

    def __init__(self, *, first_pause_s: float = FIRST_PAUSE_S, steady_s: float = STEADY_S) -> None:
        self._first_pause_s = first_pause_s
        self._steady_s = steady_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._broken: dict[str, str] = {}
        self._is_closing = False

    @property
    def broken(self) -> dict[str, str]:
        """Why each loop isn't trusted now, by its name."""
        return dict(self._broken)

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run `run()` in the background, and again whenever it breaks."""
        self._tasks[name] = asyncio.create_task(self._keep(name, run))

    async def wait(self, name: str, timeout_s: float) -> None:
        """Give a loop that was told to end the time to do so."""
        await asyncio.wait({self._tasks[name]}, timeout=timeout_s)

    async def close(self) -> None:
        """End them all, whatever they are at; nothing is raised."""
        self._is_closing = True
        pending = {task for task in self._tasks.values() if not task.done()}
        while pending:  # redis-py may take a cancel that meets its own timeout for that timeout
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        pause_s = self._first_pause_s
        while not self._is_closing:
            trusted = loop.call_later(self._steady_s, self._broken.pop, name, None)
            began = loop.time()
            try:
                await run()
                self._broken.pop(name, None)
                return
            except asyncio.CancelledError as error:
                if self._is_closing:
                    raise
                broke: BaseException = error  # not by us: something within was cancelled
            except Exception as error:  # noqa: BLE001 - the edge of a loop: whatever broke it, it must be seen and turn again
                broke = error
            finally:
                trusted.cancel()
            if self._is_closing:
                return
            if loop.time() - began >= self._steady_s:
                pause_s = self._first_pause_s
            self._broken[name] = f"{name} broke ({type(broke).__name__}) and is started again"
            emit(log, logging.ERROR, "api.loop_broke", error=broke, loop=name, again_in_s=pause_s)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_PAUSE_S)
