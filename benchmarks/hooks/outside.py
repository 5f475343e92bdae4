"""Which endpoints do webhooks go to? Healthy ones, some that fail, that hang, and that die in the middle of their answer."""

import asyncio
import json
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

Kind = Literal["healthy", "failing", "hanging", "dying"]
_OK = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_HALF = b"HTTP/1.1 200 O"


def kinds_of(count: int) -> list[Kind]:
    """The kinds of so many endpoints: of 20, 6 fail, 2 hang and 1 dies."""
    kinds: list[Kind] = []
    for kind, share in (("failing", 0.30), ("hanging", 0.10), ("dying", 0.05)):
        kinds += [kind] * max(1, round(count * share))  # type: ignore[list-item]
    return kinds + ["healthy"] * (count - len(kinds))


@dataclass(slots=True)
class Endpoint:
    """One of them, on a port of its own. `secrets` are those that it knows: any may have signed."""

    kind: Kind
    port: int = 0
    secrets: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook"


@dataclass(slots=True)
class Outside:
    """All of them, and what they were told: by the event's number, the ids that it came under and when it was first heard."""

    endpoints: list[Endpoint]
    ids: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    first_heard: dict[int, float] = field(default_factory=dict)
    accepted: set[int] = field(default_factory=set)
    num_requests: int = 0
    num_unverified: int = 0
    is_well: bool = False  # from now on all are healthy
    _servers: list[asyncio.Server] = field(default_factory=list)

    async def open(self) -> None:
        """Listen."""
        for each in self.endpoints:

            async def serve(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, endpoint: Endpoint = each
            ) -> None:
                try:
                    with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                        await self._answer(endpoint, reader, writer)
                finally:
                    writer.transport.abort()

            server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
            each.port = server.sockets[0].getsockname()[1]
            self._servers.append(server)

    def heal(self) -> None:
        """All are healthy from now on; what hangs stays without an answer."""
        self.is_well = True

    def close(self) -> None:
        """Listen no more."""
        for each in self._servers:
            each.close()

    async def _answer(self, endpoint: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.num_requests += 1
        if not _is_signed(endpoint.secrets, body, headers):
            self.num_unverified += 1
        number = json.loads(body)["data"]["n"]
        self.ids[number].add(headers["webhook-id"])
        self.first_heard.setdefault(number, time.monotonic())
        kind = "healthy" if self.is_well else endpoint.kind
        if kind == "hanging":
            await reader.read()  # until the other side gives up
            return
        if kind == "healthy":
            self.accepted.add(number)
        writer.write({"healthy": _OK, "failing": _ERROR, "dying": _HALF}[kind])
        await writer.drain()


def _is_signed(secrets: list[str], body: bytes, headers: dict[str, str]) -> bool:
    for secret in secrets:
        with suppress(WebhookVerificationError):
            Webhook(secret).verify(body, headers)
            return True
    return False
