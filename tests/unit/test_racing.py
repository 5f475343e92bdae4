"""Does nobody wait for what comes too late?"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from app.racing import at_most, race, to_its_end


async def stubborn(started: asyncio.Event, ended: asyncio.Event) -> None:
    """Like a driver whose connection hangs: it takes its time to be cancelled."""
    started.set()
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.3)
        ended.set()


async def quick() -> int:
    return 7


async def broken() -> int:
    raise ValueError("told")


@pytest.mark.parametrize("run", [at_most, to_its_end])
async def test_a_result_in_time_is_given_and_an_error_raised(
    run: Callable[[float, Coroutine[Any, Any, int]], Awaitable[int]],
) -> None:
    assert await run(5, quick()) == 7
    with pytest.raises(ValueError, match="told"):
        await run(5, broken())


async def test_what_takes_its_time_to_be_cancelled_is_not_waited_for() -> None:
    started, ended = asyncio.Event(), asyncio.Event()
    with pytest.raises(TimeoutError):
        await at_most(0.05, stubborn(started, ended))
    assert started.is_set()
    assert not ended.is_set()
    await ended.wait()


async def test_who_is_cancelled_leaves_at_once() -> None:
    started, ended = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(at_most(60, stubborn(started, ended)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not ended.is_set()
    await ended.wait()


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_again_and_again_leaves_when_the_work_has_ended(fails: bool) -> None:
    started, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        await may_end.wait()
        ended.set()
        if fails:
            raise ValueError("nobody waits for that any more")

    task = asyncio.create_task(to_its_end(60, work()))
    await started.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_work_that_does_not_end_holds_nobody_for_longer_than_it_may() -> None:
    started, ended = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(to_its_end(0.05, stubborn(started, ended)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not ended.is_set()
    await ended.wait()


async def test_a_race_in_a_race_ends_loops_that_take_a_cancel_for_something_else() -> None:
    """The outer one's second cancel used to break off the inner one's waiting, and left its loops behind."""
    ended = False

    async def deaf() -> None:
        nonlocal ended
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
        try:
            await asyncio.sleep(3600)
        finally:
            ended = True

    async def inner() -> None:
        await race(deaf(), asyncio.sleep(3600))

    running = asyncio.create_task(race(inner(), asyncio.sleep(3600)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended
