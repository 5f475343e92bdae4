"""Who changed where a tenant is told of its events? One row of the audit log an act, in the act's own transaction, without URLs' paths or secrets."""

from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.ids import endpoint_name
from app.quotas.acts import record_act
from app.webhooks.address import parse_url


async def endpoint_act(
    conn: AsyncConnection, actor: str, act: str, tenant_id: str, endpoint_id: UUID, detail: dict[str, Any]
) -> None:
    """Write down that `actor` has done this to an endpoint of the tenant's. Of a URL its origin is kept: many carry a token behind it."""
    if "url" in detail:
        # It was checked by the stricter rules already.
        detail = detail | {"url": parse_url(detail["url"], allow_local=True).origin}
    await record_act(conn, actor, f"webhook_endpoint.{act}", f"{tenant_id}/{endpoint_name(endpoint_id)}", detail)
