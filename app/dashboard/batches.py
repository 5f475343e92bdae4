"""How far are the batches? /admin/batches: progress and ETA; cancel, another tier, another deadline."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.batches import store
from app.batches.store import ACTIVE, BatchChange, batch_id_of, batch_name
from app.dashboard.access import Operator, Viewer
from app.dashboard.acting import Act, act
from app.dashboard.assets import PREFIX
from app.dashboard.forms import Form, text_of, tier_of, whole_of
from app.dashboard.listing import PAGE_SIZE, listing_of, one_of, uuid_of
from app.dashboard.lists import Search, list_page
from app.dashboard.pages import page
from app.dashboard.queries.batches import list_batches, read_batch
from app.dashboard.services import services_of
from app.errors import InvalidRequest, NotFound
from app.jobs.states import TIERS
from app.jobs.submit import Caller
from app.quotas.rights import RIGHT_COLUMNS, Rights, read_rights
from app.quotas.tables import tenants

STATUSES = ("validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")

router = APIRouter(prefix="/batches")
_PAGE = f"{PREFIX}/batches"
BatchId = Annotated[str, Path(alias="id")]


@router.get("")
async def batches(request: Request, _: Viewer) -> Response:
    """Batches of all tenants, newest first."""
    listing = listing_of(request, _PAGE, ("tenant", "status"))

    def search(_: datetime) -> Search:
        tenant, status = listing.get("tenant"), listing.read("status", one_of(STATUSES))
        older_than = listing.read_cursor(uuid_of)
        return lambda conn: list_batches(conn, limit=PAGE_SIZE, tenant=tenant, status=status, older_than=older_than)

    return await list_page(
        request, "batches.html", listing, search, section="batches", statuses=STATUSES, batch_name=batch_name,
        now=datetime.now(UTC),
    )  # fmt: skip


@router.get("/{id}")
async def batch(request: Request, name: BatchId, _: Viewer) -> Response:
    """One batch."""
    return await _shown(request, batch_id_of(name))


@router.get("/{id}/live")
async def batch_live(request: Request, name: BatchId, _: Viewer) -> Response:
    """What of it changes."""
    return page(request, "batch_live.html", **await _values(request, batch_id_of(name)))


@router.post("/{id}/cancel")
async def cancel_batch(request: Request, name: BatchId, session: Operator) -> Response:
    """Ask for its end; lines that have a result keep it."""
    batch_id = batch_id_of(name)

    async def do(wanted: Act) -> str:
        async with wanted.transaction() as conn:
            before = await _of(conn, batch_id)
            await store.cancel_batch(conn, before.tenant_id, batch_id)
            if before.status not in {"cancelling", "cancelled"}:
                await wanted.record(conn, "batch.cancel", batch_name(batch_id), tenant=before.tenant_id)
        return "batch-cancelling"

    return await act(request, session, do, to=_path(batch_id), refused=partial(_shown, request, batch_id))


@router.post("/{id}/change")
async def change_batch(request: Request, name: BatchId, session: Operator) -> Response:
    """Another tier, or another deadline."""
    batch_id = batch_id_of(name)

    async def do(wanted: Act) -> str:
        change = _change(wanted.form)
        async with wanted.transaction() as conn:
            before = await _of(conn, batch_id)
            caller = Caller(before.tenant_id, None, rights=await _rights(conn, before.tenant_id))
            most_s = wanted.services.settings.max_batch_window_s
            after = await store.change_batch(conn, caller, batch_id, change, most_s=most_s)
            await wanted.record(
                conn, "batch.change", batch_name(batch_id), tenant=before.tenant_id, tier=[before.tier, after.tier],
                expires_at=[before.expires_at.isoformat(), after.expires_at.isoformat()],
            )  # fmt: skip
        return "batch-changed"

    return await act(request, session, do, to=_path(batch_id), refused=partial(_shown, request, batch_id))


def _change(form: Form) -> BatchChange:
    tier = tier_of(form) if text_of(form, "tier") else None
    hours = whole_of(form, "deadline_h")
    if hours is not None and hours < 1:
        raise InvalidRequest("deadline_h: must be at least 1", param="deadline_h")
    if tier is None and hours is None:
        raise InvalidRequest("tier: choose another tier, or another deadline", param="tier")
    return BatchChange(tier=tier, deadline_s=None if hours is None else hours * 3600.0)


def _path(batch_id: UUID) -> str:
    return f"{_PAGE}/{batch_name(batch_id)}"


async def _of(conn: AsyncConnection, batch_id: UUID) -> store.Batch:
    found = await read_batch(conn, batch_id)
    if found is None:
        raise NotFound(f"there is no batch {batch_name(batch_id)}")
    return found


async def _rights(conn: AsyncConnection, tenant_id: str) -> Rights:
    row = (await conn.execute(select(*RIGHT_COLUMNS).where(tenants.c.id == tenant_id))).one()
    return read_rights(row)


async def _values(request: Request, batch_id: UUID) -> dict[str, Any]:
    async with services_of(request).transaction() as conn:
        found = await _of(conn, batch_id)
    return {
        "batch": found, "name": batch_name(batch_id), "now": datetime.now(UTC),
        "is_active": found.status in ACTIVE, "can_change": found.status in {"validating", "in_progress"},
    }  # fmt: skip


async def _shown(request: Request, batch_id: UUID, problem: str = "", status: int = 200) -> Response:
    return page(
        request, "batch.html", section="batches", title=batch_name(batch_id), status=status, problem=problem,
        tiers=[("", "as it is"), *TIERS], **await _values(request, batch_id),
    )  # fmt: skip
