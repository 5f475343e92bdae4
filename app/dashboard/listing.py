"""Which part of a long list does a URL ask for? Filters and a cursor, read strictly; and the URLs of the pages beside it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode
from uuid import UUID

from starlette.requests import Request

from app.errors import InvalidRequest

PAGE_SIZE = 50
MAX_FILTER_CHARS = 300
YEARS = range(1970, 9000)
SPANS = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
SPAN_LABELS = [
    ("", "any time"), ("15m", "last 15 minutes"), ("1h", "last hour"), ("1d", "last day"), ("7d", "last 7 days"),
    ("30d", "last 30 days"),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listing:
    """What a URL says. `filters` are the fields that aren't empty; `path` is the page's, with its prefix."""

    path: str
    filters: Mapping[str, str]
    cursor: str | None

    def __getitem__(self, name: str) -> str:
        """A filter's text, empty where it isn't given: for the form to show."""
        return self.filters.get(name, "")

    def get(self, name: str) -> str | None:
        """A filter's text; None is any."""
        return self.filters.get(name)

    def url(self, cursor: object = None) -> str:
        """The same filters from `cursor` on; from the beginning without it."""
        query = dict(self.filters) | ({"cursor": str(cursor)} if cursor is not None else {})
        return f"{self.path}?{urlencode(query)}" if query else self.path

    @property
    def first(self) -> str | None:
        """The URL of the first page, where this isn't it."""
        return self.url() if self.cursor is not None else None


def listing_of(request: Request, path: str, names: Iterable[str]) -> Listing:
    """The part that this request asks for; parameters of other names are left alone.

    Raises:
        InvalidRequest: a filter that is too long, or with a character that no database holds.
    """
    given = {}
    for name in (*names, "cursor"):
        value = request.query_params.get(name, "").strip()
        if len(value) > MAX_FILTER_CHARS or "\x00" in value:
            raise InvalidRequest(f"{name}: must have at most {MAX_FILTER_CHARS} characters", param=name)
        if value:
            given[name] = value
    cursor = given.pop("cursor", None)
    return Listing(path, given, cursor)


def one_of(listing: Listing, name: str, known: Iterable[str]) -> str | None:
    """A filter that has so many values only.

    Raises:
        InvalidRequest: it is another.
    """
    value = listing.get(name)
    if value is not None and value not in known:
        raise InvalidRequest(f"{name}: must be one of {', '.join(known)}", param=name)
    return value


def uuid_cursor(listing: Listing) -> UUID | None:
    """The cursor of a list in the order of ids.

    Raises:
        InvalidRequest: it isn't one that a page has given.
    """
    return None if listing.cursor is None else uuid_of(listing.cursor, "cursor")


def uuid_of(value: str, name: str) -> UUID:
    """An id in one of the forms in which people paste them: with a prefix, with hyphens, or plain.

    Raises:
        InvalidRequest: it isn't one.
    """
    digits = re.sub(r"^[a-z]{2,5}_", "", value.strip().lower()).replace("-", "")
    if not re.fullmatch(r"[0-9a-f]{32}", digits):
        raise InvalidRequest(f"{name}: must be an id of 32 hex digits", param=name)
    return UUID(hex=digits)


def id_end_of(value: str) -> str | None:
    """The last digits of an id, as lists show them: `job_…3e4f5a6b`, or the digits alone; None where it isn't that."""
    found = re.fullmatch(r"(?:[a-z]{2,5}_)?(?:…|\.\.\.)?([0-9a-f]{8})", value.strip().lower())
    return found[1] if found else None


def time_of(listing: Listing, name: str) -> datetime | None:
    """A filter that is a time in UTC, as `<input type="datetime-local">` sends it.

    Raises:
        InvalidRequest: it isn't one.
    """
    value = listing.get(name)
    if value is None:
        return None
    at = moment_of(value)
    if at is None:
        raise InvalidRequest(
            f"{name}: must be a time such as 2026-01-31T18:00, in UTC, of a year from {YEARS[0]} to {YEARS[-1]}",
            param=name,
        )
    return at


def moment_of(text: str) -> datetime | None:
    """A time in UTC, unless it says otherwise; None where it is none, or lies where one can't reckon with it any more."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    if at.year not in YEARS:  # at either end of time, another zone or five minutes more are too much
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def since_of(listing: Listing, now: datetime) -> datetime | None:
    """When the span begins that the filter `since` names.

    Raises:
        InvalidRequest: it isn't one of `SPANS`.
    """
    value = one_of(listing, "since", SPANS)
    return None if value is None else now - SPANS[value]


def pairs_of(text: str | None, name: str = "metadata") -> dict[str, str] | None:
    """Metadata as people write it: `team=search, run=7`.

    Raises:
        InvalidRequest: a part has no `=`.
    """
    if text is None:
        return None
    found = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise InvalidRequest(f"{name}: must be pairs such as team=search, run=7", param=name)
        found[key.strip()] = value.strip()
    return found or None
