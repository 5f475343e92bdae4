"""Which part of a long list does a URL ask for? Filters and a cursor, read strictly; and the URLs of the pages beside it."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from urllib.parse import urlencode
from uuid import UUID

from starlette.requests import Request

from app.dashboard.words import sentence
from app.errors import InvalidRequest

Read = TypeVar("Read")
Reader = Callable[[str, str], Read]  # of a field's text and its name; raises InvalidRequest where the text is none such

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
    """What a URL says. `filters` are the fields that aren't empty, as they were typed; `path` is the page's, with its prefix.

    What is read and wrong stands in `problems`, by field, and counts as any: nothing is to be searched then.
    """

    path: str
    filters: Mapping[str, str]
    cursor: str | None
    problems: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        """A filter's text, empty where it isn't given: for the form to show."""
        return self.filters.get(name, "")

    def get(self, name: str) -> str | None:
        """A filter's text; None is any."""
        return None if name in self.problems else self.filters.get(name)

    def read(self, name: str, reader: Reader[Read]) -> Read | None:
        """A filter as what it means; None is any, or wrong."""
        return self._read(name, self.get(name), reader)

    def read_cursor(self, reader: Reader[Read]) -> Read | None:
        """The cursor as the place it means; None is the beginning, or wrong."""
        return self._read("cursor", self.cursor, reader)

    def _read(self, name: str, text: str | None, reader: Reader[Read]) -> Read | None:
        if text is None or name in self.problems:
            return None
        try:
            return reader(text, name)
        except InvalidRequest as error:
            self.problems[name] = sentence(error.detail.removeprefix(f"{name}: "))
            return None

    def url(self, cursor: object = None) -> str:
        """The same filters from `cursor` on; from the beginning without it."""
        query = dict(self.filters) | ({"cursor": str(cursor)} if cursor is not None else {})
        return f"{self.path}?{urlencode(query)}" if query else self.path

    @property
    def first(self) -> str | None:
        """The URL of the first page, where this isn't it."""
        return self.url() if self.cursor is not None else None


def listing_of(request: Request, path: str, names: Iterable[str]) -> Listing:
    """The part that this request asks for; parameters of other names are left alone. What no list can be searched by is a problem already."""
    listing = Listing(path, filters := {}, request.query_params.get("cursor", "").strip() or None)
    for name in names:
        value = request.query_params.get(name, "").strip()
        if value:
            filters[name] = value.replace("\x00", "\ufffd")
            listing._read(name, value, _storable)
    listing.read_cursor(_storable)
    return listing


def _storable(text: str, name: str) -> None:
    if len(text) > MAX_FILTER_CHARS or "\x00" in text:
        raise InvalidRequest(f"{name}: must have at most {MAX_FILTER_CHARS} characters, none of them NUL", param=name)


def one_of(known: Iterable[str]) -> Reader[str]:
    """Reads a filter that has so many values only."""

    def read(text: str, name: str) -> str:
        if text not in known:
            raise InvalidRequest(f"{name}: must be one of {', '.join(known)}", param=name)
        return text

    return read


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


def time_of(text: str, name: str) -> datetime:
    """A time in UTC, as `<input type="datetime-local">` sends it.

    Raises:
        InvalidRequest: it isn't one.
    """
    at = moment_of(text)
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
    """When the span begins that the filter `since` names, or at the filter `after`, whichever is later."""
    span, after = listing.read("since", one_of(SPANS)), listing.read("after", time_of)
    if span is None:
        return after
    return max(now - SPANS[span], after) if after is not None else now - SPANS[span]


def pairs_of(text: str, name: str) -> dict[str, str] | None:
    """Metadata as people write it: `team=search, run=7`.

    Raises:
        InvalidRequest: a part has no `=`.
    """
    found = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise InvalidRequest(f"{name}: must be pairs such as team=search, run=7", param=name)
        found[key.strip()] = value.strip()
    return found or None
