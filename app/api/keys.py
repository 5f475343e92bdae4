"""How do operators manage API keys over HTTP? /v1/admin/tenants/{id}/keys and /v1/admin/keys, for keys with the scope `admin`."""

import re
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app.api.authentication import Admin
from app.api.body import parse_body, read_body
from app.api.documents import answer
from app.api.id_paging import page_answer, parse_id_page, query_of
from app.api.openapi import body_of, problems, shows
from app.api.preconditions import IF_MATCH, VERSION, etag, precondition
from app.api.quota_documents import FreshKeyObject, KeyObject, KeyPage, fresh_key_object, key_object
from app.api.runtime import runtime_of
from app.api.tenants import MAX_BODY_BYTES, TenantName, tenant_of
from app.errors import NotFound
from app.quotas import key_acts
from app.quotas.tenants import read_tenant
from app.quotas.wanted import PREFIX, KeyChange, KeyRotation, KeyWanted

router = APIRouter(prefix="/v1/admin", tags=["keys"])

Prefix = Annotated[str, Path(alias="prefix", description="The 12 hex digits behind `pk_`.")]


def _prefix(given: str) -> str:
    if not re.fullmatch(PREFIX.removeprefix("^").removesuffix("$"), given):
        raise NotFound("there is no such key: a prefix is the 12 hex digits behind pk_")
    return given


@router.get(
    "/tenants/{id}/keys",
    operation_id="listKeys",
    summary="List a tenant's API keys",
    responses=shows(200, "A page of keys, oldest first.", KeyPage) | problems(401, 403, 404, 422, 503),
    openapi_extra={"parameters": query_of({})},
)
async def page_of_keys(request: Request, name: TenantName, _: Admin) -> Response:
    """Keys without their secrets; those that were revoked or have expired, too."""
    runtime = runtime_of(request)
    page = parse_id_page(
        request.query_params, default_limit=runtime.settings.page_size, id_pattern="[0-9a-f]{32}", choices={}
    )
    async with runtime.transaction() as conn:
        tenant = await read_tenant(conn, tenant_of(name))
        found = await key_acts.list_keys(conn, tenant.id, limit=page.asks, after=page.after_id)
    return page_answer(found, page, key_object, lambda each: each.id.hex)


@router.post(
    "/tenants/{id}/keys",
    operation_id="createKey",
    summary="Make an API key",
    status_code=201,
    responses=shows(201, "The key with its token, the only time.", FreshKeyObject, VERSION)
    | problems(400, 401, 403, 404, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(KeyWanted)},
)
async def create_key(request: Request, name: TenantName, admin: Admin) -> Response:
    """Asking twice makes two keys: a token can't be shown again."""
    runtime = runtime_of(request)
    wanted = parse_body(await read_body(request, most=MAX_BODY_BYTES), KeyWanted)
    pepper = runtime.settings.key_pepper.get_secret_value()
    async with runtime.transaction() as conn:
        fresh = await key_acts.make_key(conn, tenant_of(name), wanted, pepper=pepper, actor=admin.actor)
    return answer(
        fresh_key_object(fresh), 201, {"Location": f"/v1/admin/keys/{fresh.key.prefix}"} | etag(fresh.key.version)
    )


@router.get(
    "/keys/{prefix}",
    operation_id="getKey",
    summary="Read an API key",
    responses=shows(200, "The key without its secrets.", KeyObject, VERSION) | problems(401, 403, 404, 503),
)
async def read_key(request: Request, given: Prefix, _: Admin) -> Response:
    """By its prefix, or by the one before its last rotation. Those that were revoked or have expired, too."""
    async with runtime_of(request).transaction() as conn:
        found = await key_acts.read_key(conn, _prefix(given))
    return answer(key_object(found), headers=etag(found.version))


@router.patch(
    "/keys/{prefix}",
    operation_id="changeKey",
    summary="Change an API key",
    responses=shows(200, "The key as it is now.", KeyObject, VERSION)
    | problems(400, 401, 403, 404, 409, 412, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(KeyChange), "parameters": [IF_MATCH]},
)
async def change_key(request: Request, given: Prefix, admin: Admin) -> Response:
    """Its secrets and budgets stay. API processes go by what they have just seen for up to 5 s more. One that has ended is a 409."""
    change = parse_body(await read_body(request, most=MAX_BODY_BYTES), KeyChange)
    with precondition(request.headers) as seen:
        async with runtime_of(request).transaction() as conn:
            changed = await key_acts.change_key(conn, _prefix(given), change, actor=admin.actor, seen=seen)
    return answer(key_object(changed), headers=etag(changed.version))


@router.post(
    "/keys/{prefix}/rotate",
    operation_id="rotateKey",
    summary="Give a key a new secret",
    responses=shows(200, "The key with its new token, the only time.", FreshKeyObject)
    | problems(400, 401, 403, 404, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(KeyRotation)},
)
async def rotate_key(request: Request, given: Prefix, admin: Admin) -> Response:
    """Both secrets are valid for `overlap_s`; budgets, rates and scopes stay. The prefix is the new secret's from now on."""
    runtime = runtime_of(request)
    rotation = parse_body(await read_body(request, most=MAX_BODY_BYTES), KeyRotation)
    pepper = runtime.settings.key_pepper.get_secret_value()
    async with runtime.transaction() as conn:
        fresh = await key_acts.rotate_key(conn, _prefix(given), rotation, pepper=pepper, actor=admin.actor)
    return answer(fresh_key_object(fresh))


@router.post(
    "/keys/{prefix}/revoke",
    operation_id="revokeKey",
    summary="End a key",
    responses=shows(200, "It is revoked.", KeyObject) | problems(401, 403, 404, 503),
)
async def revoke_key(request: Request, given: Prefix, admin: Admin) -> Response:
    """With both its secrets, where it was rotated. API processes believe it for up to 5 s more. Asking again changes nothing."""
    async with runtime_of(request).transaction() as conn:
        return answer(key_object(await key_acts.revoke_key(conn, _prefix(given), actor=admin.actor)))
