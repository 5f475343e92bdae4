"""How are a tenant's keys made, rotated and revoked on its page? A secret is shown once, in the answer to the act that made it."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.access import Operator
from app.dashboard.forms import read_form, why_of
from app.dashboard.services import services_of
from app.dashboard.tenant_forms import key_rotation, key_wanted
from app.dashboard.tenant_page import TenantPath, done, tenant_page
from app.errors import Forbidden, InvalidRequest, KeyEnded, NotFound
from app.operators.roles import includes
from app.operators.sessions import Session
from app.quotas import key_acts as acts
from app.quotas.tables import api_keys
from app.quotas.wanted import PREFIX

router = APIRouter(prefix="/tenants/{tenant}/keys")
KeyPath = Annotated[str, Path(pattern=PREFIX)]


@router.post("")
async def create(request: Request, tenant: TenantPath, session: Operator) -> Response:
    """Make a key and show its token. One that may administer over HTTP is for owners to make: it can do all that they can."""
    form, services = await read_form(request), services_of(request)
    try:
        wanted = key_wanted(form)
        _may_hold(wanted.scopes, session)
        async with services.transaction() as conn:
            fresh = await acts.make_key(
                conn, tenant, wanted, pepper=services.settings.key_pepper.get_secret_value(), actor=session.actor,
                reason=why_of(form),
            )  # fmt: skip
    except (InvalidRequest, Forbidden) as error:
        return await tenant_page(request, tenant, problem=error.detail, problem_at="new-key", status=422, entered=form)
    return await tenant_page(request, tenant, fresh=fresh)


@router.post("/{prefix}/rotate")
async def rotate(request: Request, tenant: TenantPath, prefix: KeyPath, session: Operator) -> Response:
    """Give it a new secret and show that; the one before stays valid for a while."""
    form, services = await read_form(request), services_of(request)
    try:
        rotation = key_rotation(form)
        async with services.transaction() as conn:
            await _of_tenant(conn, tenant, prefix, session)
            fresh = await acts.rotate_key(
                conn, prefix, rotation, pepper=services.settings.key_pepper.get_secret_value(), actor=session.actor,
                reason=why_of(form),
            )  # fmt: skip
    except (InvalidRequest, KeyEnded, Forbidden) as error:
        return await tenant_page(request, tenant, problem=error.detail, problem_at="keys", status=422)
    return await tenant_page(request, tenant, fresh=fresh)


@router.post("/{prefix}/revoke")
async def revoke(request: Request, tenant: TenantPath, prefix: KeyPath, session: Operator) -> Response:
    """End it, all its secrets."""
    form = await read_form(request)
    try:
        async with services_of(request).transaction() as conn:
            await _of_tenant(conn, tenant, prefix)
            await acts.revoke_key(conn, prefix, actor=session.actor, reason=why_of(form))
    except InvalidRequest as error:
        return await tenant_page(request, tenant, problem=error.detail, problem_at="keys", status=422)
    return await done(request, tenant, "done")


async def _of_tenant(conn: AsyncConnection, tenant: str, prefix: str, session: Session | None = None) -> None:
    """The key is this tenant's; `session`: who wants to see a new secret of it.

    Raises:
        NotFound: it isn't.
        Forbidden: it may administer, and only an owner may hold its secret.
    """
    is_it = or_(api_keys.c.prefix == prefix, api_keys.c.old_prefix == prefix)
    scopes = await conn.scalar(select(api_keys.c.scopes).where(api_keys.c.tenant_id == tenant, is_it))
    if scopes is None:
        raise NotFound(f"{tenant} has no key {prefix}")
    if session is not None:
        _may_hold(scopes, session)


def _may_hold(scopes: Sequence[str], session: Session) -> None:
    if "admin" in scopes and not includes(session.role, "owner"):
        raise Forbidden("a key with the scope admin may do everything over HTTP: that is for owners", role="owner")
