"""A server that breaks the rules: it answers each connection as its script says, cut, slow or wrong."""

import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    line: str
    headers: dict[str, str]
    body: bytes


class Reset:
    """Instead of bytes: the connection is reset, as by a killed process or a cut network."""


RESET = Reset()
Answer = Iterable[bytes | Reset]
Act = Callable[[Asked], Answer]


def http(status: int, body: bytes = b"{}", **headers: str) -> bytes:
    """A whole answer."""
    named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{named}Connection: close\r\n\r\n".encode() + body


def stream_head(**headers: str) -> bytes:
    """The head of a stream of events that ends with its connection."""
    named = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{named}Connection: close\r\n\r\n".encode()


@dataclass
class Hostile:
    """Serves `acts`, one a connection, in their order; the last one also all that follow. `asked` is what came."""

    acts: list[Act]
    asked: list[Asked] = field(default_factory=list)
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Until its listener is closed."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError, ValueError):
                self._serve(connection)

    def close(self) -> None:
        """Listen no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        asked = _read(connection)
        number = len(self.asked)
        self.asked.append(asked)
        for part in self.acts[min(number, len(self.acts) - 1)](asked):
            if isinstance(part, Reset):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            connection.sendall(part)


@contextmanager
def hostile(*acts: Act | bytes) -> Iterator[Hostile]:
    """A running one; an act that is bytes is sent as it is."""

    def fixed(answer: bytes) -> Act:
        return lambda _: [answer]

    server = Hostile([fixed(each) if isinstance(each, bytes) else each for each in acts])
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()


class Slept:
    """A sleep that takes no time, a clock that it moves, and what was slept."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)

    async def asleep(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def clock(self) -> float:
        return sum(self.seconds)


def _read(connection: socket.socket) -> Asked:
    came = b""
    while b"\r\n\r\n" not in came:
        part = connection.recv(65536)
        if not part:
            raise ValueError("the request ended early")
        came += part
    head, _, body = came.partition(b"\r\n\r\n")
    line, *rest = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    return Asked(line, headers, body)
