"""How does an answer come in events? Server-sent events that notice when their reader has left, and end with `data: [DONE]`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.outlet import Outlet, servers_send

HEARTBEAT_S = 15.0  # a comment, so that nothing on the way takes a waiting stream for dead
DONE = b"data: [DONE]\n\n"
_TURN = 32  # events, until others get a turn: those of a job that has ended come without a wait
_BEAT = b": waiting\n\n"
_encode = msgspec.json.Encoder().encode


def data_event(data: Mapping[str, Any]) -> bytes:
    """An event without a name, as chat and completions have them."""
    return b"data: " + _encode(data) + b"\n\n"


def named_event(data: Mapping[str, Any]) -> bytes:
    """An event that is named by its data's `type`, as responses have them."""
    return b"event: " + str(data["type"]).encode() + b"\ndata: " + _encode(data) + b"\n\n"


class EventStream(Response):
    """An answer that goes on until its events end or its reader leaves, whichever is first; then `on_end(has_left)`.

    Where nothing is told for `HEARTBEAT_S`, a comment is. A reader who takes nothing for `stall_s` has left: a full window
    would else keep its seat for ever.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        headers: Mapping[str, str],
        on_end: Callable[[bool], Awaitable[None]],
        *,
        stall_s: float,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        super().__init__(b"", 200, {"X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self._events = events
        self._on_end = on_end
        self._stall_s = stall_s
        self._heartbeat_s = heartbeat_s
        self._turn = asyncio.Lock()  # of who sends: what an event's chunk has begun, no comment breaks into
        self._told_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        outlet = Outlet(servers_send(scope, send))
        self._told_at = asyncio.get_running_loop().time()
        writing = asyncio.create_task(self._write(outlet, send))
        others = [asyncio.create_task(self._beat(outlet)), asyncio.create_task(_until_gone(receive))]
        try:
            await asyncio.wait((writing, *others), return_when=asyncio.FIRST_COMPLETED)
            has_left = not writing.done()
        finally:
            for task in (writing, *others):
                task.cancel()
            outcomes = await asyncio.gather(writing, *others, return_exceptions=True)
        await self._on_end(has_left or isinstance(outcomes[0], OSError))
        if isinstance(outcomes[0], Exception) and not isinstance(outcomes[0], OSError):
            raise outcomes[0]

    async def _write(self, outlet: Outlet, send: Send) -> None:
        num_told = 0
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                await self._tell(outlet, event)
                num_told += 1
                if num_told % _TURN == 0:
                    await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, outlet: Outlet) -> None:
        loop = asyncio.get_running_loop()
        while True:
            quiet_s = loop.time() - self._told_at
            await asyncio.sleep(self._heartbeat_s - quiet_s)
            if loop.time() - self._told_at >= self._heartbeat_s:
                await self._tell(outlet, _BEAT)

    async def _tell(self, outlet: Outlet, body: bytes) -> None:
        """Mostly done at once: neither a task nor a timer is made for it unless the connection's window is full."""
        async with self._turn:
            self._told_at = asyncio.get_running_loop().time()
            rest = outlet(body)
            if rest is not None:
                async with asyncio.timeout(self._stall_s):
                    await rest


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
