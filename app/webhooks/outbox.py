"""What has to be told, and to whom? Delivery rows, written in the transaction that made the event true."""

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
from app.webhooks.events import RESPONSE_EVENTS, lets_through
from app.webhooks.lanes import endpoint_lane, one_off_lane
from app.webhooks.tables import webhook_deliveries

_encode = msgspec.json.Encoder().encode
_OF = """
    SELECT t.id AS tenant_id, t.webhook_secret, e.id, e.url, e.events
    FROM tenants t LEFT JOIN webhook_endpoints e ON e.tenant_id = t.id AND e.status = 'enabled'
"""
_TARGETS = text(f"{_OF} WHERE t.id = ANY(CAST(:tenants AS text[])) ORDER BY e.id")
# Who may want to be told of these jobs: for `deliveries`, asked along with something else.
TARGETS_OF_JOBS = text(
    f"{_OF} WHERE t.id IN (SELECT tenant_id FROM jobs WHERE jobs.id = ANY(CAST(:jobs AS uuid[]))) ORDER BY e.id"  # noqa: S608 - our own text
)


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
    targets = (await conn.execute(_TARGETS, {"tenants": sorted({each.tenant_id for each in events})})).all()
    return await deliver(conn, deliveries(events, targets))


def deliveries(events: Sequence[Event], targets: Sequence[Any]) -> list[dict[str, Any]]:
    """The rows of these events for `deliver`. `targets`: what TARGETS_OF_JOBS gave for their jobs."""
    secrets = {row.tenant_id: row.webhook_secret for row in targets}
    endpoints = [row for row in targets if row.id is not None]
    return [row for each in events for row in _rows(each, endpoints, key=secrets[each.tenant_id])]


async def deliver(conn: AsyncConnection, rows: Sequence[dict[str, Any]]) -> int:
    """Write rows of `deliveries`, in the caller's transaction; return how many."""
    if rows:
        await conn.execute(insert(webhook_deliveries).on_conflict_do_nothing(), list(rows))
    return len(rows)


async def listeners(conn: AsyncConnection, tenants: Collection[str], event_type: str) -> set[str]:
    """Of these tenants, those with an endpoint that wants such events."""
    if not tenants:
        return set()
    rows = await conn.execute(_TARGETS, {"tenants": sorted(tenants)})
    return {row.tenant_id for row in rows if row.id is not None and lets_through(row.events, event_type)}


def endpoint_row(event: Event, event_id: UUID, body: bytes, url: str, endpoint_id: UUID) -> dict[str, Any]:
    """The row of one event for one endpoint."""
    return _row(event, event_id, body, url, endpoint_id, endpoint_lane(event.tenant_id, url))


def encode(event: Event, event_id: UUID) -> bytes:
    """The exact bytes that will be signed, at every try and for every target."""
    return _encode(
        {
            "id": event_name(event_id),
            "object": "event",
            "type": event.type,
            # OpenAI's clients read a number in events of theirs.
            "created_at": int(event.at.timestamp()) if event.type in RESPONSE_EVENTS else event.at,
            "data": event.data,
        }
    )


def _rows(event: Event, endpoints: Sequence[Row[Any]], *, key: str) -> list[dict[str, Any]]:
    wanted = [each for each in endpoints if each.tenant_id == event.tenant_id and lets_through(each.events, event.type)]
    if event.url is None and not wanted:
        return []
    event_id = new_id()
    body = encode(event, event_id)
    rows = [endpoint_row(event, event_id, body, each.url, each.id) for each in wanted]
    if event.url is not None:
        lane = one_off_lane(event.tenant_id, event.url, key=key)
        rows.insert(0, _row(event, event_id, body, event.url, None, lane))
    return rows


def _row(event: Event, event_id: UUID, body: bytes, url: str, endpoint_id: UUID | None, lane: str) -> dict[str, Any]:
    return {
        "id": new_id(),
        "event_id": event_id,
        "tenant_id": event.tenant_id,
        "job_id": event.job_id,
        "event_type": event.type,
        "url": url,
        "endpoint_id": endpoint_id,
        "lane": lane,
        "body": body,
        "reservation": event.reservation,
        "traceparent": event.traceparent,
    }
