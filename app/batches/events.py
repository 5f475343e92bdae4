"""What is told of a batch? That it has ended, and how, in the transaction that ended it."""

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import database_now
from app.webhooks.outbox import Event, emit

EVENTS = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")


async def announce(
    conn: AsyncConnection, tenant_id: str, name: str, status: str, metadata: dict[str, str] | None
) -> None:
    """Write the deliveries of `batch.<status>` for the tenant's endpoints, in the caller's transaction."""
    event_type = f"batch.{status}"
    assert event_type in EVENTS
    data = {"id": name, "object": "batch", "status": status, "metadata": metadata}
    await emit(conn, [Event(tenant_id, event_type, await database_now(conn), data)])
