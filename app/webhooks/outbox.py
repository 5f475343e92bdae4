"""What has to be told, and to whom? Delivery rows, written in the transaction that made the event true."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Row, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.ids import event_name, new_id
from app.webhooks.events import lets_through
from app.webhooks.tables import webhook_deliveries

_encode = msgspec.json.Encoder().encode
_ORIGIN = re.compile(r"[^/]*//[^/?#]*")
_ENABLED = text("""
    SELECT id, tenant_id, url, events FROM webhook_endpoints
    WHERE tenant_id = ANY(CAST(:tenants AS text[])) AND status = 'enabled' ORDER BY id
""")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that came true for a tenant. `data` is what receivers get, beside the event's own id, type and time.

    It goes to the tenant's endpoints that want it; and to `url`, which a job brought along, if there is one. Times in `data` may be
    `datetime`s: they are written in UTC with a Z.
    """

    tenant_id: str
    type: str
    at: datetime
    data: dict[str, Any]
    job_id: UUID | None = None  # None: it is about no job's life
    url: str | None = None
    reservation: int = 1  # which of the job's lives it tells of
    traceparent: str | None = None  # of the job


async def emit(conn: AsyncConnection, events: Sequence[Event]) -> int:
    """Write the deliveries of these events, in the caller's transaction; return how many.

    An event of a life of a job is told to a target once, however often it is emitted. One that nobody wants leaves no row.
    """
    if not events:
        return 0
    endpoints = (await conn.execute(_ENABLED, {"tenants": sorted({each.tenant_id for each in events})})).all()
    rows = [row for each in events for row in _rows(each, endpoints)]
    if rows:
        await conn.execute(insert(webhook_deliveries).on_conflict_do_nothing(), rows)
    return len(rows)


async def listeners(conn: AsyncConnection, tenants: Collection[str], event_type: str) -> set[str]:
    """Of these tenants, those with an endpoint that wants such events."""
    if not tenants:
        return set()
    rows = await conn.execute(_ENABLED, {"tenants": sorted(tenants)})
    return {row.tenant_id for row in rows if lets_through(row.events, event_type)}


def delivery_row(event: Event, event_id: UUID, body: bytes, url: str, endpoint_id: UUID | None) -> dict[str, Any]:
    """The row of one event for one target."""
    return {
        "id": new_id(),
        "event_id": event_id,
        "tenant_id": event.tenant_id,
        "job_id": event.job_id,
        "event_type": event.type,
        "url": url,
        "endpoint_id": endpoint_id,
        "lane": lane_of(event.tenant_id, url),
        "body": body,
        "reservation": event.reservation,
        "traceparent": event.traceparent,
    }


def encode(event: Event, event_id: UUID) -> bytes:
    """The exact bytes that will be signed, at every try and for every target."""
    return _encode(
        {
            "id": event_name(event_id),
            "object": "event",
            "type": event.type,
            "created_at": event.at,
            "data": event.data,
        }
    )


def lane_of(tenant_id: str, url: str) -> str:
    """What has a limit of its own: one tenant's deliveries to one server."""
    origin = _ORIGIN.match(url)
    return f"{tenant_id} {origin[0].lower() if origin else url}"


def _rows(event: Event, endpoints: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    targets: list[tuple[str, UUID | None]] = [] if event.url is None else [(event.url, None)]
    targets += [
        (row.url, row.id)
        for row in endpoints
        if row.tenant_id == event.tenant_id and lets_through(row.events, event.type)
    ]
    if not targets:
        return []
    event_id = new_id()
    body = encode(event, event_id)
    return [delivery_row(event, event_id, body, url, endpoint_id) for url, endpoint_id in targets]
