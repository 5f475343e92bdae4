"""How do loops run side by side, and how do they all end?"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

_CANCEL_AGAIN_S = 0.5


_abandoned: set[asyncio.Task[Any]] = set()  # the event loop itself holds tasks only weakly
_Result = TypeVar("_Result")


async def at_most(seconds: float, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result, if it comes in time. What doesn't is cancelled, and nobody waits until it has really ended.

    `asyncio.timeout` waits for that, and a database's driver whose connection hangs may take seconds to give up.

    Raises:
        TimeoutError: it didn't come in time.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        _abandon(task)
        raise
    if task.done():
        return task.result()
    _abandon(task)
    raise TimeoutError


async def to_its_end(seconds: float, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of work that mustn't be broken off half-way: who is cancelled leaves when it has ended, or `seconds` later.

    A second cancel doesn't shorten that. What hasn't ended by then is cancelled, and nobody waits until it has really ended.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        until = asyncio.get_running_loop().time() + seconds
        while not task.done() and (left_s := until - asyncio.get_running_loop().time()) > 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task}, timeout=left_s)
        if task.done():
            _forget(task)
        else:
            _abandon(task)
        raise


def _abandon(task: asyncio.Task[Any]) -> None:
    task.cancel()
    _abandoned.add(task)
    task.add_done_callback(_forget)


def _forget(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # looked at, so that nobody complains of it


async def race(*loops: Coroutine[Any, Any, None]) -> None:
    """Run loops side by side until the last one returns or any fails; then stop the others, and raise its error.

    Unlike a TaskGroup it cancels again and again, until all have ended: redis-py may take a cancel that meets its own timeout for
    that timeout, and its loop would go on for ever. A cancel that comes meanwhile, of a race that this one runs in, changes nothing.
    """
    tasks = [asyncio.create_task(loop) for loop in loops]
    last = tasks[-1]
    pending: set[asyncio.Task[None]] = set(tasks)
    try:
        while last in pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        left = {task for task in tasks if not task.done()}
        while left:
            for task in left:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(left, timeout=_CANCEL_AGAIN_S)
            left = {task for task in left if not task.done()}
        await asyncio.gather(*tasks, return_exceptions=True)
