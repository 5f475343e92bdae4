"""Does a stream of the face end with its reader, whatever that does?"""

import asyncio
from collections.abc import AsyncGenerator
from itertools import pairwise
from typing import Any

from app.api.openai.sse import EventStream

WORD, BEAT = b"data: word\n\n", b": waiting\n\n"


async def words(pause_s: float | None, num_words: int) -> AsyncGenerator[bytes]:
    for _ in range(num_words):
        if pause_s is not None:
            await asyncio.sleep(pause_s)
        yield WORD


async def still_there() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def played(
    send: Any, *, pause_s: float | None = 0.0, num_words: int = 3, stall_s: float = 0.05, heartbeat_s: float = 15.0
) -> list[bool]:
    """What `on_end` is told."""
    ends: list[bool] = []

    async def on_end(has_left: bool) -> None:
        ends.append(has_left)

    stream = EventStream(words(pause_s, num_words), {}, on_end, stall_s=stall_s, heartbeat_s=heartbeat_s)
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
    assert taken.count(WORD) == 3


async def test_where_nothing_comes_a_comment_does() -> None:
    taken: list[bytes] = []

    async def send(message: Any) -> None:
        taken.append(message.get("body", b""))

    assert await played(send, pause_s=0.25, heartbeat_s=0.1) == [False]
    assert [each for each in taken if each == WORD] == [WORD] * 3
    assert 3 <= taken.count(BEAT) <= 6, "one or two before each word"
    assert taken[-1] == b""


async def test_no_comment_where_words_come_soon_enough() -> None:
    taken: list[bytes] = []

    async def send(message: Any) -> None:
        taken.append(message.get("body", b""))

    assert await played(send, pause_s=0.05, heartbeat_s=5.0) == [False]
    assert BEAT not in taken


async def test_a_comment_waits_for_the_chunk_that_is_on_its_way() -> None:
    under_way = 0
    taken: list[bytes] = []

    async def send(message: Any) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1, "no chunk breaks into another"
        if message.get("body") == WORD:
            await asyncio.sleep(0.15)
        taken.append(message.get("body", b""))
        under_way -= 1

    assert await played(send, pause_s=0.02, stall_s=5.0, heartbeat_s=0.05) == [False]
    assert taken.count(WORD) == 3


async def test_who_takes_no_comment_has_left_too() -> None:
    async def send(message: Any) -> None:
        if message.get("body") == BEAT:
            await asyncio.Event().wait()

    assert await played(send, pause_s=60, heartbeat_s=0.05) == [True]


async def test_words_that_are_there_already_let_others_have_a_turn() -> None:
    taken = 0
    seen: list[int] = []

    async def send(message: Any) -> None:
        nonlocal taken
        taken += message.get("body") == WORD

    async def watch() -> None:
        while taken < 1000:
            seen.append(taken)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    assert await played(send, pause_s=None, num_words=1000) == [False]
    await watching
    assert max(after - before for before, after in pairwise([*seen, 1000])) < 100
