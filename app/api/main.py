"""How does the API start, serve and end? `python -m app.api.main`."""

if __name__ == "__main__":
    import app.starting  # noqa: F401 - before all others; who imports this module has a garbage collector of their own

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api import (
    autoscale,
    batches,
    budgets,
    bulk,
    dead_letters,
    events,
    files,
    health,
    jobs,
    keys,
    metrics,
    openapi,
    prices,
    problems,
    quotes,
    reference,
    retention,
    root,
    tenants,
    webhooks,
    why,
)
from app.api.access import AccessLog
from app.api.openai import chat, completions, models, responses
from app.api.openai import paths as face_paths
from app.api.outlet import DirectApp
from app.api.runtime import open_runtime
from app.api.traced import Traced
from app.clock import Clock, SystemClock
from app.dashboard.main import install as install_dashboard
from app.dashboard.main import keep_history
from app.errors import Misconfigured
from app.garbage import collect_seldom
from app.settings import Settings
from app.settings import settings as process_settings
from app.telemetry import configure_logging, emit

GRACE_S = 30  # after SIGTERM: how long requests in flight may take
TICK_S = 1.0  # how often the Date header is written anew

log = logging.getLogger("penstock.api")


def create_app(settings: Settings | None = None, clock: Clock | None = None) -> FastAPI:
    """The API. It opens even while Postgres or Redis is away, and says so at /readyz.

    Raises:
        Misconfigured: at its start, if no database or no Redis is configured.
    """
    own_settings = settings or process_settings()
    own_clock = clock or SystemClock()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_runtime(own_settings, own_clock) as runtime, keep_history(app, runtime):
            app.state.runtime = runtime
            yield

    app = DirectApp(
        title="Penstock",
        version="1",
        summary="Generation jobs: nothing lost, nothing twice, fair by tokens.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # ours: app/api/reference.py
        redoc_url=None,
        # FastAPI's own would take whole URLs and the messages of exceptions along, which quote callers: app/api/traced.py is ours.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    routers = (
        jobs.router, bulk.router, events.router, quotes.router, webhooks.router, why.router, dead_letters.router, tenants.router,
        keys.router, budgets.router, prices.router, models.router, files.router, batches.router, autoscale.router, health.router,
        metrics.router, problems.router, retention.router, root.router,
        chat.router, completions.router, responses.router,
    )  # fmt: skip
    for router in routers:
        app.include_router(router)
    app.state.all_routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    app.add_middleware(AccessLog, clock=own_clock)
    app.add_middleware(Traced)
    problems.install(app)
    face_paths.install(app)
    openapi.install(app)
    reference.install(app, own_settings)
    install_dashboard(app, own_settings, lambda: app.state.runtime)
    return app


class ApiServer(uvicorn.Server):
    """uvicorn, ending as we want it: those who wait are answered at once, and a drain that went well is exit code 0.

    While it serves it wakes once a second, or for a signal; uvicorn's own looks ten times a second whether one has come.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_told = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            host, port = server.sockets[0].getsockname()[:2]
            emit(log, logging.INFO, "api.listening", host=host, port=port)

    async def main_loop(self) -> None:
        """Tick until told to end."""
        self._loop = asyncio.get_running_loop()  # before the first look: a signal is seen by it, or rings from now on
        while not await self.on_tick(0):  # uvicorn's every tenth
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._is_told.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came: end; by a second SIGINT, at once."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._is_told.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connection, send back those who wait, let the others finish."""
        emit(log, logging.INFO, "api.draining")
        self._app.state.runtime.watch.release()
        self._app.state.runtime.streams.release()
        await super().shutdown(sockets)
        emit(log, logging.INFO, "api.ended")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Obey SIGTERM and SIGINT; unlike uvicorn, don't raise them again once they are obeyed."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    chosen = process_settings()
    configure_logging(chosen.log_level)
    try:
        _ = chosen.sqlalchemy_url, chosen.required_redis_url
    except Misconfigured as error:
        raise SystemExit(f"penstock api: {error.detail}") from None
    app = create_app(chosen)
    config = uvicorn.Config(
        app,
        host=chosen.api_host,
        port=chosen.api_port,
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,  # ours: without query strings
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = ApiServer(config, app)
    collect_seldom()
    server.run()
    if not server.started:
        raise SystemExit("penstock api: it couldn't start; the log says why")


if __name__ == "__main__":
    main()
