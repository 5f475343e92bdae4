"""How does an operator get in by an OIDC provider? /admin/oidc sends them there, /admin/oidc/callback takes them back."""

import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.dashboard.access import address_of, cookie_name, safe_next, set_cookie
from app.dashboard.assets import PREFIX
from app.dashboard.login_pages import login_form, used_up
from app.dashboard.plain_http import lost_cookie
from app.dashboard.services import Services, services_of
from app.errors import NotFound, PenstockError
from app.operators import flows, identities, links, throttle
from app.operators.addresses import network_of
from app.operators.client import CodeRefused, InvalidToken, ProviderFailed, client_of
from app.operators.sessions import close_session, digest, open_session
from app.quotas.acts import record_act
from app.settings import Settings
from app.telemetry import emit

if TYPE_CHECKING:
    from app.operators.provider import Provider

log = logging.getLogger("penstock.dashboard")
router = APIRouter(prefix="/oidc")
MAX_CODE_CHARS = 4096
_STALE = (
    "This log-in wasn't begun in this browser, was finished already, or took more than ten minutes. Begin it again."
)
_DENIED = "The provider didn't let you in, or you changed your mind there."
_NOT_PROVEN = "What the provider sent doesn't prove who you are. The log of the API says why."
_AWAY = "The provider doesn't answer as it should. The log of the API says why. Try again"
_SAID: dict[identities.Reason, str] = {
    "unknown": "The provider knows you, but nobody has let you in here. Ask an owner for a link: it ties your account here to the one there.",
    "no_role": "None of your groups at the provider has a role here. Ask who manages those groups, then log in again.",
    "disabled": "Your account here is disabled. Ask an owner.",
    "linked_elsewhere": "At the provider you are tied to another account here. Log out there, or have an owner untie that one.",
    "link_used_up": "The link was used already, or its 15 minutes are over. Have a new one made.",
}


@router.get("")
async def go_there(request: Request, next: str = PREFIX) -> Response:  # noqa: A002 - the form's word
    """Begin a log-in."""
    return await _begin(request, to=safe_next(next), link_hash=None)


@router.get("/link/{token}")
async def go_there_with_link(request: Request, token: str) -> Response:
    """Begin the log-in that ties the operator of a one-time link to who they are at the provider.

    From the link's own page only: another site that sent a browser here could tie its visitor to an account of its choice.
    """
    if (instead := lost_cookie(request, services_of(request).settings)) is not None:
        return instead
    if not _comes_from_us(request):
        return RedirectResponse(f"{PREFIX}/link/{token}", 303)
    async with services_of(request).transaction() as conn:
        if await links.whose_link(conn, token) is None:
            return used_up(request)
    return await _begin(request, to=PREFIX, link_hash=digest(token))


@router.get("/callback")
async def come_back(request: Request) -> Response:
    """End a log-in: its state used up, its code redeemed, its token checked, its operator found; then a session as by password."""
    services, provider, given = services_of(request), provider_of(request), request.query_params
    if (instead := lost_cookie(request, services.settings)) is not None:
        return instead
    token, address = request.cookies.get(flow_cookie(services.settings), ""), address_of(request)
    if not _is_token(token) or not flows.is_state(token, given.get("state", "")):
        return _refused(request, "no_flow", _STALE, 400)
    try:
        async with services.transaction() as conn:
            await throttle.count_try(conn, name=None, address=address)
            flow = await flows.end_flow(conn, token)
    except throttle.TooManyTries as error:
        return _refused(request, "throttled", error.detail, error.status, retry_after_s=error.extra["retry_after_s"])
    if flow is None:
        return _refused(request, "no_flow", _STALE, 400, is_over=True)
    code = given.get("code", "")
    if "error" in given or not 0 < len(code) <= MAX_CODE_CHARS:
        return _refused(request, "denied_there", _DENIED, 403, to=flow.next, is_over=True)
    try:
        claims = await provider.redeem(
            code, flows.secrets_of(token), redirect_uri=callback_url(request), answered_as=given.get("iss")
        )
    except ProviderFailed as error:
        async with services.transaction() as conn:  # that isn't the visitor's fault
            await throttle.forgive(conn, name=None, address=address)
        return _failed(request, error, flow.next)
    except (CodeRefused, InvalidToken) as error:
        return _failed(request, error, flow.next)
    return await _enter(request, services, claims, flow)


async def _enter(request: Request, services: Services, claims: identities.Claims, flow: flows.Flow) -> Response:
    settings, address = services.settings, address_of(request)
    roles = settings.oidc_roles
    role = None if roles is None else identities.role_of(claims, claim=settings.oidc_groups_claim, roles=roles)
    async with services.transaction() as conn:
        arrival = await identities.arrive(
            conn, claims, role=role, by_groups=roles is not None, link_hash=flow.link_hash
        )
        if arrival.person is None:
            detail = {"by": "oidc", "refused": arrival.refused, "issuer": claims["iss"], "subject": claims["sub"]}
            await record_act(conn, f"address:{address}", "operator.login_refused", arrival.known or "oidc", detail)
        else:
            await throttle.forgive(conn, name=None, address=address)
            if old := request.cookies.get(cookie_name(settings)):
                await close_session(conn, old)
            session = await open_session(conn, arrival.person, longest_s=settings.dashboard_session_s, by="oidc")
    if arrival.person is None:
        assert arrival.refused is not None
        return _refused(
            request, arrival.refused, _SAID[arrival.refused], 403, to=flow.next, is_over=True, operator=arrival.known
        )
    answer = RedirectResponse(flow.next, 303)
    set_cookie(answer, session, settings)
    _drop_flow(answer, settings)
    return answer


def load() -> None:
    """Import what asks a provider, before the first request: its libraries take several tenths of a second, and only who has one needs them."""
    import app.operators.provider  # noqa: F401


def provider_of(request: Request) -> "Provider":
    """The configured one.

    Raises:
        NotFound: there is none.
    """
    from app.operators.provider import Provider

    services = services_of(request)
    client = client_of(services.settings)
    if client is None:
        raise NotFound("no OIDC provider is configured: set PENSTOCK_OIDC_ISSUER")
    known: Provider | None = getattr(request.app.state, "provider", None)
    if known is None or known.client != client:
        request.app.state.provider = known = Provider(client, services.clock)
    return known


def callback_url(request: Request) -> str:
    """Where the provider sends browsers back: to be registered there, letter by letter."""
    ours = urlsplit(services_of(request).settings.dashboard_url or str(request.base_url))
    return f"{ours.scheme}://{ours.netloc}{PREFIX}/oidc/callback"


def flow_cookie(settings: Settings) -> str:
    """As the session's: no subdomain and no plain http can set it, so that nobody is logged in as somebody else's choice."""
    return "penstock-oidc" if settings.dashboard_insecure_cookie else "__Host-penstock-oidc"


async def _begin(request: Request, *, to: str, link_hash: bytes | None) -> Response:
    services, provider = services_of(request), provider_of(request)
    if (instead := lost_cookie(request, services.settings)) is not None:
        return instead
    network = network_of(address_of(request))
    async with services.transaction() as conn:
        token = await flows.begin_flow(conn, network=network, to=to, link_hash=link_hash)
    try:
        url = await provider.login_url(flows.secrets_of(token), redirect_uri=callback_url(request))
    except ProviderFailed as error:
        return _failed(request, error, to)
    answer = RedirectResponse(url, 303)
    answer.set_cookie(
        flow_cookie(services.settings), token, max_age=flows.VALID_S, path="/", httponly=True,
        secure=not services.settings.dashboard_insecure_cookie, samesite="lax",
    )  # fmt: skip
    return answer


def _comes_from_us(request: Request) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    try:  # an old browser: our Referrer-Policy has it tell us, and nobody else
        return urlsplit(request.headers.get("referer", "")).netloc == urlsplit(callback_url(request)).netloc
    except ValueError:
        return False


def _is_token(token: str) -> bool:
    return 0 < len(token) <= 200 and token.isascii()


def _failed(request: Request, error: PenstockError, to: str) -> Response:
    settings = services_of(request).settings
    if isinstance(error, ProviderFailed):
        said = f"{_AWAY}{', or log in by password' if settings.dashboard_passwords else ''}."
        return _refused(request, "provider_failed", said, error.status, to=to, is_over=True, why=error.why)
    if isinstance(error, InvalidToken):
        return _refused(request, "not_proven", _NOT_PROVEN, error.status, to=to, is_over=True, why=error.why)
    return _refused(request, "code_refused", _STALE, error.status, to=to, is_over=True, why=error.detail)


def _refused(
    request: Request,
    reason: str,
    said: str,
    status: int,
    *,
    to: str = PREFIX,
    is_over: bool = False,
    retry_after_s: int | None = None,
    why: str | None = None,
    operator: str | None = None,
) -> Response:
    """The log-in page with what is wrong, in words of ours. `is_over`: the browser may forget this try."""
    emit(
        log,
        logging.WARNING,
        "dashboard.login_refused",
        address=address_of(request),
        by="oidc",
        reason=reason,
        why=why,
        operator=operator,
    )
    answer = login_form(request, status=status, to=to, problem=said)
    if retry_after_s is not None:
        answer.headers["Retry-After"] = str(retry_after_s)
    if is_over:
        _drop_flow(answer, services_of(request).settings)
    return answer


def _drop_flow(answer: Response, settings: Settings) -> None:
    answer.delete_cookie(
        flow_cookie(settings), path="/", httponly=True, secure=not settings.dashboard_insecure_cookie, samesite="lax"
    )
