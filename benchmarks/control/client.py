"""Who asks the API? A client that costs little itself: HTTP/1.1 on connections that stay open, bodies made beforehand."""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit


class Refused(Exception):
    """The API didn't answer as it should; the message holds what it said."""


@dataclass
class Client:
    """Connections to one API process; each carries one request at a time, and they are as many as are under way."""

    url: str
    token: str
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection[1].close()
            with suppress(OSError):
                await connection[1].wait_closed()

    async def post(self, path: str, body: bytes, *, expect: int = 202) -> bytes:
        """The answer to a POST of JSON. Raises Refused for another status than `expect`."""
        return await self._ask("POST", path, body, expect)

    async def get(self, path: str) -> Any:
        """The JSON at a path. Raises Refused."""
        return json.loads(await self._ask("GET", path, b"", 200))

    async def _asked(self, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        """A connection over which the request went, and the head of its answer."""
        where = urlsplit(self.url)
        while True:
            was_idle = bool(self._idle)
            reader, writer = self._idle.pop() if was_idle else await asyncio.open_connection(where.hostname, where.port)
            try:
                writer.write(request)
                return reader, writer, (await reader.readuntil(b"\r\n\r\n")).decode()
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                writer.close()
                has_begun = isinstance(error, asyncio.IncompleteReadError) and bool(error.partial)
                if not was_idle or has_begun:
                    raise
                # The server has closed it before it read the request: it was idle for long.

    async def _ask(self, method: str, path: str, body: bytes, expect: int) -> bytes:
        where = urlsplit(self.url)
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer, answered = await self._asked(head.encode() + body)
        status_line, *headers = answered.split("\r\n")
        length = next(int(each.split(":")[1]) for each in headers if each.lower().startswith("content-length"))
        answer = await reader.readexactly(length)
        self._idle.append((reader, writer))
        if int(status_line.split(" ")[1]) != expect:
            raise Refused(f"{method} {path}: {status_line}: {answer[:500].decode(errors='replace')}")
        return answer
