"""Who may use this dashboard? /admin/operators, for owners: made, given a role, disabled, sent a link."""

from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response

from app.dashboard.access import Owner
from app.dashboard.assets import PREFIX
from app.dashboard.forms import read_form, text_of
from app.dashboard.login_pages import provider_label
from app.dashboard.pages import go, page
from app.dashboard.services import services_of
from app.errors import AlreadyExists, InvalidRequest
from app.operators import identities, links, people
from app.operators.roles import ROLES

router = APIRouter(prefix="/operators")
_PAGE = f"{PREFIX}/operators"


@router.get("")
async def operators(request: Request, _: Owner) -> Response:
    """All of them, and a form for one more."""
    return await _shown(request)


@router.post("")
async def create(request: Request, session: Owner) -> Response:
    """Make one, and show the link with which they choose their password."""
    form = await read_form(request)
    name, role = text_of(form, "name").lower(), text_of(form, "role")
    try:
        async with services_of(request).transaction() as conn:
            person = await people.create_person(conn, name, role, actor=session.actor)
            token = await links.make_link(conn, person, actor=session.actor)
    except (InvalidRequest, AlreadyExists) as error:
        return await _shown(request, problem=error.detail, status=422, name=name)
    return await _shown(request, link=link_url(request, token), link_for=name)


@router.post("/{name}/link")
async def new_link(request: Request, name: str, session: Owner) -> Response:
    """Show a link with which they choose a new password; the ones before end."""
    async with services_of(request).transaction() as conn:
        token = await links.make_link(conn, await people.read_person(conn, name), actor=session.actor)
    return await _shown(request, link=link_url(request, token), link_for=name)


@router.post("/{name}/role")
async def role(request: Request, name: str, session: Owner) -> Response:
    """Give another role; their sessions end."""
    form = await read_form(request)
    try:
        async with services_of(request).transaction() as conn:
            await people.change_role(conn, name, text_of(form, "role"), actor=session.actor)
    except InvalidRequest as error:
        return await _shown(request, problem=error.detail, status=422)
    return go(request, _PAGE, said="saved")


@router.post("/{name}/disable")
async def disable(request: Request, name: str, session: Owner) -> Response:
    """Let them in no more."""
    try:
        async with services_of(request).transaction() as conn:
            await people.disable_person(conn, name, actor=session.actor)
    except InvalidRequest as error:
        return await _shown(request, problem=error.detail, status=422)
    return go(request, _PAGE, said="saved")


@router.post("/{name}/enable")
async def enable(request: Request, name: str, session: Owner) -> Response:
    """Let them in again."""
    async with services_of(request).transaction() as conn:
        await people.enable_person(conn, name, actor=session.actor)
    return go(request, _PAGE, said="saved")


@router.post("/{name}/unlink")
async def unlink(request: Request, name: str, session: Owner) -> Response:
    """Tie them to nobody at the OIDC provider any more."""
    async with services_of(request).transaction() as conn:
        await identities.unlink(conn, name, actor=session.actor)
    return go(request, _PAGE, said="saved")


def link_url(request: Request, token: str) -> str:
    """The whole address of a one-time link."""
    ours = urlsplit(services_of(request).settings.dashboard_url or str(request.base_url))
    return f"{ours.scheme}://{ours.netloc}{PREFIX}/link/{token}"


async def _shown(
    request: Request,
    *,
    problem: str | None = None,
    status: int = 200,
    link: str = "",
    link_for: str = "",
    name: str = "",
) -> Response:
    settings = services_of(request).settings
    async with services_of(request).transaction() as conn:
        found = await people.list_people(conn)
    return page(
        request, "operators.html", section="operators", status=status, people=found, roles=ROLES, problem=problem,
        link=link, link_for=link_for, name=name, passwords=settings.dashboard_passwords, provider=provider_label(request),
        by_groups=settings.oidc_issuer is not None and settings.oidc_roles is not None,
    )  # fmt: skip
