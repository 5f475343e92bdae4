"""Which batches are there, and how far are they? Of all tenants, newest first."""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.batches.store import COLUMNS, Batch
from app.batches.tables import batches
from app.dashboard.queries.walk import Page, equal, walk


async def list_batches(
    conn: AsyncConnection,
    *,
    limit: int,
    tenant: str | None = None,
    status: str | None = None,
    older_than: UUID | None = None,
) -> Page[Batch]:
    """The newest batches that fit, from the one before `older_than` on."""
    near = select(*COLUMNS).order_by(batches.c.id.desc())
    if tenant is not None:
        near = near.where(batches.c.tenant_id == tenant)
    if older_than is not None:
        near = near.where(batches.c.id < older_than)

    def fits(columns: Any) -> list[ColumnElement[bool]]:
        return equal(columns, status=status)

    page = await walk(conn, near, fits, key="id", limit=limit)
    return page.of(lambda row: Batch(*row))


async def read_batch(conn: AsyncConnection, batch_id: UUID) -> Batch | None:
    """One batch, of whatever tenant."""
    row = (await conn.execute(select(*COLUMNS).where(batches.c.id == batch_id))).one_or_none()
    return None if row is None else Batch(*row)
