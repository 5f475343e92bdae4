"""Is a background loop started again after whatever broke it, and ended when the process ends?"""

import asyncio
import contextlib

import pytest

from app.api.loops import Loops


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("broke", [KeyError("x"), asyncio.CancelledError(), ExceptionGroup("x", [OSError()])])
async def test_a_loop_that_breaks_is_told_of_and_turns_again(broke: BaseException) -> None:
    turns: list[int] = []

    async def run() -> None:
        turns.append(1)
        if len(turns) < 3:
            raise broke
        await asyncio.Event().wait()

    loops = Loops(first_pause_s=0.01, steady_s=0.2)
    loops.start("reading", run)
    await until(lambda: loops.broken)
    assert type(broke).__name__ in loops.broken["reading"]
    await until(lambda: len(turns) == 3)
    await until(lambda: not loops.broken)
    await loops.close()
    assert len(turns) == 3


async def test_a_loop_that_was_told_to_end_isnt_broken() -> None:
    told = asyncio.Event()
    loops = Loops(first_pause_s=0.01)
    loops.start("reading", told.wait)  # type: ignore[arg-type]
    told.set()
    await loops.wait("reading", 5)
    assert loops.broken == {}
    await loops.close()


async def test_a_loop_that_swallows_a_cancel_is_cancelled_again_and_a_broken_one_isnt_raised() -> None:
    ended = asyncio.Event()

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
            raise RuntimeError("at the end")

    loops = Loops()
    loops.start("stubborn", stubborn)
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await loops.close()
    assert ended.is_set()
