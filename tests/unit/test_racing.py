"""Does nobody wait for what comes too late?"""

import asyncio
import contextlib

import pytest

from app.racing import at_most, race


async def stubborn(started: asyncio.Event, ended: asyncio.Event) -> None:
    """Like a driver whose connection hangs: it takes its time to be cancelled."""
    started.set()
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.3)
        ended.set()


async def test_a_result_in_time_is_given_and_an_error_raised() -> None:
    async def quick() -> int:
        return 7

    async def broken() -> int:
        raise ValueError("told")

    assert await at_most(5, quick()) == 7
    with pytest.raises(ValueError, match="told"):
        await at_most(5, broken())


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
