"""Is what Postgres couldn't take done once it can, each errand once, and what can't be done dropped?"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.api.errands import Errands
from app.errors import NotFound, StreamsFull, Unavailable


@pytest.fixture
async def errands() -> AsyncIterator[Errands]:
    errands = Errands(again_s=0.001)
    running = asyncio.create_task(errands.run())
    yield errands
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def until_done(errands: Errands) -> None:
    async with asyncio.timeout(10):
        while len(errands):
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("away", [Unavailable("x"), OSError("x"), TimeoutError()])
async def test_it_is_tried_until_it_succeeds(errands: Errands, away: Exception) -> None:
    tries: list[str] = []

    async def first() -> None:
        tries.append("first")
        if len(tries) < 3:
            raise away

    async def second() -> None:
        tries.append("second")

    errands.add(first)
    errands.add(second)
    await until_done(errands)
    assert tries == ["first", "first", "first", "second"]


@pytest.mark.parametrize("refusal", [NotFound("x"), StreamsFull("x")])
async def test_what_is_refused_isnt_tried_again(errands: Errands, refusal: Exception) -> None:
    tries: list[str] = []

    async def refused() -> None:
        tries.append("refused")
        raise refusal

    async def other() -> None:
        tries.append("other")

    errands.add(refused)
    errands.add(other)
    await until_done(errands)
    assert tries == ["refused", "other"]


async def test_one_that_is_added_meanwhile_is_done_too(errands: Errands) -> None:
    done: list[str] = []

    async def late() -> None:
        done.append("late")

    async def early() -> None:
        errands.add(late)
        done.append("early")

    errands.add(early)
    await until_done(errands)
    errands.add(late)
    await until_done(errands)
    assert done == ["early", "late", "late"]
