"""Who are the tenants, and what may each have? Made, read, changed, suspended and resumed; each act is written down."""

import base64
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import AlreadyExists, InvalidRequest, NotFound
from app.quotas.acts import record_act
from app.quotas.tables import tenants
from app.quotas.wanted import TenantChange, TenantWanted
from app.seen import Seen, refuse_unless_seen, version_of

State = Literal["active", "suspended", "any"]


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant without its secret; None is no limit. Units and meanings: app/quotas/wanted.py."""

    id: str
    display_name: str
    weight: int
    tiers: list[str]
    max_running_jobs: int | None
    max_queued_jobs: int | None
    max_queued_tokens: int | None
    max_prompt_tokens: int | None
    max_output_tokens: int | None
    requests_per_minute: int | None
    request_burst: int | None
    tokens_per_minute: int | None
    token_burst: int | None
    share_identical_s: int | None
    bill_shared: bool
    retention_days: int | None
    content_retention_s: int | None
    suspended_at: datetime | None
    created_at: datetime

    @property
    def version(self) -> str:
        """Of all that `change_tenant` may change."""
        return version_of(*(getattr(self, name) for name in TenantChange.model_fields))


_COLUMNS = [tenants.c[name] for name in Tenant.__slots__]


async def create_tenant(
    conn: AsyncConnection, wanted: TenantWanted, *, actor: str, reason: str | None = None
) -> Tenant:
    """Make a tenant, with a webhook secret of its own.

    Raises:
        AlreadyExists: there is one of this id.
    """
    values = wanted.model_dump()
    row = (
        await conn.execute(
            upsert(tenants)
            .values(**values, webhook_secret="whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
            .on_conflict_do_nothing()
            .returning(*_COLUMNS)
        )
    ).one_or_none()
    if row is None:
        raise AlreadyExists(f"id: there is a tenant {wanted.id!r} already: change it instead", param="id")
    await record_act(conn, actor, "tenant.create", wanted.id, {**wanted.given(), "id": wanted.id}, reason=reason)
    return Tenant(*row)


async def read_tenant(conn: AsyncConnection, tenant_id: str) -> Tenant:
    """The tenant.

    Raises:
        NotFound: there is none of this id.
    """
    return await _read(conn, tenant_id, locked=False)


async def list_tenants(
    conn: AsyncConnection, *, limit: int, after: str | None = None, state: State = "any"
) -> list[Tenant]:
    """Tenants by id, those that come after `after`."""
    query = select(*_COLUMNS).order_by(tenants.c.id).limit(limit)
    if after is not None:
        query = query.where(tenants.c.id > after)
    if state != "any":
        is_suspended = tenants.c.suspended_at.is_not(None)
        query = query.where(is_suspended if state == "suspended" else ~is_suspended)
    return [Tenant(*row) for row in await conn.execute(query)]


async def change_tenant(
    conn: AsyncConnection,
    tenant_id: str,
    change: TenantChange,
    *,
    actor: str,
    seen: Seen = None,
    reason: str | None = None,
) -> Tenant:
    """Change what is given. A cap that is now below what waits takes nothing back: nothing more is accepted until there is room.

    `seen`: the `version` that whoever changes it has seen.

    Raises:
        NotFound: there is no such tenant.
        ChangedMeanwhile: it isn't what was seen.
        InvalidRequest: nothing is given.
    """
    given = change.given()
    if not given:
        raise InvalidRequest("name at least one field that shall be different", errors=[])
    before = await _read(conn, tenant_id, locked=True)
    changed = {name: value for name, value in given.items() if value != getattr(before, name)}
    if not changed:
        return before
    refuse_unless_seen(seen, before.version, {name: getattr(before, name) for name in changed})
    after = await _write(conn, tenant_id, changed)
    await record_act(
        conn,
        actor,
        "tenant.change",
        tenant_id,
        {name: [getattr(before, name), changed[name]] for name in changed},
        reason=reason,
    )
    return after


async def suspend_tenant(conn: AsyncConnection, tenant_id: str, *, actor: str, reason: str) -> Tenant:
    """Take no new jobs of this tenant; those that were accepted run on. Again changes nothing.

    Raises:
        NotFound: there is no such tenant.
    """
    before = await _read(conn, tenant_id, locked=True)
    if before.suspended_at is not None:
        return before
    after = await _write(conn, tenant_id, {"suspended_at": text("statement_timestamp()")})
    await record_act(conn, actor, "tenant.suspend", tenant_id, {"reason": reason})
    return after


async def resume_tenant(conn: AsyncConnection, tenant_id: str, *, actor: str, reason: str) -> Tenant:
    """Take its jobs again. Again changes nothing.

    Raises:
        NotFound: there is no such tenant.
    """
    before = await _read(conn, tenant_id, locked=True)
    if before.suspended_at is None:
        return before
    after = await _write(conn, tenant_id, {"suspended_at": None})
    await record_act(conn, actor, "tenant.resume", tenant_id, {"reason": reason})
    return after


async def _read(conn: AsyncConnection, tenant_id: str, *, locked: bool) -> Tenant:
    query = select(*_COLUMNS).where(tenants.c.id == tenant_id)
    row = (await conn.execute(query.with_for_update(key_share=True) if locked else query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no tenant {tenant_id!r}")
    return Tenant(*row)


async def _write(conn: AsyncConnection, tenant_id: str, values: dict[str, Any]) -> Tenant:
    return Tenant(
        *(
            await conn.execute(update(tenants).where(tenants.c.id == tenant_id).values(**values).returning(*_COLUMNS))
        ).one()
    )
