"""How does a chunk leave without a task that has to be woken for it? ASGI's `send` is taken as far as it goes at once, which is mostly its end."""

from collections.abc import Awaitable, Generator
from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

_SERVERS_SEND = "penstock.servers_send"


class DirectApp(FastAPI):
    """An app that remembers each request's `send` as the server gave it, for whoever sends very many chunks."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        scope[_SERVERS_SEND] = send
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Its owner has the scope: each request would wait for the garbage collector, which comes seldom.
            del scope[_SERVERS_SEND]


def servers_send(scope: Scope, send: Send) -> Send:
    """The way around all middleware, for chunks of a body that has begun: ours and Starlette's only look at its beginning."""
    direct: Send = scope.get(_SERVERS_SEND, send)
    return direct


class Outlet:
    """Where chunks of one response's body go."""

    __slots__ = ("_send",)

    def __init__(self, send: Send) -> None:
        self._send = send

    def __call__(self, body: bytes) -> Awaitable[None] | None:
        """Send a chunk: None where the server has taken it, else what is left to do, which a task has to await before the next chunk."""
        sending = self._send({"type": "http.response.body", "body": body, "more_body": True}).__await__()
        try:
            waits_for = next(sending)
        except StopIteration:
            return None
        except Exception as error:  # noqa: BLE001 - it is the task's own, not of whoever called us
            return _Failed(error)
        return _Rest(sending, waits_for)


class _Rest:
    """What is left of a `send` that has begun: `waits_for` is what it asked its event loop for."""

    def __init__(self, sending: Generator[Any, Any, None], waits_for: Any) -> None:
        self._sending = sending
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            yield self._waits_for
            yield from self._sending
        finally:
            self._sending.close()


class _Failed:
    """A `send` that has raised."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __await__(self) -> Generator[Any, Any, None]:
        raise self._error
        yield
