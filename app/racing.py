"""How do loops run side by side, and how do they all end?"""

import asyncio
from collections.abc import Coroutine
from typing import Any

_CANCEL_AGAIN_S = 0.5


async def race(*loops: Coroutine[Any, Any, None]) -> None:
    """Run loops side by side until the last one returns or any fails; then stop the others, and raise its error.

    Unlike a TaskGroup it cancels again and again, until all have ended: redis-py may take a cancel that meets its own timeout for
    that timeout, and its loop would go on for ever.
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
            _, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN_S)
        await asyncio.gather(*tasks, return_exceptions=True)
