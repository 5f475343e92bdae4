"""Who did what? /admin/audit: the log of operators' acts, newest first."""

from fastapi import APIRouter, Request, Response

from app.dashboard.access import Viewer
from app.dashboard.assets import PREFIX
from app.dashboard.listing import PAGE_SIZE, SPAN_LABELS, Listing, listing_of, since_of, time_of
from app.dashboard.pages import page
from app.dashboard.queries.acts import ActSearch, find_acts
from app.dashboard.queries.walk import MOST_LOOKED_AT
from app.dashboard.services import services_of
from app.db import database_now
from app.errors import InvalidRequest

_FILTERS = ("actor", "action", "target", "tenant", "since", "after", "before")

router = APIRouter(prefix="/audit")


@router.get("")
async def acts(request: Request, _: Viewer) -> Response:
    """A page of the log."""
    listing = listing_of(request, f"{PREFIX}/audit", _FILTERS)
    problem, found = "", None
    try:
        async with services_of(request).transaction() as conn:
            since = since_of(listing, await database_now(conn))
            after = time_of(listing, "after")
            wanted = ActSearch(
                listing.get("actor"), listing.get("action"), listing.get("target"),
                max(filter(None, (after, since)), default=None), time_of(listing, "before"), listing.get("tenant"),
            )  # fmt: skip
            found = await find_acts(conn, wanted, limit=PAGE_SIZE, older_than=_cursor(listing))
    except InvalidRequest as error:
        problem = error.detail
    return page(
        request, "acts.html", section="audit", status=422 if problem else 200, listing=listing, found=found, problem=problem,
        spans=SPAN_LABELS, most=MOST_LOOKED_AT,
    )  # fmt: skip


def _cursor(listing: Listing) -> int | None:
    value = listing.cursor
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        raise InvalidRequest("cursor: isn't one that a page has given", param="cursor")
    return int(value)
