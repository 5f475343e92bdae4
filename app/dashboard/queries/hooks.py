"""Which endpoints are there, how well are they, and what became of deliveries? Of all tenants."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, select, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.queries.walk import MOST_LOOKED_AT, Page, equal, few, walk
from app.webhooks.history import DELIVERY_COLUMNS, TRY_COLUMNS, Delivery, MadeTry, delivery_of
from app.webhooks.tables import webhook_deliveries, webhook_endpoints, webhook_tries

MOST_RECENT = 20  # deliveries that an endpoint's health is told by
_MOST_BODY_CHARS = 20_000

Health = Literal["disabled", "failing", "idle", "well"]


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """An endpoint without its secrets. `delivered`, `failed` and `pending` count its newest `MOST_RECENT` deliveries."""

    id: UUID
    tenant_id: str
    url: str
    description: str
    events: list[str] | None
    status: str
    disabled_reason: str | None
    disabled_at: datetime | None
    failing_since: datetime | None
    created_at: datetime
    delivered: int
    failed: int
    pending: int
    last_at: datetime | None

    @property
    def health(self) -> Health:
        """In a word."""
        if self.status == "disabled":
            return "disabled"
        if self.failing_since is not None:
            return "failing"
        return "well" if self.last_at is not None else "idle"


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A delivery in a list, with its newest try."""

    tenant_id: str
    delivery: Delivery
    newest: MadeTry | None


@dataclass(frozen=True, slots=True)
class DeliverySearch:
    """What is searched for; None is any."""

    tenant: str | None = None
    endpoint_id: UUID | None = None
    job_id: UUID | None = None
    status: str | None = None
    event_type: str | None = None


@dataclass(frozen=True, slots=True)
class ExcerptedTry(MadeTry):
    """A try with the beginning of an answer that wasn't 2xx, for operators."""

    excerpt: str | None


@dataclass(frozen=True, slots=True)
class DeliveryStory:
    """A delivery with all of its tries, and the size of what is sent. Its body is its tenant's: results may stand in it."""

    tenant_id: str
    delivery: Delivery
    tries: Sequence[ExcerptedTry]
    body_bytes: int
    endpoint_status: str | None


_PAGE_OF_ENDPOINTS = """
    SELECT e.id, e.tenant_id, e.url, e.description, e.events, e.status, e.disabled_reason, e.disabled_at, e.failing_since,
           e.created_at, recent.delivered, recent.failed, recent.pending, recent.last_at
    FROM (
        SELECT * FROM webhook_endpoints WHERE status <> 'deleted' {conditions} ORDER BY id DESC LIMIT :limit) e
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE status = 'delivered') AS delivered, count(*) FILTER (WHERE status = 'failed') AS failed,
               count(*) FILTER (WHERE status = 'pending') AS pending, max(created_at) AS last_at
        FROM (SELECT status, created_at FROM webhook_deliveries d WHERE d.endpoint_id = e.id ORDER BY d.id DESC LIMIT :recent)
            AS newest) recent
    ORDER BY e.id DESC
"""
_CONDITIONS = {
    "tenant": "AND tenant_id = :tenant",
    "older_than": "AND id < :older_than",
    "id": "AND id = :id",
    "disabled": "AND status = 'disabled'",
    "failing": "AND status = 'enabled' AND failing_since IS NOT NULL",
    "enabled": "AND status = 'enabled'",
}
STATES = ("enabled", "failing", "disabled")


async def list_endpoints(
    conn: AsyncConnection,
    *,
    limit: int,
    tenant: str | None = None,
    state: str | None = None,
    older_than: UUID | None = None,
) -> Page[EndpointRow]:
    """Endpoints, newest first; `state` is one of `STATES`."""
    found = await _endpoints(conn, state, tenant=tenant, older_than=older_than, limit=limit + 1)
    shown = found[:limit]
    return Page(shown, shown[-1].id if len(found) > limit else None)


async def read_endpoint(conn: AsyncConnection, endpoint_id: UUID) -> EndpointRow | None:
    """One endpoint, of whatever tenant; None where there is none such, or it was deleted."""
    found = await _endpoints(conn, None, id=endpoint_id, limit=1)
    return found[0] if found else None


async def _endpoints(conn: AsyncConnection, state: str | None, *, limit: int, **given: Any) -> list[EndpointRow]:
    values = {name: value for name, value in given.items() if value is not None}
    used = [_CONDITIONS[name] for name in values] + ([_CONDITIONS[state]] if state in STATES else [])
    query = text(_PAGE_OF_ENDPOINTS.format(conditions=" ".join(used)))
    rows = await conn.execute(query, values | {"limit": limit, "recent": MOST_RECENT})
    return [EndpointRow(*row) for row in rows]


_d, _e, _t = webhook_deliveries.c, webhook_endpoints.c, webhook_tries.c


async def find_deliveries(
    conn: AsyncConnection,
    wanted: DeliverySearch,
    *,
    limit: int,
    older_than: UUID | None = None,
    most: int = MOST_LOOKED_AT,
) -> Page[DeliveryRow]:
    """The newest deliveries that fit, from the one before `older_than` on."""
    near = select(_d.tenant_id, *DELIVERY_COLUMNS)
    if older_than is not None:
        near = near.where(_d.id < older_than)
    tenant, status = wanted.tenant, wanted.status
    bound: int | None = most
    if wanted.job_id is not None:
        near = near.where(_d.job_id == wanted.job_id)
    elif wanted.endpoint_id is not None:
        near = near.where(_d.endpoint_id == wanted.endpoint_id)
    elif tenant is not None:
        near, tenant = near.where(_d.tenant_id == tenant), None
    elif status == "failed":
        near, status = near.where(_d.status == "failed"), None
    elif status == "pending":
        due = await few(conn, near.where(_d.status == "pending"), most=most)
        if due is not None:
            near, status, bound = due, None, None
    near = near.order_by(near.selected_columns.id.desc())

    def fits(columns: Any) -> list[ColumnElement[bool]]:
        return equal(columns, tenant_id=tenant, status=status, event_type=wanted.event_type)

    page = await walk(conn, near, fits, key="id", limit=limit, most=bound)
    newest = await _newest_tries(conn, [row.id for row in page.rows])
    return page.of(lambda row: DeliveryRow(row.tenant_id, delivery_of(row[1:]), newest.get(row.id)))


async def read_delivery(conn: AsyncConnection, delivery_id: UUID) -> DeliveryStory | None:
    """One delivery, of whatever tenant; None where there is none such."""
    row = (
        await conn.execute(
            select(_d.tenant_id, text("octet_length(body)"), _e.status, *DELIVERY_COLUMNS)
            .select_from(webhook_deliveries.outerjoin(webhook_endpoints, _e.id == _d.endpoint_id))
            .where(_d.id == delivery_id)
        )
    ).one_or_none()
    if row is None:
        return None
    query = select(*TRY_COLUMNS, _t.excerpt).where(_t.delivery_id == delivery_id).order_by(_t.number)
    made: list[Any] = list(await conn.execute(query))
    return DeliveryStory(row[0], delivery_of(row[3:]), [ExcerptedTry(*each) for each in made], row[1], row[2])


async def read_body(conn: AsyncConnection, delivery_id: UUID) -> str | None:
    """What is sent, as text, at most so much of it: only for who may see results, and the look is to be written down."""
    body = await conn.scalar(select(_d.body).where(_d.id == delivery_id))
    return None if body is None else bytes(body).decode("utf-8", "replace")[:_MOST_BODY_CHARS]


async def _newest_tries(conn: AsyncConnection, delivery_ids: list[UUID]) -> dict[UUID, MadeTry]:
    if not delivery_ids:
        return {}
    query = (
        select(_t.delivery_id, *TRY_COLUMNS)
        .ext(distinct_on(_t.delivery_id))
        .where(_t.delivery_id.in_(delivery_ids))
        .order_by(_t.delivery_id, _t.number.desc())
    )
    return {row.delivery_id: MadeTry(*row[1:]) for row in await conn.execute(query)}
