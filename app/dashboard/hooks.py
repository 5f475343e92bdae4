"""Are tenants told of their events? /admin/webhooks: endpoints with their health, deliveries, and each delivery's tries."""

from datetime import datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.access import Operator, Viewer
from app.dashboard.acting import Act, act
from app.dashboard.assets import PREFIX
from app.dashboard.forms import text_of
from app.dashboard.listing import PAGE_SIZE, listing_of, one_of, uuid_of
from app.dashboard.lists import Search, list_page
from app.dashboard.pages import is_htmx, page
from app.dashboard.queries import hooks as queries
from app.dashboard.services import services_of
from app.errors import InvalidRequest, NotFound
from app.ids import DELIVERY_PREFIX, ENDPOINT_PREFIX, delivery_name, endpoint_name, job_name, parse_name
from app.quotas.acts import record_act
from app.webhooks import endpoints, history
from app.webhooks.events import EVENTS
from app.webhooks.wanted import EndpointChange

SPANS = {"3600": "hour", "86400": "day", "604800": "7 days"}
_SWITCHES = {"enable": "endpoint-enabled", "disable": "endpoint-disabled", "recover": "endpoint-recovered"}

router = APIRouter(prefix="/webhooks")
_PAGE = f"{PREFIX}/webhooks"
EndpointId = Annotated[str, Path(alias="id")]
NAMES: dict[str, Any] = {"endpoint_name": endpoint_name, "delivery_name": delivery_name, "job_name": job_name}


@router.get("")
async def list_endpoints(request: Request, _: Viewer) -> Response:
    """Endpoints of all tenants, newest first."""
    listing = listing_of(request, _PAGE, ("tenant", "state"))

    def search(_: datetime) -> Search:
        tenant, state = listing.get("tenant"), listing.read("state", one_of(queries.STATES))
        older_than = listing.read_cursor(uuid_of)
        return lambda conn: queries.list_endpoints(
            conn, limit=PAGE_SIZE, tenant=tenant, state=state, older_than=older_than
        )

    return await list_page(
        request, "hooks.html", listing, search, section="webhooks", states=queries.STATES, recent=queries.MOST_RECENT, **NAMES
    )  # fmt: skip


@router.get("/deliveries")
async def list_deliveries(request: Request, _: Viewer) -> Response:
    """Deliveries of all tenants, newest first."""
    listing = listing_of(request, f"{_PAGE}/deliveries", ("tenant", "endpoint", "job", "status", "type"))

    def search(_: datetime) -> Search:
        wanted = queries.DeliverySearch(
            tenant=listing.get("tenant"),
            endpoint_id=listing.read("endpoint", uuid_of),
            job_id=listing.read("job", uuid_of),
            status=listing.read("status", one_of(history.STATUSES)),
            event_type=listing.get("type"),
        )
        older_than = listing.read_cursor(uuid_of)
        return lambda conn: queries.find_deliveries(conn, wanted, limit=PAGE_SIZE, older_than=older_than)

    return await list_page(
        request, "deliveries.html", listing, search, section="webhooks", title="Deliveries", statuses=history.STATUSES,
        types=EVENTS, **NAMES,
    )  # fmt: skip


@router.get("/endpoints/{id}")
async def endpoint(request: Request, name: EndpointId, _: Viewer) -> Response:
    """One endpoint with its newest deliveries."""
    return await _endpoint(request, _id(ENDPOINT_PREFIX, name))


@router.post("/endpoints/{id}/{word}")
async def switch_endpoint(request: Request, name: EndpointId, word: str, session: Operator) -> Response:
    """Enable, disable, or send again what failed."""
    endpoint_id = _id(ENDPOINT_PREFIX, name)
    if word not in _SWITCHES:
        raise NotFound("there is no such page")

    async def do(wanted: Act) -> str:
        async with wanted.transaction() as conn:
            row = await _endpoint_of(conn, endpoint_id)
            detail, count = {}, 1
            if word == "recover":
                since_s = text_of(wanted.form, "since_s")
                if since_s not in SPANS:
                    raise InvalidRequest(f"since_s: must be one of {', '.join(SPANS)}", param="since_s")
                count = await history.recover(conn, row.tenant_id, endpoint_id, since_s=float(since_s))
                detail = {"since_s": int(since_s), "deliveries": count}
            else:
                change = EndpointChange(status="enabled" if word == "enable" else "disabled")
                by = f"by an operator: {wanted.reason}"
                await endpoints.change_endpoint(conn, row.tenant_id, endpoint_id, change, by=by)
            target = endpoint_name(endpoint_id)
            await wanted.record(conn, f"webhook_endpoint.{word}", target, tenant=row.tenant_id, **detail)
        return _SWITCHES[word] if count else "endpoint-had-nothing"

    to = f"{_PAGE}/endpoints/{endpoint_name(endpoint_id)}"
    return await act(request, session, do, to=to, refused=partial(_endpoint, request, endpoint_id))


@router.get("/deliveries/{id}")
async def delivery(request: Request, name: EndpointId, _: Viewer) -> Response:
    """One delivery with its tries."""
    return await _delivery(request, _id(DELIVERY_PREFIX, name))


@router.get("/deliveries/{id}/live")
async def delivery_live(request: Request, name: EndpointId, _: Viewer) -> Response:
    """What of it changes."""
    return page(request, "delivery_live.html", **await _values(request, _id(DELIVERY_PREFIX, name)))


@router.post("/deliveries/{id}/resend")
async def resend(request: Request, name: EndpointId, session: Operator) -> Response:
    """Send it again now, under the same webhook-id."""
    delivery_id = _id(DELIVERY_PREFIX, name)

    async def do(wanted: Act) -> str:
        async with wanted.transaction() as conn:
            story = await queries.read_delivery(conn, delivery_id)
            if story is None:
                raise _missing(delivery_id)
            await history.resend(conn, story.tenant_id, delivery_id)
            target, event = delivery_name(delivery_id), story.delivery.event_type
            await wanted.record(conn, "webhook_delivery.resend", target, tenant=story.tenant_id, event=event)
        return "delivery-resent"

    to, refused = f"{_PAGE}/deliveries/{delivery_name(delivery_id)}", partial(_delivery, request, delivery_id)
    return await act(request, session, do, to=to, refused=refused, wants_reason=False)


@router.post("/deliveries/{id}/body")
async def show_body(request: Request, name: EndpointId, session: Operator) -> Response:
    """What is sent, which may hold what only its tenant should see; the look is in the log of acts before anything is shown."""
    services, delivery_id = services_of(request), _id(DELIVERY_PREFIX, name)
    async with services.transaction() as conn:
        story, body = await queries.read_delivery(conn, delivery_id), await queries.read_body(conn, delivery_id)
        if story is None:
            raise _missing(delivery_id)
        await record_act(
            conn, session.actor, "webhook_delivery.show_body", delivery_name(delivery_id), {"tenant": story.tenant_id}
        )
    if is_htmx(request):
        return page(request, "delivery_body.html", body=body)
    return await _delivery(request, delivery_id, body=body)


async def _endpoint(request: Request, endpoint_id: UUID, problem: str = "", status: int = 200) -> Response:
    async with services_of(request).transaction() as conn:
        row = await _endpoint_of(conn, endpoint_id)
        wanted = queries.DeliverySearch(endpoint_id=endpoint_id)
        found = await queries.find_deliveries(conn, wanted, limit=queries.MOST_RECENT)
    return page(
        request, "hook.html", section="webhooks", title=endpoint_name(endpoint_id), status=status, endpoint=row, found=found,
        problem=problem, spans=list(SPANS.items()), name=endpoint_name(endpoint_id), **NAMES,
    )  # fmt: skip


async def _endpoint_of(conn: AsyncConnection, endpoint_id: UUID) -> queries.EndpointRow:
    row = await queries.read_endpoint(conn, endpoint_id)
    if row is None:
        raise NotFound(f"there is no webhook endpoint {endpoint_name(endpoint_id)}")
    return row


async def _delivery(
    request: Request, delivery_id: UUID, problem: str = "", status: int = 200, *, body: str | None = None
) -> Response:
    return page(
        request, "delivery.html", section="webhooks", title=delivery_name(delivery_id), status=status, problem=problem,
        body=body, **await _values(request, delivery_id),
    )  # fmt: skip


async def _values(request: Request, delivery_id: UUID) -> dict[str, Any]:
    async with services_of(request).transaction() as conn:
        story = await queries.read_delivery(conn, delivery_id)
    if story is None:
        raise _missing(delivery_id)
    return {"story": story, "delivery": story.delivery, "name": delivery_name(delivery_id), **NAMES}


def _missing(delivery_id: UUID) -> NotFound:
    return NotFound(f"there is no webhook delivery {delivery_name(delivery_id)}")


def _id(prefix: str, name: str) -> UUID:
    found = parse_name(prefix, name)
    if found is None:
        raise NotFound(f"there is nothing of this name: ids look like {prefix} and 32 hex digits")
    return found
