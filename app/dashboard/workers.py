"""Who does the work? /admin/workers: live ones with their figures, the past; drain and undrain."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.access import Operator, Viewer
from app.dashboard.acting import Act, act
from app.dashboard.assets import PREFIX
from app.dashboard.listing import PAGE_SIZE, listing_of, moment_of, uuid_of
from app.dashboard.lists import Search, list_page
from app.dashboard.pages import page
from app.dashboard.queries import workers as queries
from app.dashboard.queries.walk import Page
from app.dashboard.services import services_of
from app.errors import InvalidRequest, NotFound
from app.ids import job_name
from app.jobs.draining import drain, undrain

router = APIRouter(prefix="/workers")
_PAGE = f"{PREFIX}/workers"
WorkerId = Annotated[str, Path(alias="id")]


@router.get("")
async def workers(request: Request, _: Viewer) -> Response:
    """Live ones, and the past by its end."""
    listing = listing_of(request, _PAGE, ())
    async with services_of(request).transaction() as conn:
        live = await queries.live_workers(conn)

    def search(_: datetime) -> Search:
        after = listing.read_cursor(_place)
        return lambda conn: _past(conn, after)

    return await list_page(request, "workers.html", listing, search, section="workers", live=live)


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
    return await _switch(request, name, session, drain, "worker-drained")


@router.post("/{id}/undrain")
async def undrain_worker(request: Request, name: WorkerId, session: Operator) -> Response:
    """Let it claim again."""
    return await _switch(request, name, session, undrain, "worker-undrained")


async def _switch(
    request: Request, name: str, session: Operator, switch: Callable[..., Awaitable[bool]], said: str
) -> Response:
    incarnation = uuid_of(name, "worker")

    async def do(wanted: Act) -> str:
        async with wanted.transaction() as conn:
            await switch(conn, incarnation, actor=wanted.actor, reason=wanted.reason)
        return said

    refused = partial(_shown, request, incarnation)
    return await act(request, session, do, to=f"{_PAGE}/{incarnation.hex}", refused=refused)


async def _shown(request: Request, incarnation: UUID, problem: str = "", status: int = 200) -> Response:
    async with services_of(request).transaction() as conn:
        found = await queries.read_worker(conn, incarnation)
        if found is None:
            raise NotFound(f"there is no worker {incarnation.hex}")
        jobs = await queries.jobs_of(conn, incarnation)
        outcomes = await queries.outcomes_of(conn, incarnation)
    return page(
        request, "worker.html", section="workers", title=f"Worker …{incarnation.hex[-8:]}", status=status, worker=found,
        jobs=jobs, outcomes=outcomes, job_name=job_name, problem=problem,
    )  # fmt: skip


async def _past(conn: AsyncConnection, after: queries.PastPlace | None) -> Page[queries.WorkerRow]:
    rows = await queries.past_workers(conn, limit=PAGE_SIZE + 1, after=after)
    shown = rows[:PAGE_SIZE]
    return Page(shown, _cursor(shown[-1]) if len(rows) > PAGE_SIZE else None)


def _cursor(row: queries.WorkerRow) -> str:
    assert row.ended_at is not None
    return f"{row.ended_at.isoformat()}~{row.incarnation.hex}"


def _place(text: str, name: str) -> queries.PastPlace:
    ended_at, _, incarnation = text.partition("~")
    if (at := moment_of(ended_at)) is None:
        raise InvalidRequest(f"{name}: isn't one that a page has given", param=name)
    return queries.PastPlace(at, uuid_of(incarnation, name))
