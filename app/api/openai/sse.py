"""How does an answer come in events? Server-sent events that notice when their reader has left, and end with `data: [DONE]`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

HEARTBEAT_S = 15.0  # a comment, so that nothing on the way takes a waiting stream for dead
DONE = b"data: [DONE]\n\n"
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

    A reader who takes nothing for `stall_s` has left: a full window would else keep its seat for ever.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        headers: Mapping[str, str],
        on_end: Callable[[bool], Awaitable[None]],
        *,
        stall_s: float,
    ) -> None:
        super().__init__(b"", 200, {"X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self._events = events
        self._on_end = on_end
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send it all."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        writing = asyncio.create_task(self._write(send))
        leaving = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
            has_left = not writing.done()
        finally:
            for task in (writing, leaving):
                task.cancel()
            outcomes = await asyncio.gather(writing, leaving, return_exceptions=True)
        await self._on_end(has_left or isinstance(outcomes[0], OSError))
        if isinstance(outcomes[0], Exception) and not isinstance(outcomes[0], OSError):
            raise outcomes[0]

    async def _write(self, send: Send) -> None:
        async with contextlib.aclosing(with_heartbeats(self._events)) as events:
            async for event in events:
                async with asyncio.timeout(self._stall_s):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def with_heartbeats(events: AsyncIterator[bytes], every_s: float = HEARTBEAT_S) -> AsyncGenerator[bytes]:
    """The events, and a comment wherever none came for `every_s`."""
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            await asyncio.wait((coming,), timeout=every_s)
            if not coming.done():
                yield _BEAT
                continue
            done, coming = coming, None
            try:
                event = done.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
