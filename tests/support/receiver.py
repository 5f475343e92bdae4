"""Who receives a test's webhooks? A server on the test's own event loop that answers as its paths say."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Received:
    """One request. Names of headers are lower-case; a name that came twice would fail the test."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Receiver:
    """`answers` maps a path to bytes that are sent as they are; without an entry it is an empty 204.

    `hold` names paths that get no answer until `release()`; `endless` those whose answer never ends; `half` those whose
    connection is cut right after the answer's bytes; `unended` those whose connection stays open after them.
    """

    port: int = 0
    received: list[Received] = field(default_factory=list)
    answers: dict[str, bytes] = field(default_factory=dict)
    hold: set[str] = field(default_factory=set)
    endless: set[str] = field(default_factory=set)
    half: set[str] = field(default_factory=set)
    unended: set[str] = field(default_factory=set)
    sent_bytes: int = 0
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str = "/", host: str = "127.0.0.1", scheme: str = "http") -> str:
        """Where a webhook has to go to come here."""
        return f"{scheme}://{host}:{self.port}{path}"

    def release(self) -> None:
        """Answer what was held."""
        self._released.set()

    async def wait(
        self, count: int, *, where: Callable[[Received], bool] = lambda _: True, timeout_s: float = 30.0
    ) -> list[Received]:
        """The requests that fit, as soon as there are `count` of them."""

        def found() -> list[Received]:
            return [each for each in self.received if where(each)]

        async with asyncio.timeout(timeout_s), self._news:
            await self._news.wait_for(lambda: len(found()) >= count)
        return found()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in head[1:] if line]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs)
        body = await reader.readexactly(int(headers["content-length"]))
        method, path, _ = head[0].split(" ")
        assert method == "POST"
        async with self._news:
            self.received.append(Received(path, headers, body))
            self._news.notify_all()
        if path in self.hold:
            await self._released.wait()
        writer.write(self.answers.get(path, b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"))
        await writer.drain()
        while path in self.endless:
            writer.write(b"x" * 65536)
            await writer.drain()
            self.sent_bytes += 65536
        if path not in self.half:
            if path not in self.unended and writer.can_write_eof():
                writer.write_eof()
            await reader.read()


@asynccontextmanager
async def receiver(certificate: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver on a free port of the loopback; with TLS where there is a certificate."""
    it = Receiver()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        try:
            await it.serve(reader, writer)
        except asyncio.CancelledError:
            pass  # at the end of the test
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certificate)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    """The bytes of an answer: `answer("503 Service Unavailable", "Retry-After: 7")`."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body
