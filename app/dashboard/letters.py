"""Which jobs were given up, and of what? /admin/dead-letters: groups by kind of death, their letters, and all letters by state."""

from fastapi import APIRouter, Request, Response

from app.dashboard.access import Viewer
from app.dashboard.assets import PREFIX
from app.dashboard.listing import PAGE_SIZE, Listing, listing_of, moment_of, one_of, uuid_cursor, uuid_of
from app.dashboard.pages import page
from app.dashboard.queries.letters import MOST_COUNTED, group_of, letters_of, open_groups
from app.dashboard.queries.walk import MOST_LOOKED_AT, Page
from app.dashboard.services import services_of
from app.errors import InvalidRequest, NotFound
from app.ids import job_name
from app.jobs.dead.read import LetterFilter, LetterPlace, list_letters

router = APIRouter(prefix="/dead-letters")
PATH = f"{PREFIX}/dead-letters"
STATES = ("open", "requeued", "discarded", "any")


@router.get("")
async def groups(request: Request, _: Viewer) -> Response:
    """Open letters by their kind of death, the largest group first."""
    listing = listing_of(request, PATH, ("tenant", "reason", "pool"))
    async with services_of(request).transaction() as conn:
        found = await open_groups(
            conn, tenant=listing.get("tenant"), reason=listing.get("reason"), pool=listing.get("pool")
        )
    return page(
        request, "letters.html", section="dead-letters", listing=listing, found=found, most_counted=MOST_COUNTED
    )


@router.get("/group")
async def group(request: Request, _: Viewer) -> Response:
    """One kind of death: how often, and the letters."""
    listing = listing_of(request, f"{PATH}/group", ("fingerprint",))
    async with services_of(request).transaction() as conn:
        of = await group_of(conn, listing["fingerprint"])
        if of is None:
            raise NotFound("no letter of this kind is open: they were requeued or discarded")
        found = await letters_of(conn, listing["fingerprint"], limit=PAGE_SIZE, older_than=uuid_cursor(listing))
    return page(
        request, "letter_group.html", section="dead-letters", title="A kind of death", listing=listing, group=of, found=found,
        job_name=job_name, most=MOST_LOOKED_AT, problem="",
    )  # fmt: skip


@router.get("/all")
async def letters(request: Request, _: Viewer) -> Response:
    """Letters by time of death, the resolved ones, too."""
    listing = listing_of(request, f"{PATH}/all", ("tenant", "reason", "pool", "state"))
    problem, found = "", None
    try:
        state = one_of(listing, "state", STATES) or "any"
        wanted = LetterFilter(
            state=state,  # type: ignore[arg-type]
            tenant=listing.get("tenant"), reason=listing.get("reason"), pool=listing.get("pool"),
        )  # fmt: skip
        after = _place(listing)
        async with services_of(request).transaction() as conn:
            rows = await list_letters(conn, wanted, limit=PAGE_SIZE + 1, after=after)
        shown = rows[:PAGE_SIZE]
        found = Page(shown, _cursor(shown[-1].place) if len(rows) > PAGE_SIZE else None)
    except InvalidRequest as error:
        problem = error.detail
    return page(
        request, "letters_all.html", section="dead-letters", status=422 if problem else 200, listing=listing, found=found,
        problem=problem, states=STATES, job_name=job_name, most=MOST_LOOKED_AT,
    )  # fmt: skip


def _cursor(place: LetterPlace) -> str:
    return f"{place.at.isoformat()}~{place.job_id.hex}~{place.reservation}"


def _place(listing: Listing) -> LetterPlace | None:
    if listing.cursor is None:
        return None
    at, _, rest = listing.cursor.partition("~")
    job_id, _, reservation = rest.partition("~")
    when = moment_of(at)
    if when is None or not (reservation.isascii() and reservation.isdigit() and len(reservation) < 10):
        raise InvalidRequest("cursor: isn't one that a page has given", param="cursor")
    return LetterPlace(when, uuid_of(job_id, "cursor"), int(reservation))
