"""How do operators manage tenants over HTTP? /v1/admin/tenants, for keys with the scope `admin`."""

import re
from typing import Annotated, cast

from fastapi import APIRouter, Path, Request, Response

from app.api.authentication import Admin
from app.api.body import parse_body, read_body
from app.api.documents import answer
from app.api.id_paging import page_answer, parse_id_page, query_of
from app.api.openapi import body_of, problems, shows
from app.api.preconditions import IF_MATCH, VERSION, etag, precondition
from app.api.quota_documents import TenantObject, TenantPage, tenant_object
from app.api.runtime import runtime_of
from app.errors import NotFound
from app.quotas import tenants
from app.quotas.wanted import TENANT, Because, TenantChange, TenantWanted

MAX_BODY_BYTES = 64 * 2**10
_CHOICES = {"state": ("active", "suspended", "any")}

router = APIRouter(prefix="/v1/admin/tenants", tags=["tenants"])

TenantName = Annotated[str, Path(alias="id", description="The tenant's slug.")]


def tenant_of(name: str) -> str:
    """The tenant that a path names, if there can be one.

    Raises:
        NotFound: no tenant has such an id.
    """
    if not re.fullmatch(TENANT.removeprefix("^").removesuffix("$"), name):
        raise NotFound("there is no such tenant: ids are 1 to 63 of a-z, 0-9 and -")
    return name


@router.get(
    "",
    operation_id="listTenants",
    summary="List tenants",
    responses=shows(200, "A page of tenants, by id.", TenantPage) | problems(401, 403, 422, 503),
    openapi_extra={"parameters": query_of(_CHOICES)},
)
async def page_of_tenants(request: Request, _: Admin) -> Response:
    """All tenants, or those in one state."""
    runtime = runtime_of(request)
    page = parse_id_page(
        request.query_params, default_limit=runtime.settings.page_size, id_pattern=TENANT, choices=_CHOICES
    )
    state = cast("tenants.State", page.chosen.get("state", "any"))
    async with runtime.transaction() as conn:
        found = await tenants.list_tenants(conn, limit=page.asks, after=page.after, state=state)
    return page_answer(found, page, tenant_object, lambda each: each.id)


@router.post(
    "",
    operation_id="createTenant",
    summary="Make a tenant",
    status_code=201,
    responses=shows(201, "It is made.", TenantObject, VERSION) | problems(400, 401, 403, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(TenantWanted)},
)
async def create_tenant(request: Request, admin: Admin) -> Response:
    """A tenant needs an id only; it has every tier and no limits unless something else is said."""
    wanted = parse_body(await read_body(request, most=MAX_BODY_BYTES), TenantWanted)
    async with runtime_of(request).transaction() as conn:
        made = await tenants.create_tenant(conn, wanted, actor=admin.actor)
    return answer(tenant_object(made), 201, {"Location": f"/v1/admin/tenants/{made.id}"} | etag(made.version))


@router.get(
    "/{id}",
    operation_id="getTenant",
    summary="Read a tenant",
    responses=shows(200, "The tenant.", TenantObject, VERSION) | problems(401, 403, 404, 503),
)
async def read_tenant(request: Request, name: TenantName, _: Admin) -> Response:
    """The tenant with all its limits."""
    async with runtime_of(request).transaction() as conn:
        found = await tenants.read_tenant(conn, tenant_of(name))
    return answer(tenant_object(found), headers=etag(found.version))


@router.patch(
    "/{id}",
    operation_id="changeTenant",
    summary="Change a tenant",
    responses=shows(200, "The tenant as it is now.", TenantObject, VERSION)
    | problems(400, 401, 403, 404, 412, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(TenantChange), "parameters": [IF_MATCH]},
)
async def change_tenant(request: Request, name: TenantName, admin: Admin) -> Response:
    """What is left out stays; null takes a limit away. Rights and rates reach every API process within 5 s, caps at once."""
    change = parse_body(await read_body(request, most=MAX_BODY_BYTES), TenantChange)
    with precondition(request.headers) as seen:
        async with runtime_of(request).transaction() as conn:
            changed = await tenants.change_tenant(conn, tenant_of(name), change, actor=admin.actor, seen=seen)
    return answer(tenant_object(changed), headers=etag(changed.version))


@router.post(
    "/{id}/suspend",
    operation_id="suspendTenant",
    summary="Take no new jobs of a tenant",
    responses=shows(200, "It is suspended.", TenantObject) | problems(400, 401, 403, 404, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(Because)},
)
async def suspend_tenant(request: Request, name: TenantName, admin: Admin) -> Response:
    """At once. Jobs that were accepted run on, and can be read and cancelled. Asking again changes nothing."""
    because = parse_body(await read_body(request, most=MAX_BODY_BYTES), Because)
    async with runtime_of(request).transaction() as conn:
        found = await tenants.suspend_tenant(conn, tenant_of(name), actor=admin.actor, reason=because.reason)
    return answer(tenant_object(found))


@router.post(
    "/{id}/resume",
    operation_id="resumeTenant",
    summary="Take a tenant's jobs again",
    responses=shows(200, "It isn't suspended.", TenantObject) | problems(400, 401, 403, 404, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(Because)},
)
async def resume_tenant(request: Request, name: TenantName, admin: Admin) -> Response:
    """Within 5 s, by every API process. Asking again changes nothing."""
    because = parse_body(await read_body(request, most=MAX_BODY_BYTES), Because)
    async with runtime_of(request).transaction() as conn:
        found = await tenants.resume_tenant(conn, tenant_of(name), actor=admin.actor, reason=because.reason)
    return answer(tenant_object(found))
