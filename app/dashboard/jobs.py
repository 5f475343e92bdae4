"""Which jobs are there? /admin/jobs: searched, filtered, newest first; a job's id leads to its page."""

from datetime import datetime

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.dashboard.access import Viewer
from app.dashboard.assets import PREFIX
from app.dashboard.listing import (
    PAGE_SIZE,
    SPAN_LABELS,
    Listing,
    id_end_of,
    listing_of,
    one_of,
    pairs_of,
    since_of,
    time_of,
    uuid_cursor,
    uuid_of,
)
from app.dashboard.pages import page
from app.dashboard.queries.jobs import JobSearch, find_jobs
from app.dashboard.queries.walk import MOST_LOOKED_AT
from app.dashboard.services import services_of
from app.db import database_now
from app.errors import InvalidRequest
from app.ids import job_name
from app.jobs.states import END_STATUSES, TIERS

STATUSES = ("queued", "running", *END_STATUSES)
_FILTERS = ("id", "tenant", "status", "tier", "model", "metadata", "since", "after", "before")

router = APIRouter(prefix="/jobs")
_PAGE = f"{PREFIX}/jobs"


@router.get("")
async def jobs(request: Request, _: Viewer) -> Response:
    """A page of jobs."""
    listing = listing_of(request, _PAGE, _FILTERS)
    problem, found = "", None
    try:
        name = listing.get("id")
        if name is not None and id_end_of(name) is None:
            return RedirectResponse(f"{_PAGE}/{job_name(uuid_of(name, 'id'))}", 303)
        async with services_of(request).transaction() as conn:
            wanted = _search(listing, await database_now(conn))
            found = await find_jobs(conn, wanted, limit=PAGE_SIZE, older_than=uuid_cursor(listing))
    except InvalidRequest as error:
        problem = error.detail
    return page(
        request, "jobs.html", section="jobs", status=422 if problem else 200, listing=listing, found=found, problem=problem,
        statuses=STATUSES, tiers=TIERS, spans=SPAN_LABELS, most=MOST_LOOKED_AT, job_name=job_name,
    )  # fmt: skip


def _search(listing: Listing, now: datetime) -> JobSearch:
    after, since = time_of(listing, "after"), since_of(listing, now)
    return JobSearch(
        tenant=listing.get("tenant"),
        status=one_of(listing, "status", STATUSES),
        tier=one_of(listing, "tier", TIERS),
        model=listing.get("model"),
        metadata=pairs_of(listing.get("metadata")),
        after=max(filter(None, (after, since)), default=None),
        before=time_of(listing, "before"),
        id_end=id_end_of(listing["id"]),
    )
