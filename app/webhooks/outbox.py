"""What has to be told? Delivery rows, written in the transaction that made the event true."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.ids import new_id
from app.webhooks.tables import webhook_deliveries


@dataclass(frozen=True, slots=True)
class Notice:
    """One event for one target. `data` is what the receiver gets, beside the event's own id, type and time."""

    tenant_id: str
    job_id: UUID | None  # None: it is about no job's life
    event_type: str
    url: str
    at: str  # RFC 3339
    data: dict[str, Any]
    reservation: int = 1  # which of the job's lives it tells of


def wants(webhook: dict[str, Any] | None, event_type: str) -> bool:
    """Whether a job's webhook asked for this event; without a list it gets all ends, not the start."""
    if not webhook:
        return False
    events = webhook.get("events")
    return event_type in events if events else event_type != "job.started"


async def write_notices(conn: AsyncConnection, notices: Sequence[Notice]) -> None:
    """Write the deliveries, in the caller's transaction. The same event of a life of a job is told to a target once."""
    if not notices:
        return
    rows = []
    for each in notices:
        delivery_id = new_id()
        # The exact bytes that will be signed, at every try.
        body = msgspec.json.encode(
            {
                "id": f"evt_{delivery_id.hex}",
                "object": "event",
                "type": each.event_type,
                "created_at": each.at,
                "data": each.data,
            }
        )
        rows.append(
            {
                "id": delivery_id,
                "tenant_id": each.tenant_id,
                "job_id": each.job_id,
                "event_type": each.event_type,
                "url": each.url,
                "body": body,
                "reservation": each.reservation,
            }
        )
    await conn.execute(insert(webhook_deliveries).on_conflict_do_nothing(), rows)
