"""Which requests are traced? All of /v1, below the caller's own span where the request names one; nothing where no collector is configured."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.runtime import Runtime


class Traced:
    """ASGI middleware: a span of kind server around each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        runtime = getattr(scope["app"].state, "runtime", None) if scope["type"] == "http" else None
        if runtime is None or runtime.tracing is None or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist("traceparent")
        attributes = {"http.request.method": scope["method"], "url.scheme": scope["scheme"]}
        with runtime.tracing.span(
            scope["method"], attributes, kind="server", parent=given[0] if len(given) == 1 else None
        ) as span:

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        runtime.tracing.fail(span, str(message["status"]))
                await send(message)

            try:
                await self._app(scope, receive, noting)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:  # the template: ids are in spans of their own names
                    span.set_attribute("http.route", route)
                    span.update_name(f"{scope['method']} {route}")


@contextmanager
def submitting(runtime: Runtime, num_jobs: int = 1) -> Iterator[Any]:
    """A span around a submission, whose context its jobs carry on; the span, or None where nothing is traced."""
    if runtime.tracing is None:
        yield None
        return
    with runtime.tracing.span("submit", {"penstock.jobs": num_jobs}) as span:
        yield span
