"""How do tenants manage their webhooks over HTTP? /v1/webhook_endpoints, and /v1/webhook_deliveries for their history."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response

from app.api.authentication import Actor, Reader, Writer
from app.api.body import parse_body, read_body
from app.api.documents import answer
from app.api.id_paging import page_answer, parse_id_page, query_of
from app.api.openapi import body_of, problems, shows
from app.api.paging import wrong
from app.api.preconditions import IF_MATCH, VERSION, etag, precondition
from app.api.runtime import runtime_of
from app.api.webhook_acts import endpoint_act
from app.api.webhook_documents import (
    DeletedEndpoint,
    DeliveryPage,
    DeliveryStory,
    EndpointObject,
    EndpointPage,
    FreshEndpointObject,
    RecoveredObject,
    delivery_object,
    endpoint_object,
    fresh_endpoint_object,
    story_object,
)
from app.errors import NotFound
from app.ids import DELIVERY_PREFIX, ENDPOINT_PREFIX, JOB_PREFIX, endpoint_name, parse_name
from app.webhooks import endpoints, history
from app.webhooks.address import check_url
from app.webhooks.events import EVENTS, PING_EVENT
from app.webhooks.wanted import EndpointChange, EndpointWanted, Recovery, SecretRotation

MAX_BODY_BYTES = 64 * 2**10
_HEX = "[0-9a-f]{32}"
_CHOICES = {"status": history.STATUSES, "type": (*EVENTS, PING_EVENT)}
_NAMED: list[dict[str, Any]] = [
    {"name": name, "in": "query", "description": words, "schema": {"type": "string", "pattern": f"^{prefix}{_HEX}$"}}
    for name, prefix, words in (
        ("endpoint", ENDPOINT_PREFIX, "To this endpoint."), ("job", JOB_PREFIX, "Of this job's life."),
    )
]  # fmt: skip

router = APIRouter(prefix="/v1", tags=["webhooks"])

EndpointName = Annotated[str, Path(alias="id", description="`we_` and 32 hex digits.")]
DeliveryName = Annotated[str, Path(alias="id", description="`wd_` and 32 hex digits.")]


def _endpoint_id(name: str) -> UUID:
    found = parse_name(ENDPOINT_PREFIX, name)
    if found is None:
        raise NotFound("there is no such webhook endpoint: ids are we_ and 32 hex digits")
    return found


def _delivery_id(name: str) -> UUID:
    found = parse_name(DELIVERY_PREFIX, name)
    if found is None:
        raise NotFound("there is no such webhook delivery: ids are wd_ and 32 hex digits")
    return found


@router.get(
    "/webhook_endpoints",
    operation_id="listWebhookEndpoints",
    summary="List webhook endpoints",
    responses=shows(200, "A page of endpoints, oldest first.", EndpointPage) | problems(401, 403, 422, 503),
    openapi_extra={"parameters": query_of({})},
)
async def page_of_endpoints(request: Request, caller: Reader) -> Response:
    """Where your events go, and whether they arrive."""
    runtime = runtime_of(request)
    page = parse_id_page(request.query_params, default_limit=runtime.settings.page_size, id_pattern=_HEX, choices={})
    async with runtime.transaction() as conn:
        found = await endpoints.list_endpoints(conn, caller.tenant_id, limit=page.asks, after=page.after_id)
    return page_answer(found, page, endpoint_object, lambda each: each.id.hex)


@router.post(
    "/webhook_endpoints",
    operation_id="createWebhookEndpoint",
    summary="Make a webhook endpoint",
    status_code=201,
    responses=shows(201, "The endpoint with its secret, the only time.", FreshEndpointObject, VERSION)
    | problems(400, 401, 403, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(EndpointWanted)},
)
async def create_endpoint(request: Request, caller: Writer, actor: Actor) -> Response:
    """It is told of what comes true from now on. Asking twice makes two."""
    runtime = runtime_of(request)
    wanted = parse_body(await read_body(request, most=MAX_BODY_BYTES), EndpointWanted)
    check_url(wanted.url, allow_local=runtime.settings.webhook_allow_local, param="url")
    async with runtime.transaction() as conn:
        fresh = await endpoints.create_endpoint(conn, caller.tenant_id, wanted)
        await endpoint_act(conn, actor, "create", caller.tenant_id, fresh.endpoint.id, wanted.model_dump())
    shown = fresh_endpoint_object(fresh)
    return answer(shown, 201, {"Location": f"/v1/webhook_endpoints/{shown['id']}"} | etag(fresh.endpoint.version))


@router.get(
    "/webhook_endpoints/{id}",
    operation_id="getWebhookEndpoint",
    summary="Read a webhook endpoint",
    responses=shows(200, "The endpoint.", EndpointObject, VERSION) | problems(401, 403, 404, 503),
)
async def read_endpoint(request: Request, name: EndpointName, caller: Reader) -> Response:
    """One endpoint: since when it fails, and why it was disabled."""
    async with runtime_of(request).transaction() as conn:
        found = await endpoints.read_endpoint(conn, caller.tenant_id, _endpoint_id(name))
    return answer(endpoint_object(found), headers=etag(found.version))


@router.patch(
    "/webhook_endpoints/{id}",
    operation_id="changeWebhookEndpoint",
    summary="Change a webhook endpoint",
    responses=shows(200, "The endpoint as it is now.", EndpointObject, VERSION)
    | problems(400, 401, 403, 404, 412, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(EndpointChange), "parameters": [IF_MATCH]},
)
async def change_endpoint(request: Request, name: EndpointName, caller: Writer, actor: Actor) -> Response:
    """What is left out stays. What waits goes to a new URL; `"status": "disabled"` gives it up, `"enabled"` starts afresh."""
    runtime = runtime_of(request)
    endpoint_id = _endpoint_id(name)
    change = parse_body(await read_body(request, most=MAX_BODY_BYTES), EndpointChange)
    if not change.given():
        raise wrong("body", "says nothing that shall be different")
    if "url" in change.given():
        check_url(change.url, allow_local=runtime.settings.webhook_allow_local, param="url")
    with precondition(request.headers) as seen:
        async with runtime.transaction() as conn:
            changed = await endpoints.change_endpoint(conn, caller.tenant_id, endpoint_id, change, seen=seen)
            await endpoint_act(conn, actor, "change", caller.tenant_id, endpoint_id, change.given())
    return answer(endpoint_object(changed), headers=etag(changed.version))


@router.delete(
    "/webhook_endpoints/{id}",
    operation_id="deleteWebhookEndpoint",
    summary="Delete a webhook endpoint",
    responses=shows(200, "It is gone.", DeletedEndpoint) | problems(401, 403, 404, 412, 422, 503),
    openapi_extra={"parameters": [IF_MATCH]},
)
async def delete_endpoint(request: Request, name: EndpointName, caller: Writer, actor: Actor) -> Response:
    """What waits for it is given up. Its deliveries stay in the history."""
    endpoint_id = _endpoint_id(name)
    with precondition(request.headers) as seen:
        async with runtime_of(request).transaction() as conn:
            await endpoints.delete_endpoint(conn, caller.tenant_id, endpoint_id, seen=seen)
            await endpoint_act(conn, actor, "delete", caller.tenant_id, endpoint_id, {})
    return answer({"id": endpoint_name(endpoint_id), "object": "webhook_endpoint", "deleted": True})


@router.post(
    "/webhook_endpoints/{id}/rotate",
    operation_id="rotateWebhookSecret",
    summary="Give a webhook endpoint a new secret",
    responses=shows(200, "The endpoint with its new secret, the only time.", FreshEndpointObject)
    | problems(400, 401, 403, 404, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(SecretRotation)},
)
async def rotate_secret(request: Request, name: EndpointName, caller: Writer, actor: Actor) -> Response:
    """For `overlap_s` each try carries a signature by each of both, so that receivers may change theirs at any time within."""
    rotation = parse_body(await read_body(request, most=MAX_BODY_BYTES), SecretRotation)
    endpoint_id = _endpoint_id(name)
    async with runtime_of(request).transaction() as conn:
        fresh = await endpoints.rotate_secret(conn, caller.tenant_id, endpoint_id, overlap_s=rotation.overlap_s)
        await endpoint_act(conn, actor, "rotate", caller.tenant_id, endpoint_id, rotation.model_dump())
    return answer(fresh_endpoint_object(fresh))


@router.post(
    "/webhook_endpoints/{id}/ping",
    operation_id="pingWebhookEndpoint",
    summary="Send a webhook endpoint a test event",
    status_code=202,
    responses=shows(202, "The delivery: read it again to see what became of it.", DeliveryStory)
    | problems(401, 403, 404, 409, 503),
)
async def ping_endpoint(request: Request, name: EndpointName, caller: Writer) -> Response:
    """A `webhook.ping`, on the same way as all events, with the same repeats."""
    async with runtime_of(request).transaction() as conn:
        delivery_id = await endpoints.ping(conn, caller.tenant_id, _endpoint_id(name))
        story = await history.read_delivery(conn, caller.tenant_id, delivery_id)
    return answer(story_object(story), 202)


@router.post(
    "/webhook_endpoints/{id}/recover",
    operation_id="recoverWebhookEndpoint",
    summary="Send again what failed",
    responses=shows(200, "How many are sent again.", RecoveredObject)
    | problems(400, 401, 403, 404, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(Recovery)},
)
async def recover_endpoint(request: Request, name: EndpointName, caller: Writer) -> Response:
    """For an endpoint that was away: all its deliveries of the last `since_s` seconds that failed, or wait for their next try after
    one that failed, each under its own webhook-id."""
    wanted = parse_body(await read_body(request, most=MAX_BODY_BYTES), Recovery)
    async with runtime_of(request).transaction() as conn:
        resent = await history.recover(conn, caller.tenant_id, _endpoint_id(name), since_s=wanted.since_s)
    return answer({"object": "webhook_recovery", "resent": resent})


@router.get(
    "/webhook_deliveries",
    operation_id="listWebhookDeliveries",
    summary="List webhook deliveries",
    responses=shows(200, "A page of deliveries, newest first.", DeliveryPage) | problems(401, 403, 422, 503),
    openapi_extra={"parameters": [*query_of(_CHOICES), *_NAMED]},
)
async def page_of_deliveries(request: Request, caller: Reader) -> Response:
    """What you were told, or are about to be, and by how many tries."""
    runtime = runtime_of(request)
    named = {
        name: _named(request, name, prefix) for name, prefix in (("endpoint", ENDPOINT_PREFIX), ("job", JOB_PREFIX))
    }
    page = parse_id_page(
        request.query_params, default_limit=runtime.settings.page_size, id_pattern=_HEX, choices=_CHOICES,
        others=tuple(named),
    )  # fmt: skip
    which = history.Which(named["endpoint"], named["job"], page.chosen.get("status"), page.chosen.get("type"))
    async with runtime.transaction() as conn:
        found = await history.list_deliveries(conn, caller.tenant_id, which, limit=page.asks, before=page.after_id)
    return page_answer(found, page, delivery_object, lambda each: each.id.hex)


@router.get(
    "/webhook_deliveries/{id}",
    operation_id="getWebhookDelivery",
    summary="Read a webhook delivery",
    responses=shows(200, "The delivery with each of its tries.", DeliveryStory) | problems(401, 403, 404, 503),
)
async def read_delivery(request: Request, name: DeliveryName, caller: Reader) -> Response:
    """Every try: when, what came of it, how long it took; and the payload."""
    async with runtime_of(request).transaction() as conn:
        return answer(story_object(await history.read_delivery(conn, caller.tenant_id, _delivery_id(name))))


@router.post(
    "/webhook_deliveries/{id}/resend",
    operation_id="resendWebhookDelivery",
    summary="Send a webhook delivery again",
    status_code=202,
    responses=shows(202, "The delivery: it is due now.", DeliveryStory) | problems(401, 403, 404, 409, 503),
)
async def resend_delivery(request: Request, name: DeliveryName, caller: Writer) -> Response:
    """Now, whatever became of it, under the same webhook-id; where that fails, by the whole schedule."""
    async with runtime_of(request).transaction() as conn:
        story = await history.resend(conn, caller.tenant_id, _delivery_id(name))
    return answer(story_object(story), 202)


def _named(request: Request, name: str, prefix: str) -> UUID | None:
    given = request.query_params.get(name)
    if given is None:
        return None
    found = parse_name(prefix, given)
    if found is None:
        raise wrong(name, f"must be {prefix} and 32 hex digits")
    return found
