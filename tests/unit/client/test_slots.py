"""Does the client go on after callers have given up? Its connections must come back, whenever they do so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random

import pytest

from app.client import AsyncPenstock


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.IncompleteReadError, OSError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"/events" in head:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: still here\n\n")
                await writer.drain()
                await reader.read()
                break
            await asyncio.sleep(0.01)
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"id":"j-1"}')
            await writer.drain()
    writer.close()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A server that answers everything with a job, a moment later."""
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    try:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()


async def test_callers_that_give_up_while_they_wait_for_a_connection_keep_none(url: str) -> None:
    random = Random(1)
    async with AsyncPenstock(url, "key", connections=4) as client:

        async def give_up_soon() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(0, 0.03)):
                    await client.get("j-1")

        for _ in range(60):
            await asyncio.gather(*[give_up_soon() for _ in range(16)])
        async with asyncio.timeout(30):
            found = await asyncio.gather(*[client.get("j-1") for _ in range(8)])
    assert [job["id"] for job in found] == ["j-1"] * 8


async def test_streams_take_no_calls_connection(url: str) -> None:
    async def follow() -> None:
        async for _ in client.stream("j-1"):
            pass

    async with AsyncPenstock(url, "key", connections=1) as client:
        following = [asyncio.create_task(follow()) for _ in range(3)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(30):
            assert (await client.get("j-1"))["id"] == "j-1"
        assert not any(each.done() for each in following)
        for each in following:
            each.cancel()
        await asyncio.gather(*following, return_exceptions=True)
