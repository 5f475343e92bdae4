"""Who does the work? /admin/workers: live ones with their figures, the past; drain and undrain."""

from collections.abc import Awaitable, Callable
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response

from app.dashboard.access import Operator, Viewer
from app.dashboard.assets import PREFIX
from app.dashboard.forms import read_form, text_of
from app.dashboard.job import reason_of
from app.dashboard.listing import PAGE_SIZE, Listing, listing_of, moment_of, uuid_of
from app.dashboard.pages import go, page
from app.dashboard.queries import workers as queries
from app.dashboard.queries.walk import MOST_LOOKED_AT, Page
from app.dashboard.services import services_of
from app.errors import InvalidRequest, NotFound, PenstockError
from app.ids import job_name
from app.jobs.draining import drain, undrain

router = APIRouter(prefix="/workers")
_PAGE = f"{PREFIX}/workers"
WorkerId = Annotated[str, Path(alias="id")]


@router.get("")
async def workers(request: Request, _: Viewer) -> Response:
    """Live ones, and the past by its end."""
    listing = listing_of(request, _PAGE, ())
    after = _place(listing)
    async with services_of(request).transaction() as conn:
        live = await queries.live_workers(conn)
        past = await queries.past_workers(conn, limit=PAGE_SIZE + 1, after=after)
    shown = past[:PAGE_SIZE]
    found = Page(shown, _cursor(shown[-1]) if len(past) > PAGE_SIZE else None)
    return page(
        request, "workers.html", section="workers", live=live, found=found, listing=listing, most=MOST_LOOKED_AT
    )


@router.get("/live")
async def workers_live(request: Request, _: Viewer) -> Response:
    """The live ones."""
    async with services_of(request).transaction() as conn:
        live = await queries.live_workers(conn)
    return page(request, "workers_live.html", live=live)


@router.get("/{id}")
async def worker(request: Request, name: WorkerId, _: Viewer) -> Response:
    """One life of a worker: its figures, what it runs, how its attempts ended."""
    return await _shown(request, uuid_of(name, "worker"))


@router.post("/{id}/drain")
async def drain_worker(request: Request, name: WorkerId, session: Operator) -> Response:
    """Let it claim nothing more; what it has ends as it would."""
    return await _act(request, name, session, drain, said="worker-drained")


@router.post("/{id}/undrain")
async def undrain_worker(request: Request, name: WorkerId, session: Operator) -> Response:
    """Let it claim again."""
    return await _act(request, name, session, undrain, said="worker-undrained")


async def _act(
    request: Request, name: str, session: Operator, act: Callable[..., Awaitable[bool]], *, said: str
) -> Response:
    services, incarnation, form = services_of(request), uuid_of(name, "worker"), await read_form(request)
    try:
        reason = reason_of(text_of(form, "reason"))
        async with services.transaction() as conn:
            await act(conn, incarnation, actor=session.actor, reason=reason)
    except PenstockError as error:
        return await _refused(request, incarnation, error)
    return go(request, f"{_PAGE}/{incarnation.hex}", said=said)


async def _shown(request: Request, incarnation: UUID, problem: str = "", status: int = 200) -> Response:
    async with services_of(request).transaction() as conn:
        found = await queries.read_worker(conn, incarnation)
        if found is None:
            raise NotFound(f"there is no worker {incarnation.hex}")
        jobs = await queries.jobs_of(conn, incarnation)
        outcomes = await queries.outcomes_of(conn, incarnation)
    return page(
        request, "worker.html", section="workers", title=f"Worker {incarnation.hex[:8]}", status=status, worker=found,
        jobs=jobs, outcomes=outcomes, job_name=job_name, problem=problem,
    )  # fmt: skip


async def _refused(request: Request, incarnation: UUID, error: PenstockError) -> Response:
    return await _shown(request, incarnation, error.detail, error.status)


def _cursor(row: queries.WorkerRow) -> str:
    assert row.ended_at is not None
    return f"{row.ended_at.isoformat()}~{row.incarnation.hex}"


def _place(listing: Listing) -> queries.PastPlace | None:
    if listing.cursor is None:
        return None
    ended_at, _, incarnation = listing.cursor.partition("~")
    if (at := moment_of(ended_at)) is None:
        raise InvalidRequest("cursor: isn't one that a page has given", param="cursor")
    return queries.PastPlace(at, uuid_of(incarnation, "cursor"))
