"""How are the pages put together, and into the API? One app of its own, mounted at /admin."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from app.dashboard import (
    account,
    assets,
    login,
    oidc,
    overview,
    people,
    stories,
    tenant,
    tenant_budgets,
    tenant_keys,
    tenants,
)
from app.dashboard.access import LogInFirst, login_url
from app.dashboard.guard import Guard
from app.dashboard.history import History
from app.dashboard.pages import is_htmx, refusal
from app.dashboard.services import Services
from app.db import is_outage
from app.errors import InvalidRequest, NotFound, PenstockError, Unavailable
from app.operators.client import client_of
from app.redis import RedisError
from app.settings import Settings
from app.telemetry import emit

log = logging.getLogger("penstock.dashboard")
_CLOSE_S = 3.0
# A page: a module with a `router`, named here. Its entry of the navigation is in pages.py.
ROUTERS = (
    assets.router, login.router, oidc.router, account.router, people.router, overview.router, tenants.router, tenant.router,
    tenant_budgets.router, tenant_keys.router, *stories.ROUTERS,
)  # fmt: skip


def install(app: FastAPI, settings: Settings, services: Callable[[], Services]) -> None:
    """Mount the dashboard at /admin of `app`; `services` gives the running app's."""
    if client_of(settings) is not None:
        oidc.load()
    app.state.dashboard = dashboard = create_dashboard(services)
    beginning = Guard(RedirectResponse(f"{assets.PREFIX}/", 303), lambda: services().settings)
    app.router.routes.append(Route(assets.PREFIX, beginning, include_in_schema=False))
    app.mount(assets.PREFIX, Guard(dashboard, lambda: services().settings))


@asynccontextmanager
async def keep_history(app: FastAPI, services: Services) -> AsyncIterator[None]:
    """While the API of `app` runs: sample what the overview's charts show."""
    app.state.dashboard.state.history = history = History(services)
    sampling = asyncio.create_task(history.run())
    try:
        yield
    finally:
        history.close()
        await asyncio.wait({sampling}, timeout=_CLOSE_S)
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling


def create_dashboard(services: Callable[[], Services]) -> FastAPI:
    """The pages, without what guards them: `install`."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.services = services
    app.state.all_routes = routes = [
        route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)
    ]
    for route in routes:
        methods = route.methods or set()
        if "GET" in methods:
            methods.add("HEAD")  # whose body is left out
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(LogInFirst, _log_in_first)
    app.add_exception_handler(PenstockError, _ours)
    app.add_exception_handler(HTTPException, _frameworks)
    app.add_exception_handler(RequestValidationError, _parameters)
    for kind in (SQLAlchemyError, RedisError, TimeoutError):
        app.add_exception_handler(kind, _servers)
    app.add_exception_handler(Exception, _unforeseen)
    return app


async def _log_in_first(request: Request, error: Exception) -> Response:
    assert isinstance(error, LogInFirst)
    to = login_url(error.to)
    return HTMLResponse("", 401, {"HX-Redirect": to}) if is_htmx(request) else RedirectResponse(to, 303)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, PenstockError)
    return refusal(request, error)


async def _frameworks(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return refusal(request, NotFound("there is no such page"))
    return refusal(request, InvalidRequest(str(error.detail)), error.status_code)


async def _parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return refusal(request, InvalidRequest(f"{first['loc'][-1]}: {first['msg']}"))


async def _servers(request: Request, error: Exception) -> Response:
    if isinstance(error, DataError):  # such as U+0000, which no text of Postgres holds
        return refusal(request, InvalidRequest("a field holds a character or number that can't be stored"))
    if isinstance(error, SQLAlchemyError) and not is_outage(error):
        emit(log, logging.ERROR, "dashboard.failed", error=error)
        return await _unforeseen(request, error)
    name = "Redis" if isinstance(error, RedisError) else "Postgres"
    return refusal(request, Unavailable(f"{name} doesn't answer now; nothing was lost, try again"))


async def _unforeseen(request: Request, _: Exception) -> Response:
    return refusal(request, PenstockError("something broke on our side; it was logged"))
