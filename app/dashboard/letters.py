"""Which jobs were given up, and of what? /admin/dead-letters: groups by kind of death, their letters, and all letters by state."""

from datetime import datetime

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.access import Viewer
from app.dashboard.assets import PREFIX
from app.dashboard.listing import PAGE_SIZE, listing_of, moment_of, one_of, uuid_of
from app.dashboard.lists import Search, list_page
from app.dashboard.queries.letters import MOST_COUNTED, group_of, letters_of, open_groups
from app.dashboard.queries.walk import Page
from app.dashboard.services import services_of
from app.errors import InvalidRequest, NotFound
from app.ids import job_name
from app.jobs.dead.read import Letter, LetterFilter, LetterPlace, list_letters

router = APIRouter(prefix="/dead-letters")
PATH = f"{PREFIX}/dead-letters"
STATES = ("open", "requeued", "discarded", "any")


@router.get("")
async def groups(request: Request, _: Viewer) -> Response:
    """Open letters by their kind of death, the largest group first."""
    listing = listing_of(request, PATH, ("tenant", "reason", "pool"))

    def search(_: datetime) -> Search:
        tenant, reason, pool = listing.get("tenant"), listing.get("reason"), listing.get("pool")
        return lambda conn: open_groups(conn, tenant=tenant, reason=reason, pool=pool)

    return await list_page(request, "letters.html", listing, search, section="dead-letters", most_counted=MOST_COUNTED)


@router.get("/group")
async def group(request: Request, _: Viewer) -> Response:
    """One kind of death: how often, and the letters."""
    listing = listing_of(request, f"{PATH}/group", ("fingerprint",))
    fingerprint = listing.get("fingerprint") or ""
    async with services_of(request).transaction() as conn:
        of = await group_of(conn, fingerprint)
    if of is None:
        raise NotFound("no letter of this kind is open: they were requeued or discarded")

    def search(_: datetime) -> Search:
        older_than = listing.read_cursor(uuid_of)
        return lambda conn: letters_of(conn, fingerprint, limit=PAGE_SIZE, older_than=older_than)

    return await list_page(
        request, "letter_group.html", listing, search, section="dead-letters", title="A kind of death", group=of,
        job_name=job_name, problem="",
    )  # fmt: skip


@router.get("/all")
async def letters(request: Request, _: Viewer) -> Response:
    """Letters by time of death, the resolved ones, too."""
    listing = listing_of(request, f"{PATH}/all", ("tenant", "reason", "pool", "state"))

    def search(_: datetime) -> Search:
        wanted = LetterFilter(
            state=listing.read("state", one_of(STATES)) or "any",  # type: ignore[arg-type]
            tenant=listing.get("tenant"), reason=listing.get("reason"), pool=listing.get("pool"),
        )  # fmt: skip
        after = listing.read_cursor(_place)
        return lambda conn: _page_of(conn, wanted, after)

    return await list_page(
        request, "letters_all.html", listing, search, section="dead-letters", states=STATES, job_name=job_name
    )


async def _page_of(conn: AsyncConnection, wanted: LetterFilter, after: LetterPlace | None) -> Page[Letter]:
    rows = await list_letters(conn, wanted, limit=PAGE_SIZE + 1, after=after)
    shown = rows[:PAGE_SIZE]
    return Page(shown, _cursor(shown[-1].place) if len(rows) > PAGE_SIZE else None)


def _cursor(place: LetterPlace) -> str:
    return f"{place.at.isoformat()}~{place.job_id.hex}~{place.reservation}"


def _place(text: str, name: str) -> LetterPlace:
    at, _, rest = text.partition("~")
    job_id, _, reservation = rest.partition("~")
    when = moment_of(at)
    if when is None or not (reservation.isascii() and reservation.isdigit() and len(reservation) < 10):
        raise InvalidRequest(f"{name}: isn't one that a page has given", param=name)
    return LetterPlace(when, uuid_of(job_id, name), int(reservation))
