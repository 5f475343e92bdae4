"""How does a link between two processes break? A TCP proxy in a thread of its own: cut, refuse, hold, delay, lose answers."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

_CHUNK_BYTES = 1 << 16
_NO_LINGER = struct.pack("ii", 1, 0)  # a close is a reset, not an orderly end
_ANSWER_S = 0.2  # after a request whose answer is lost: how long its effect gets before the connection is reset
_Result = TypeVar("_Result")


class Link:
    """A way to one server. `url` is the server's own, with our port. Everything is allowed from any thread."""

    def __init__(self, url: str) -> None:
        """`url` of the server behind; it must name host and port."""
        parts = urlsplit(url)
        assert parts.hostname, "a link goes to a host"
        assert parts.port, "a link goes to a port"
        self._target = (parts.hostname, parts.port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._thread.start()
        self._connections: set[_Connection] = set()
        self._is_refusing = False
        self._open = self._run(self._make_gate())
        self._delay_s = 0.0
        self._losses: dict[int, list[bytes]] = {}  # by the number of the order
        self._num_ordered = 0
        self.num_lost_answers = 0
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        login, at, _ = parts.netloc.rpartition("@")
        self.url = urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_connections(self) -> int:
        """Open ones."""
        return len(self._connections)

    def cut(self) -> None:
        """Reset all connections; new ones are welcome."""
        self._do(self._cut)

    def refuse(self) -> None:
        """Reset all connections, and new ones, until `heal`."""
        self._do(self._refuse)

    def hold(self) -> None:
        """Let nothing through, either way, as if packets were lost, until `heal`: then what was held arrives."""
        self._do(self._open.clear)

    def delay(self, seconds: float) -> None:
        """Let each answer wait; 0 ends that."""
        self._do(lambda: setattr(self, "_delay_s", seconds))

    def lose_answer(self, *requests: bytes) -> None:
        """The next connection that has sent these bytes, one after the other: the server gets all, its answer to the last is lost, and then
        the connection is reset. May be called several times for several losses.
        """  # fmt: skip
        self._num_ordered += 1
        number = self._num_ordered
        self._do(lambda: self._losses.update({number: list(requests)}))

    def heal(self) -> None:
        """Be a link again. Losses that were ordered and haven't come about are forgotten."""
        self._do(self._heal)

    def close(self) -> None:
        """Reset everything and free the port."""
        self._do(self._refuse)
        self._do(self._open.set)
        self._run(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _cut(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    def _refuse(self) -> None:
        self._is_refusing = True
        self._cut()

    def _heal(self) -> None:
        self._is_refusing = False
        self._delay_s = 0.0
        self._losses.clear()
        self._open.set()

    async def _end_tasks(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make_gate(self) -> asyncio.Event:
        gate = asyncio.Event()
        gate.set()
        return gate

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, writer)
        if self._is_refusing:
            connection.reset()
            return
        self._connections.add(connection)
        try:
            await self._open.wait()
            there = await asyncio.open_connection(*self._target)
            connection.others = there[1]
            pumps = [
                asyncio.create_task(self._pump(reader, there[1], connection.heard)),
                asyncio.create_task(self._pump(there[0], writer, None, connection)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
        except (OSError, asyncio.CancelledError):
            pass  # the server is away, and the client sees a reset, as without us; or this link is closed
        finally:
            connection.reset()
            self._connections.discard(connection)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        listen: "Callable[[bytes, Mapping[int, list[bytes]]], int | None] | None",
        answers: "_Connection | None" = None,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._open.wait()
                if listen and (loss := listen(data, self._losses)) is not None:
                    del self._losses[loss]
                    self.num_lost_answers += 1
                    self._loop.call_later(_ANSWER_S, self._reset_of(listen))
                if answers is not None:
                    if self._delay_s:
                        await asyncio.sleep(self._delay_s)
                    if answers.is_deaf:
                        continue
                writer.write(data)
                await writer.drain()

    @staticmethod
    def _reset_of(listen: Any) -> Callable[[], None]:
        connection: _Connection = listen.__self__
        return connection.reset

    def _do(self, work: Callable[[], object]) -> None:
        async def do() -> None:
            work()

        self._run(do())

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        future: Future[_Result] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(10)


class _Connection:
    """One client's connection, and ours to the server."""

    def __init__(self, link: Link, writer: asyncio.StreamWriter) -> None:
        self._link = link
        self._writer = writer
        self.others: asyncio.StreamWriter | None = None
        self.is_deaf = False  # its answers are lost from now on
        self._progress: dict[int, int] = {}  # of each ordered loss: how many of its requests were heard
        self._rest: dict[int, bytes] = {}  # of each, the end of what was heard: a request may come in two pieces

    def heard(self, data: bytes, losses: Mapping[int, list[bytes]]) -> int | None:
        """Look for what was ordered in what the client sends; return the number of the loss that came about."""
        if self.is_deaf:
            return None
        for number, requests in losses.items():
            done, rest = self._progress.get(number, 0), self._rest.get(number, b"") + data
            while done < len(requests) and (found := rest.find(requests[done])) >= 0:
                rest = rest[found + len(requests[done]) :]
                done += 1
            self._progress[number] = done
            if done == len(requests):
                self.is_deaf = True
                return number
            self._rest[number] = rest[max(0, len(rest) - len(requests[done]) + 1) :]
        return None

    def reset(self) -> None:
        """Close both halves without a word."""
        for writer in (self._writer, self.others):
            if writer is None:
                continue
            with contextlib.suppress(OSError):
                sock = writer.get_extra_info("socket")
                if sock is not None:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            writer.transport.abort()
