"""What was asked and how was it answered? One line a request: method, route template, status, milliseconds."""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.clock import Clock
from app.telemetry import emit

log = logging.getLogger("penstock.api.access")
PROBES = {"/healthz", "/readyz", "/metrics"}


class AccessLog:
    """ASGI middleware. The template, not the path: ids and queries are the caller's own."""

    def __init__(self, app: ASGIApp, *, clock: Clock) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and log it, however it ends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock.monotonic()
        status = 500  # what the caller gets where nothing was sent

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", None)
            route = (
                "(none)" if route is None else scope.get("root_path", "") + route
            )  # of a mounted app, with its prefix
            emit(
                log,
                logging.DEBUG if route in PROBES else logging.INFO,
                "api.request",
                method=scope["method"],
                route=route,
                status=status,
                duration_ms=round((self._clock.monotonic() - started) * 1000, 2),
            )
