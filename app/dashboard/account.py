"""What is an operator's own? /admin/account: their password, their sessions. And /admin/, where everybody begins."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.dashboard.access import LogInFirst, Viewer, address_of, drop_cookie, set_cookie
from app.dashboard.assets import PREFIX
from app.dashboard.forms import read_form
from app.dashboard.login_pages import provider_label
from app.dashboard.pages import go, page
from app.dashboard.services import services_of
from app.errors import InvalidRequest
from app.operators import passwords, people, throttle
from app.operators.sessions import Credentials, Session, credentials_of, open_session, still_holds

router = APIRouter()


@router.get("/")
async def begin(request: Request, _: Viewer) -> Response:
    """To the overview, with what is to be said there."""
    said = request.query_params.get("said", "")
    return go(request, f"{PREFIX}/overview", said="welcome" if said == "welcome" else "")


@router.get("/account")
async def account(request: Request, session: Viewer) -> Response:
    """Name, role, password, sessions."""
    return await _shown(request, session)


@router.post("/account/password")
async def change_password(request: Request, session: Viewer) -> Response:
    """A new password for who knows the old one; all other sessions end."""
    services, form = services_of(request), await read_form(request)
    try:
        known = await _check(request, session, form)
        password_hash = await passwords.hashed(form["password"][0])
    except (InvalidRequest, throttle.TooManyTries) as error:
        return await _shown(request, session, problem=error.detail)
    async with services.transaction() as conn:
        if not await still_holds(conn, known):
            raise LogInFirst(f"{PREFIX}/account")
        await people.set_password(conn, session.person_id, password_hash, actor=session.actor)
        person = await people.read_person(conn, session.name)
        token = await open_session(conn, person, longest_s=services.settings.dashboard_session_s, by="password")
    answer = go(request, f"{PREFIX}/account", said="password")
    set_cookie(answer, token, services.settings)
    return answer


@router.post("/account/logout-everywhere")
async def log_out_everywhere(request: Request, session: Viewer) -> Response:
    """End all of the operator's sessions, this one too."""
    services = services_of(request)
    async with services.transaction() as conn:
        await people.end_sessions(conn, session.person_id)
    answer = RedirectResponse(f"{PREFIX}/login?said=logged-out", 303)
    drop_cookie(answer, services.settings)
    return answer


async def _check(request: Request, session: Session, form: dict[str, list[str]]) -> Credentials:
    services, address = services_of(request), address_of(request)
    if not services.settings.dashboard_passwords:
        raise InvalidRequest("password: nobody logs in by password here", param="password")
    async with services.transaction() as conn:
        await throttle.count_try(conn, name=session.name, address=address)
    async with services.transaction() as conn:
        known = await credentials_of(conn, session.name)
    if not await passwords.is_right(known.password_hash, form.get("current", [""])[0]):
        raise InvalidRequest("current password: is wrong", param="current")
    async with services.transaction() as conn:
        await throttle.forgive(conn, name=session.name, address=address)
    passwords.check_new(form.get("password", [""])[0], form.get("again", [""])[0], name=session.name)
    return known


async def _shown(request: Request, session: Session, *, problem: str | None = None) -> Response:
    async with services_of(request).transaction() as conn:
        person = await people.read_person(conn, session.name)
    return page(
        request, "account.html", title="Your account", status=422 if problem else 200, problem=problem, person=person,
        ends_at=session.expires_at, passwords=services_of(request).settings.dashboard_passwords,
        provider=provider_label(request),
    )  # fmt: skip
