"""Who looks, and may they? The session's cookie, the role that a page wants, the token that each act must bring."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import Depends, Request, Response

from app.dashboard.assets import PREFIX
from app.dashboard.forms import whole_form
from app.dashboard.guard import SAFE
from app.dashboard.services import services_of
from app.errors import Forbidden
from app.operators.roles import Role, includes
from app.operators.sessions import Session, read_session
from app.settings import Settings

LIVE = "/live"  # how the path ends of what pages fetch by themselves: that keeps no session alive


class LogInFirst(Exception):
    """Nobody is logged in: go to the log-in page, and come back to `to`."""

    def __init__(self, to: str) -> None:
        super().__init__("log in first")
        self.to = to


def require(role: Role) -> Callable[[Request], Awaitable[Session]]:
    """A dependency: the session of an operator who has this role or more; an unsafe method must bring the session's CSRF token.

    The token comes in the header X-CSRF-Token, which htmx sends, or in the form's field `csrf`.

    Raises:
        LogInFirst: there is no session.
        Forbidden: the role isn't enough, or the token is missing or of another session.
    """

    async def session(request: Request) -> Session:
        found = await session_of(request)
        if found is None:
            # What a page fetches isn't a page: back to the one that it stands on.
            raise LogInFirst(_stands_on(request) or (request.url.path if request.method in SAFE else PREFIX))
        request.state.session = found
        if request.method not in SAFE:
            await _check_token(request, found)
        if not includes(found.role, role):
            raise Forbidden(f"this needs the role {role}, and you are {found.role}: ask an owner", role=role)
        return found

    session.role = role  # type: ignore[attr-defined]
    return session


Viewer = Annotated[Session, Depends(require("viewer"))]
Operator = Annotated[Session, Depends(require("operator"))]
Owner = Annotated[Session, Depends(require("owner"))]


async def session_of(request: Request) -> Session | None:
    """The session whose cookie came along, if it hasn't ended."""
    services = services_of(request)
    token = request.cookies.get(cookie_name(services.settings))
    if not token or len(token) > 200 or not token.isascii():
        return None
    async with services.transaction() as conn:
        return await read_session(
            conn, token, idle_s=services.settings.dashboard_idle_s, is_act=not request.url.path.endswith(LIVE)
        )


def cookie_name(settings: Settings) -> str:
    """`__Host-`: the browser itself refuses it from a subdomain, for another path, or without Secure."""
    return "penstock-session" if settings.dashboard_insecure_cookie else "__Host-penstock-session"


def set_cookie(response: Response, token: str, settings: Settings) -> None:
    """Let the browser keep the session, out of scripts' reach, until its latest end."""
    response.set_cookie(
        cookie_name(settings), token, max_age=int(settings.dashboard_session_s), path="/", httponly=True,
        secure=not settings.dashboard_insecure_cookie, samesite="lax",
    )  # fmt: skip


def drop_cookie(response: Response, settings: Settings) -> None:
    """Let the browser forget the session."""
    response.delete_cookie(
        cookie_name(settings), path="/", httponly=True, secure=not settings.dashboard_insecure_cookie, samesite="lax"
    )


def address_of(request: Request) -> str:
    """From where it came, by what uvicorn believes of its proxies."""
    return request.client.host if request.client else "unknown"


def login_url(to: str) -> str:
    """The log-in page, from which the way leads back to `to`."""
    return f"{PREFIX}/login?next={quote(safe_next(to))}"


def safe_next(to: str) -> str:
    """`to` where it is a page of ours, else the first one: nobody is led elsewhere."""
    is_ours = (
        to.startswith(f"{PREFIX}/") and not any(each in to for each in ("//", "\\", "\n", "\r", "..")) and len(to) < 500
    )
    return (
        to
        if is_ours
        and not to.startswith((f"{PREFIX}/login", f"{PREFIX}/link", f"{PREFIX}/oidc"))
        and not to.endswith(LIVE)
        else PREFIX
    )


def _stands_on(request: Request) -> str:
    """The path of the page from which htmx asks, empty where it isn't said."""
    try:
        return urlsplit(request.headers.get("hx-current-url", "")).path
    except ValueError:  # such as http://[
        return ""


async def _check_token(request: Request, session: Session) -> None:
    given = request.headers.get("x-csrf-token")
    if given is None:
        given = (await whole_form(request)).get("csrf", [""])[0]
    if not hmac.compare_digest(given.encode(), session.csrf.encode()):
        raise Forbidden("this form is of another session: open the page anew and send it again")
