"""How does an operator get in and out? /admin/login, /admin/logout, and /admin/link/… for those who have no password."""

import logging

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.background import BackgroundTask

from app.dashboard.access import Viewer, address_of, cookie_name, drop_cookie, safe_next, session_of, set_cookie
from app.dashboard.assets import PREFIX
from app.dashboard.forms import read_form, text_of
from app.dashboard.login_pages import login_form, provider_label, used_up
from app.dashboard.pages import page
from app.dashboard.plain_http import lost_cookie
from app.dashboard.services import Services, services_of
from app.errors import InvalidRequest, Unavailable
from app.operators import links, passwords, people, throttle
from app.operators.addresses import network_of
from app.operators.sessions import Credentials, close_session, credentials_of, open_session, still_holds
from app.quotas.acts import record_act
from app.telemetry import emit

log = logging.getLogger("penstock.dashboard")
router = APIRouter()
MOST_BYTES = 16 * 2**10  # of a form whose sender isn't known yet
_WRONG = "Name or password is wrong."
_NO_PASSWORDS = "Nobody logs in by password here."


@router.get("/login")
async def login_page(request: Request, next: str = PREFIX) -> Response:  # noqa: A002 - the form's word
    """The form; who is logged in already is sent on."""
    if (instead := lost_cookie(request, services_of(request).settings)) is not None:
        return instead
    if await session_of(request) is not None:
        return RedirectResponse(safe_next(next), 303)
    return login_form(request, to=safe_next(next))


@router.post("/login")
async def log_in(request: Request) -> Response:
    """A try. It has a place among those that are looked at, and is counted, before anything is done for it."""
    services = services_of(request)
    if (instead := lost_cookie(request, services.settings)) is not None:
        return instead
    form, address = await read_form(request, most_bytes=MOST_BYTES), address_of(request)
    name, to = text_of(form, "name").lower(), safe_next(text_of(form, "next"))
    if not services.settings.dashboard_passwords:
        return login_form(request, status=403, to=to, problem=_NO_PASSWORDS)
    try:
        async with passwords.guessing(network_of(address)) as guess:
            async with services.transaction() as conn:
                await throttle.count_try(conn, name=name, address=address)
            async with services.transaction() as conn:
                known = await credentials_of(conn, name)
            is_right = await guess.is_right(known.password_hash, form.get("password", [""])[0])
    except (throttle.TooManyTries, Unavailable) as error:
        emit(log, logging.WARNING, "dashboard.login_throttled", address=address, code=error.code)
        refused = login_form(request, status=error.status, to=to, name=name, problem=error.detail)
        refused.headers["Retry-After"] = str(error.extra["retry_after_s"])
        return refused
    token = None
    if is_right and known.person is not None:
        async with services.transaction() as conn:
            if await still_holds(conn, known):
                await throttle.forgive(conn, name=name, address=address)
                longest_s = services.settings.dashboard_session_s
                token = await open_session(conn, known.person, longest_s=longest_s, by="password")
    if token is None:
        return _refused(request, known, name, to)
    answer = RedirectResponse(to, 303)
    set_cookie(answer, token, services.settings)
    return answer


def _refused(request: Request, known: Credentials, name: str, to: str) -> Response:
    """The form again, the same for all names. What is written down of an operator's name is written after it was sent: time tells none."""
    address, person = address_of(request), known.person
    # A name that nobody has isn't logged: some type their password there.
    emit(log, logging.WARNING, "dashboard.login_refused", address=address, operator=person.name if person else None)
    answer = login_form(request, status=401, to=to, name=name, problem=_WRONG)
    if person is not None:
        answer.background = BackgroundTask(_write_down, services_of(request), person.name, address)
    return answer


async def _write_down(services: Services, name: str, address: str) -> None:
    """As often as the throttle of the account lets somebody try."""
    async with services.transaction() as conn:
        await record_act(conn, f"address:{address}", "operator.login_refused", name, {})


@router.post("/logout")
async def log_out(request: Request, _: Viewer) -> Response:
    """End this session."""
    services = services_of(request)
    async with services.transaction() as conn:
        await close_session(conn, request.cookies[cookie_name(services.settings)])
    answer = RedirectResponse(f"{PREFIX}/login?said=logged-out", 303)
    drop_cookie(answer, services.settings)
    return answer


@router.get("/link/{token}")
async def link_page(request: Request, token: str) -> Response:
    """The form behind a one-time link. Looking uses nothing up: previews of links look, too."""
    if (instead := lost_cookie(request, services_of(request).settings)) is not None:
        return instead
    async with services_of(request).transaction() as conn:
        person = await links.whose_link(conn, token)
    if person is None:
        return used_up(request)
    return _link_form(request, person, token)


@router.post("/link/{token}")
async def use_link(request: Request, token: str) -> Response:
    """Set the password, where there are passwords; use the link up, log in: all or nothing."""
    services = services_of(request)
    if (instead := lost_cookie(request, services.settings)) is not None:
        return instead
    form = await read_form(request, most_bytes=MOST_BYTES)
    async with services.transaction() as conn:
        person = await links.whose_link(conn, token)
    if person is None:
        return used_up(request)
    password_hash = None
    if services.settings.dashboard_passwords:
        password = form.get("password", [""])[0]
        try:
            passwords.check_new(password, form.get("again", [""])[0], name=person.name)
        except InvalidRequest as error:
            return _link_form(request, person, token, problem=error.detail)
        password_hash = await passwords.hashed(password)
    async with services.transaction() as conn:
        person = await links.use_link(conn, token)
        if person is not None:
            if password_hash is not None:
                await people.set_password(conn, person.id, password_hash, actor=f"operator:{person.name}")
            session = await open_session(conn, person, longest_s=services.settings.dashboard_session_s, by="link")
    if person is None:  # another use was faster
        return used_up(request)
    answer = RedirectResponse(f"{PREFIX}/{'?said=welcome' if password_hash else ''}", 303)
    set_cookie(answer, session, services.settings)
    return answer


def _link_form(request: Request, person: people.Person, token: str, *, problem: str | None = None) -> Response:
    settings = services_of(request).settings
    has_passwords = settings.dashboard_passwords
    return page(
        request, "link.html", title="Choose a password" if has_passwords and not settings.oidc_issuer else "Welcome", status=422 if problem else 200,
        person=person, token=token, problem=problem, passwords=has_passwords, provider=provider_label(request),
    )  # fmt: skip
