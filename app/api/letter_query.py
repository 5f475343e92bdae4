"""Which page of which dead letters? The queries of GET /v1/admin/dead-letters and its groups, parsed strictly."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast, get_args
from uuid import UUID

from starlette.datastructures import QueryParams

from app.api.paging import (
    MAX_LIMIT,
    cursor_parameter,
    given_of,
    limit_of,
    one_of,
    packed_cursor,
    place_in,
    time_of,
    wrong,
    wrong_cursor,
)
from app.ids import MODEL_NAME
from app.jobs.dead.read import LetterFilter, LetterPlace, State
from app.jobs.dead.selection import FINGERPRINT, REASON, TENANT

STATES: tuple[str, ...] = get_args(State)
_PATTERNS = {"pool": MODEL_NAME, "tenant": TENANT, "reason": REASON, "fingerprint": FINGERPRINT}
_TIMES = ("died_after", "died_before")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR = "[A-Za-z0-9_-]{35}"


@dataclass(frozen=True, slots=True)
class LetterPage:
    """What an operator wants to see."""

    wanted: LetterFilter
    limit: int
    after: LetterPlace | None


def parse_letter_page(query: QueryParams, *, default_limit: int, has_cursor: bool = True) -> LetterPage:
    """The page that a query string asks for.

    Raises:
        InvalidRequest: an unknown, repeated or malformed parameter.
    """
    names = (*(["cursor"] if has_cursor else []), "limit", "state", *_PATTERNS, *_TIMES)
    given = given_of(query, names)
    for name, pattern in _PATTERNS.items():
        if name in given and not re.fullmatch(pattern.removeprefix("^").removesuffix("$"), given[name]):
            raise wrong(name, f"must match {pattern}")
    wanted = LetterFilter(
        state=cast("State", one_of(given, "state", STATES) or "open"),
        before=time_of(given, "died_before"),
        after=time_of(given, "died_after"),
        **{name: given.get(name) for name in _PATTERNS},
    )
    return LetterPage(wanted, limit_of(given, default_limit), _place(given))


def cursor_of(place: LetterPlace) -> str:
    """The cursor of the page that begins after this letter."""
    micros = (place.at - _EPOCH) // timedelta(microseconds=1)
    packed = micros.to_bytes(8, "big") + place.job_id.bytes + place.reservation.to_bytes(2, "big")
    return packed_cursor(packed)


def _place(given: dict[str, str]) -> LetterPlace | None:
    packed = place_in(given, _CURSOR)
    if packed is None:
        return None
    micros, reservation = int.from_bytes(packed[:8], "big"), int.from_bytes(packed[24:], "big")
    if micros >= 2**52 or reservation >= 2**15:
        raise wrong_cursor()
    return LetterPlace(_EPOCH + timedelta(microseconds=micros), UUID(bytes=packed[8:24]), reservation)


GROUP_QUERY: list[dict[str, Any]] = [
    {
        "name": "limit",
        "in": "query",
        "description": "Most entries of the page.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
    },
    {
        "name": "state",
        "in": "query",
        "description": "`open` if left out; `any` is all that there ever were.",
        "schema": {"type": "string", "enum": list(STATES)},
    },
    *({"name": name, "in": "query", "schema": {"type": "string", "pattern": p}} for name, p in _PATTERNS.items()),
    *(
        {
            "name": name,
            "in": "query",
            "description": f"Only letters of jobs that died {name.removeprefix('died_')} this time (RFC 3339).",
            "schema": {"type": "string", "format": "date-time"},
            "example": "2026-01-31T12:00:00Z",
        }
        for name in _TIMES
    ),
]
PAGE_QUERY: list[dict[str, Any]] = [
    cursor_parameter(_CURSOR),
    *GROUP_QUERY,
]
