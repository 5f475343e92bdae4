"""Does a process without an API live, and can it serve? /healthz, /readyz and /metrics on a port of its own, for whoever supervises it."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from app.errors import Misconfigured
from app.observe.metrics import TEXT, exposition
from app.telemetry import emit

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger(__name__)


@asynccontextmanager
async def probe(
    host: str, port: int | None, why_not_ready: Callable[[], str | None], registry: CollectorRegistry
) -> AsyncIterator[None]:
    """Answer while the caller's block runs; does nothing where `port` is None.

    /healthz says 200 whenever the event loop turns: one that doesn't turn doesn't answer, and a restart is what helps. /readyz
    says 503 with the reason as long as `why_not_ready` has one. /metrics shows the registry to Prometheus.

    Raises:
        Misconfigured: the port can't be used.
    """
    if port is None:
        yield
        return
    listener = _listen(host, port)
    server = _server(why_not_ready, registry)
    serving = asyncio.create_task(server.serve([listener]))
    emit(log, logging.INFO, "probe_listening", host=host, port=listener.getsockname()[1])
    try:
        yield
    finally:
        server.should_exit = True
        await serving


def _server(why_not_ready: Callable[[], str | None], registry: CollectorRegistry) -> "uvicorn.Server":
    # Imported here: a process without a port shall start without them. A worker that was killed is missed until it has.
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Signals are for the process that we are a part of."""
            yield

    async def healthz(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> JSONResponse:
        reason = why_not_ready()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "reason": reason}, status_code=503)

    async def metrics(_: Request) -> Response:
        return Response(exposition(registry), media_type=TEXT)

    routes = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
    app = Starlette(routes=routes)
    return Server(
        uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False, server_header=False)
    )


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Misconfigured(
            f"PENSTOCK_PROBE_PORT: port {port} on {host} can't be used ({error.strerror}): choose another for each process"
        ) from error
    return listener
