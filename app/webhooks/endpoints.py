"""Where does a tenant want to be told of its events? Endpoints: made, changed, rotated, pinged, deleted."""

import base64
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, case, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import InvalidRequest, NotFound, PenstockError
from app.ids import endpoint_name, new_id
from app.seen import Seen, refuse_unless_seen, version_of
from app.webhooks.delivery import close_disabled
from app.webhooks.events import PING_EVENT
from app.webhooks.lanes import endpoint_lane
from app.webhooks.outbox import Event, encode, endpoint_row
from app.webhooks.tables import webhook_deliveries, webhook_endpoints
from app.webhooks.wanted import MAX_ENDPOINTS, EndpointChange, EndpointWanted

BY_OWNER = "by its owner"
_MAX_SAME_LOCK = 0x7765_6570


class EndpointDisabled(PenstockError):
    """The endpoint is disabled, so that nothing is sent to it; `disabled_reason` says why. Enable it first."""

    code = "webhook_endpoint_disabled"
    status = 409
    retryable = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint without its secrets. `old_until`: until then tries are signed with the secret before the last rotation, too."""

    id: UUID
    url: str
    description: str
    events: list[str] | None
    status: Literal["enabled", "disabled"]
    disabled_reason: str | None
    disabled_at: datetime | None
    failing_since: datetime | None
    old_until: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def version(self) -> str:
        """Of all that `change_endpoint` may change."""
        return version_of(*(getattr(self, name) for name in EndpointChange.model_fields))


@dataclass(frozen=True, slots=True)
class FreshEndpoint:
    """An endpoint with its new secret, the only time."""

    endpoint: Endpoint
    secret: str


_e = webhook_endpoints.c
_NOW = func.statement_timestamp()
_COLUMNS: list[ColumnElement[Any]] = [
    case((_e.old_until > _NOW, _e.old_until)) if name == "old_until" else _e[name] for name in Endpoint.__slots__
]


def new_secret() -> str:
    """A secret as Standard Webhooks wants it: `whsec_` and base64, of 32 random bytes."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


async def create_endpoint(conn: AsyncConnection, tenant_id: str, wanted: EndpointWanted) -> FreshEndpoint:
    """Make an endpoint; it is told of what comes true from now on. Its URL has been checked.

    Raises:
        InvalidRequest: the tenant has as many as it may.
    """
    await conn.execute(
        text("SELECT pg_advisory_xact_lock(:space, hashtext(:tenant))"), {"space": _MAX_SAME_LOCK, "tenant": tenant_id}
    )
    count = await conn.scalar(select(func.count()).where(_e.tenant_id == tenant_id, _e.status != "deleted"))
    if (count or 0) >= MAX_ENDPOINTS:
        raise InvalidRequest(
            f"a tenant may have {MAX_ENDPOINTS} endpoints, and this one does: delete one first, or change it",
            param="url", limit=MAX_ENDPOINTS,
        )  # fmt: skip
    secret = new_secret()
    values = {"id": new_id(), "tenant_id": tenant_id, "secret": secret, **wanted.model_dump()}
    made = await conn.execute(insert(webhook_endpoints).values(**values).returning(*_COLUMNS))
    return FreshEndpoint(Endpoint(*made.one()), secret)


async def read_endpoint(conn: AsyncConnection, tenant_id: str, endpoint_id: UUID) -> Endpoint:
    """One of the tenant's endpoints.

    Raises:
        NotFound: it has none such.
    """
    found = (await conn.execute(select(*_COLUMNS).where(*_own(tenant_id, endpoint_id)))).one_or_none()
    return _there(found, endpoint_id)


async def _locked(conn: AsyncConnection, tenant_id: str, endpoint_id: UUID) -> Endpoint:
    query = select(*_COLUMNS).where(*_own(tenant_id, endpoint_id)).with_for_update()
    return _there((await conn.execute(query)).one_or_none(), endpoint_id)


async def list_endpoints(
    conn: AsyncConnection, tenant_id: str, *, limit: int, after: UUID | None = None
) -> list[Endpoint]:
    """The tenant's endpoints, oldest first, those that come after `after`."""
    query = select(*_COLUMNS).where(_e.tenant_id == tenant_id, _e.status != "deleted").order_by(_e.id).limit(limit)
    if after is not None:
        query = query.where(_e.id > after)
    return [Endpoint(*row) for row in await conn.execute(query)]


async def change_endpoint(
    conn: AsyncConnection, tenant_id: str, endpoint_id: UUID, change: EndpointChange, *, by: str = BY_OWNER,
    seen: Seen = None,
) -> Endpoint:  # fmt: skip
    """Change what is given. What waits for it goes to the new URL; disabling gives up what waits, and `by` says who did it.

    `seen`: the `version` that whoever changes it has seen.

    Raises:
        NotFound: the tenant has no such endpoint.
        ChangedMeanwhile: it isn't what was seen.
    """
    if seen is not None:
        before = await _locked(conn, tenant_id, endpoint_id)
        now = {name: getattr(before, name) for name, value in change.given().items() if value != getattr(before, name)}
        if now:
            refuse_unless_seen(seen, before.version, now)
    values: dict[str, Any] = change.given() | {"updated_at": _NOW}
    if change.given().get("status") == "disabled":
        values |= {
            "disabled_reason": func.coalesce(_e.disabled_reason, by),
            "disabled_at": func.coalesce(_e.disabled_at, _NOW),
        }
    elif "status" in change.given():
        values |= {"disabled_reason": None, "disabled_at": None, "failing_since": None}
    if "url" in change.given():  # how the old one did says nothing of the new one
        values["failing_since"] = case((_e.url == change.given()["url"], values.get("failing_since", _e.failing_since)))
    statement = update(webhook_endpoints).where(*_own(tenant_id, endpoint_id)).values(**values).returning(*_COLUMNS)
    changed = _there((await conn.execute(statement)).one_or_none(), endpoint_id)
    if "url" in change.given():
        await _move(conn, tenant_id, changed)
    await close_disabled(conn, [endpoint_id])
    return changed


async def rotate_secret(conn: AsyncConnection, tenant_id: str, endpoint_id: UUID, *, overlap_s: float) -> FreshEndpoint:
    """Give the endpoint a new secret. For `overlap_s` tries carry signatures by both; one that was left of an earlier rotation ends.

    Raises:
        NotFound: the tenant has no such endpoint.
    """
    secret = new_secret()
    overlaps = overlap_s > 0
    statement = (
        update(webhook_endpoints)
        .where(*_own(tenant_id, endpoint_id))
        .values(
            secret=secret,
            old_secret=_e.secret if overlaps else None,
            old_until=_NOW + func.make_interval(0, 0, 0, 0, 0, 0, overlap_s) if overlaps else None,
        )
        .returning(*_COLUMNS)
    )
    return FreshEndpoint(_there((await conn.execute(statement)).one_or_none(), endpoint_id), secret)


async def delete_endpoint(conn: AsyncConnection, tenant_id: str, endpoint_id: UUID, *, seen: Seen = None) -> None:
    """End an endpoint and forget its secrets; its history stays. What waits for it is given up.

    `seen`: the `version` that whoever deletes it has seen.

    Raises:
        NotFound: the tenant has no such endpoint.
        ChangedMeanwhile: it isn't what was seen.
    """
    if seen is not None:
        before = await _locked(conn, tenant_id, endpoint_id)
        refuse_unless_seen(seen, before.version, {"status": before.status, "url": before.url})
    statement = (
        update(webhook_endpoints)
        .where(*_own(tenant_id, endpoint_id))
        .values(status="deleted", secret="", old_secret=None, old_until=None, updated_at=_NOW, disabled_reason=None)
        .returning(_e.id)
    )
    if await conn.scalar(statement) is None:
        raise _missing(endpoint_id)
    await close_disabled(conn, [endpoint_id])


async def ping(conn: AsyncConnection, tenant_id: str, endpoint_id: UUID) -> UUID:
    """Send the endpoint a `webhook.ping`, whatever its filter; return the delivery's id, where one can see what became of it.

    Raises:
        NotFound: the tenant has no such endpoint.
        EndpointDisabled: nothing is sent to it.
    """
    endpoint = await read_endpoint(conn, tenant_id, endpoint_id)
    check_enabled(endpoint)
    at = await conn.scalar(select(func.now()))
    assert isinstance(at, datetime)
    data = {"object": "webhook_endpoint", "id": endpoint_name(endpoint.id), "url": endpoint.url}
    event = Event(tenant_id, PING_EVENT, at, data)
    event_id = new_id()
    row = endpoint_row(event, event_id, encode(event, event_id), endpoint.url, endpoint.id)
    await conn.execute(insert(webhook_deliveries).values(**row))
    found: UUID = row["id"]
    return found


def check_enabled(endpoint: Endpoint) -> None:
    """Raises:
    EndpointDisabled: nothing is sent to it.
    """
    if endpoint.status != "enabled":
        raise EndpointDisabled(
            f"{endpoint_name(endpoint.id)} is disabled ({endpoint.disabled_reason}): enable it first",
            disabled_reason=endpoint.disabled_reason,
        )


async def _move(conn: AsyncConnection, tenant_id: str, endpoint: Endpoint) -> None:
    """Send what waits to where the endpoint is now. A job's event can't be there twice: one endpoint has one URL at a time."""
    await conn.execute(
        text("""
            UPDATE webhook_deliveries SET url = :url, lane = :lane
            WHERE id IN (SELECT id FROM webhook_deliveries WHERE endpoint_id = :id AND status = 'pending' ORDER BY id FOR UPDATE)
        """),
        {"id": endpoint.id, "url": endpoint.url, "lane": endpoint_lane(tenant_id, endpoint.url)},
    )


def _own(tenant_id: str, endpoint_id: UUID) -> list[ColumnElement[bool]]:
    return [_e.tenant_id == tenant_id, _e.id == endpoint_id, _e.status != "deleted"]


def _there(found: Any, endpoint_id: UUID) -> Endpoint:
    if found is None:
        raise _missing(endpoint_id)
    return Endpoint(*found)


def _missing(endpoint_id: UUID) -> NotFound:
    return NotFound(f"there is no webhook endpoint {endpoint_name(endpoint_id)}")
