"""Does nobody wait for what comes too late?"""

import asyncio

import pytest

from app.racing import at_most


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
