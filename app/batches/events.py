"""What is told of a batch? That it has ended, and how, in the transaction that ended it."""

from sqlalchemy.ext.asyncio import AsyncConnection

EVENTS = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")


async def announce(
    conn: AsyncConnection, tenant_id: str, name: str, status: str, metadata: dict[str, str] | None
) -> None:
    """Write the deliveries of `batch.<status>`, in the caller's transaction."""
    event_type = f"batch.{status}"
    assert event_type in EVENTS
    data = {"id": name, "object": "batch", "status": status, "metadata": metadata}
    await _emit(conn, tenant_id, event_type, data)


async def _emit(conn: AsyncConnection, tenant_id: str, event_type: str, data: dict[str, object]) -> None:
    """Where the outbox will take it: a tenant has no endpoints yet."""
    del conn, tenant_id, event_type, data
