"""Who did what? /admin/audit: the log of operators' acts, newest first."""

from datetime import datetime

from fastapi import APIRouter, Request, Response

from app.dashboard.access import Viewer
from app.dashboard.assets import PREFIX
from app.dashboard.listing import PAGE_SIZE, SPAN_LABELS, listing_of, since_of, time_of
from app.dashboard.lists import Search, list_page
from app.dashboard.queries.acts import ActSearch, find_acts
from app.errors import InvalidRequest

_FILTERS = ("actor", "action", "target", "tenant", "since", "after", "before")

router = APIRouter(prefix="/audit")


@router.get("")
async def acts(request: Request, _: Viewer) -> Response:
    """A page of the log."""
    listing = listing_of(request, f"{PREFIX}/audit", _FILTERS)

    def search(now: datetime) -> Search:
        wanted = ActSearch(
            listing.get("actor"), listing.get("action"), listing.get("target"), since_of(listing, now),
            listing.read("before", time_of), listing.get("tenant"),
        )  # fmt: skip
        older_than = listing.read_cursor(_number)
        return lambda conn: find_acts(conn, wanted, limit=PAGE_SIZE, older_than=older_than)

    return await list_page(request, "acts.html", listing, search, section="audit", spans=SPAN_LABELS)


def _number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidRequest(f"{name}: isn't one that a page has given", param=name)
    return int(text)
