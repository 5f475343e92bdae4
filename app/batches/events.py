"""What is told of a batch? Each of its states, in the transaction that brought it there."""

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import database_now
from app.webhooks.events import BATCH_EVENTS
from app.webhooks.outbox import Event, emit


async def announce(
    conn: AsyncConnection, tenant_id: str, name: str, status: str, metadata: dict[str, str] | None
) -> None:
    """Write the deliveries of `batch.<status>` for the tenant's endpoints, in the caller's transaction."""
    event_type = f"batch.{status}"
    assert event_type in BATCH_EVENTS
    data = {"id": name, "object": "batch", "status": status, "metadata": metadata}
    await emit(conn, [Event(tenant_id, event_type, await database_now(conn), data)])
