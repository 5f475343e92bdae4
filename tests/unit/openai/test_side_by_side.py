"""Do streams that are told together end together, whichever way one of them ends?"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from app.api.openai.many import side_by_side


class Streams:
    """Counting streams; `closed` are those that were."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    async def count(self, name: str, most: int, error: Exception | None = None) -> AsyncGenerator[str]:
        try:
            for number in range(most):
                await asyncio.sleep(0)
                yield f"{name}{number}"
            if error is not None:
                raise error
        finally:
            self.closed.append(name)


@pytest.mark.parametrize("num", [1, 2, 5])
async def test_all_comes_in_each_ones_order(num: int) -> None:
    streams = Streams()
    names = "abcde"[:num]
    told: list[list[str]] = [[] for _ in names]
    async for place, item in side_by_side([streams.count(name, 20) for name in names]):
        told[place].append(item)
    assert told == [[f"{name}{number}" for number in range(20)] for name in names]
    assert sorted(streams.closed) == list(names)


@pytest.mark.parametrize("num", [1, 3])
async def test_an_error_of_one_ends_all(num: int) -> None:
    streams = Streams()
    several = [streams.count("a", 3, LookupError("a")), *(streams.count(name, 10**9) for name in "bc"[: num - 1])]
    async with asyncio.timeout(10):
        with pytest.raises(LookupError):
            async for _ in side_by_side(several):
                pass
    assert sorted(streams.closed) == list("abc"[:num])


@pytest.mark.parametrize("num", [1, 3])
async def test_whoever_has_read_enough_closes_all(num: int) -> None:
    streams = Streams()
    async with asyncio.timeout(10), aclosing(side_by_side([streams.count(n, 10**9) for n in "abc"[:num]])) as items:
        await anext(items)
        for _ in range(20):
            await asyncio.sleep(0)  # until they can put in no more
    assert sorted(streams.closed) == list("abc"[:num])
