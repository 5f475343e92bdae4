"""What became of a tenant's deliveries, and how is one sent again? Every try is kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import NotFound
from app.ids import delivery_name
from app.webhooks.endpoints import check_enabled, read_endpoint
from app.webhooks.tables import webhook_deliveries, webhook_tries

STATUSES = ("pending", "delivered", "failed")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one target. `next_try_at` is when it is due, or looked at again while a try is under way; None at its end."""

    id: UUID
    event_id: UUID
    event_type: str
    job_id: UUID | None
    endpoint_id: UUID | None
    url: str
    status: str
    tries: int
    error: str | None
    next_try_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class MadeTry:
    """One try. Both `http_status` and `error` are None while it is under way, or if its worker was lost."""

    number: int
    at: datetime
    http_status: int | None
    error: str | None
    duration_ms: int | None


@dataclass(frozen=True, slots=True)
class Story:
    """A delivery with its tries and the bytes that are sent."""

    delivery: Delivery
    tries: Sequence[MadeTry]
    body: bytes


@dataclass(frozen=True, slots=True)
class Which:
    """The deliveries that are asked for; None: any."""

    endpoint_id: UUID | None = None
    job_id: UUID | None = None
    status: str | None = None
    event_type: str | None = None


_d = webhook_deliveries.c
DELIVERY_COLUMNS: list[ColumnElement[Any]] = [_d[name] for name in Delivery.__slots__]  # for `delivery_of`
TRY_COLUMNS: list[ColumnElement[Any]] = [webhook_tries.c[name] for name in MadeTry.__slots__]
# Its tries so far don't count any more, they are only kept. What is under way stays so: whoever is at it says what came of it.
_AGAIN = """
    UPDATE webhook_deliveries d
    SET status = 'pending', next_try_at = statement_timestamp(), ended_at = NULL, error = NULL, sent_before = d.tries,
        leased_until = NULL, handed_until = NULL
    FROM (
        SELECT id FROM webhook_deliveries
        WHERE {which} AND (leased_until IS NULL OR leased_until <= statement_timestamp())
        ORDER BY id LIMIT :most FOR UPDATE) again
    WHERE d.id = again.id
"""
# A try failed, and the next one isn't due: a receiver that is well again needn't be waited for.
_WAITS_AFTER_A_TRY = (
    "(status = 'pending' AND tries > sent_before AND handed_until IS NULL AND next_try_at > statement_timestamp())"
)
_RESEND = text(_AGAIN.format(which="id = :id AND tenant_id = :tenant"))
_RECOVER = text(
    _AGAIN.format(
        which="endpoint_id = :endpoint AND tenant_id = :tenant "
        f"AND (status = 'failed' OR {_WAITS_AFTER_A_TRY}) "
        "AND created_at > statement_timestamp() - make_interval(secs => :since_s)"
    )
)
MAX_RECOVERED = 10_000  # at once


async def list_deliveries(
    conn: AsyncConnection, tenant_id: str, which: Which, *, limit: int, before: UUID | None = None
) -> list[Delivery]:
    """The tenant's deliveries that fit, newest first, those that come before `before`."""
    query = select(*DELIVERY_COLUMNS).where(_d.tenant_id == tenant_id).order_by(_d.id.desc()).limit(limit)
    for column, value in (
        (_d.endpoint_id, which.endpoint_id),
        (_d.job_id, which.job_id),
        (_d.status, which.status),
        (_d.event_type, which.event_type),
    ):
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(_d.id < before)
    return [delivery_of(row) for row in await conn.execute(query)]


async def read_delivery(conn: AsyncConnection, tenant_id: str, delivery_id: UUID) -> Story:
    """One of the tenant's deliveries.

    Raises:
        NotFound: it has none such.
    """
    query = select(*DELIVERY_COLUMNS, _d.body).where(_d.id == delivery_id, _d.tenant_id == tenant_id)
    row = (await conn.execute(query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no webhook delivery {delivery_name(delivery_id)}")
    t = webhook_tries.c
    made = await conn.execute(select(*TRY_COLUMNS).where(t.delivery_id == delivery_id).order_by(t.number))
    return Story(delivery_of(row[:-1]), [MadeTry(*each) for each in made], bytes(row.body))


async def resend(conn: AsyncConnection, tenant_id: str, delivery_id: UUID) -> Story:
    """Send it now, whatever became of it, with the schedule from its beginning; under the same webhook-id. While a try is under way,
    nothing changes.

    Raises:
        NotFound: the tenant has no such delivery, or its endpoint was deleted.
        EndpointDisabled: nothing is sent to its endpoint.
    """
    story = await read_delivery(conn, tenant_id, delivery_id)
    if story.delivery.endpoint_id is not None:
        check_enabled(await read_endpoint(conn, tenant_id, story.delivery.endpoint_id))
    await conn.execute(_RESEND, {"id": delivery_id, "tenant": tenant_id, "most": 1})
    return await read_delivery(conn, tenant_id, delivery_id)


async def recover(conn: AsyncConnection, tenant_id: str, endpoint_id: UUID, *, since_s: float) -> int:
    """Send again now what failed for this endpoint, of the last `since_s` seconds, and what waits for its next try after one that
    failed; at most `MAX_RECOVERED` at once. Return how many.

    Raises:
        NotFound: the tenant has no such endpoint.
        EndpointDisabled: nothing is sent to it.
    """
    check_enabled(await read_endpoint(conn, tenant_id, endpoint_id))
    done = await conn.execute(
        _RECOVER, {"endpoint": endpoint_id, "tenant": tenant_id, "since_s": since_s, "most": MAX_RECOVERED}
    )
    return done.rowcount


def delivery_of(row: Sequence[Any]) -> Delivery:
    """The delivery of a row of `DELIVERY_COLUMNS`."""
    delivery = Delivery(*row)
    if delivery.status == "pending":
        return delivery
    return replace(delivery, next_try_at=None)
