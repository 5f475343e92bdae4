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
    uuid_of,
)
from app.dashboard.lists import Search, list_page
from app.dashboard.queries.jobs import JobSearch, find_jobs
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
    if id_end_of(listing["id"]) is None and (job_id := listing.read("id", uuid_of)) is not None:
        return RedirectResponse(f"{_PAGE}/{job_name(job_id)}", 303)

    def search(now: datetime) -> Search:
        wanted, older_than = _search(listing, now), listing.read_cursor(uuid_of)
        return lambda conn: find_jobs(conn, wanted, limit=PAGE_SIZE, older_than=older_than)

    return await list_page(
        request, "jobs.html", listing, search, section="jobs", statuses=STATUSES, tiers=TIERS, spans=SPAN_LABELS,
        job_name=job_name,
    )  # fmt: skip


def _search(listing: Listing, now: datetime) -> JobSearch:
    return JobSearch(
        tenant=listing.get("tenant"),
        status=listing.read("status", one_of(STATUSES)),
        tier=listing.read("tier", one_of(TIERS)),
        model=listing.get("model"),
        metadata=listing.read("metadata", pairs_of),
        after=since_of(listing, now),
        before=listing.read("before", time_of),
        id_end=id_end_of(listing["id"]),
    )
