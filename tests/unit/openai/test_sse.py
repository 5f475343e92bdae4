"""Does a stream of the face end with its reader, whatever that does?"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from app.api.openai.sse import EventStream


async def words() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"data: word\n\n"


async def still_there() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def played(send: Any) -> list[bool]:
    """What `on_end` is told."""
    ends: list[bool] = []

    async def on_end(has_left: bool) -> None:
        ends.append(has_left)

    stream = EventStream(words(), {}, on_end, stall_s=0.05)
    async with asyncio.timeout(10):
        await stream({"type": "http"}, still_there, send)
    return ends


async def test_a_reader_who_takes_nothing_has_left() -> None:
    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    assert await played(send) == [True]


async def test_a_reader_who_takes_all_has_not() -> None:
    taken: list[bytes] = []

    async def send(message: Any) -> None:
        taken.append(message.get("body", b""))

    assert await played(send) == [False]
    assert taken.count(b"data: word\n\n") == 3
