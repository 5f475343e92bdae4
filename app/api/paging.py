"""Which page of which jobs? The query of GET /v1/jobs, parsed strictly: a misspelt filter must not show everything."""

import base64
import binascii
import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from starlette.datastructures import QueryParams
from starlette.responses import Response

from app.api.documents import answer
from app.errors import InvalidRequest
from app.ids import MODEL_NAME
from app.jobs.read import JobFilter
from app.jobs.states import STATUSES, TIERS

MAX_LIMIT = 100
MAX_METADATA_FILTERS = 16
_METADATA = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_CURSOR = "[A-Za-z0-9_-]{22}"
_NAMES = ("cursor", "limit", "status", "tier", "model", "created_after", "created_before")


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page:
    """What a caller wants to see."""

    wanted: JobFilter
    limit: int
    older_than: UUID | None


def parse_page(query: QueryParams, *, default_limit: int) -> Page:
    """The page that a query string asks for.

    Raises:
        InvalidRequest: an unknown, repeated or malformed parameter.
    """
    given: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for name, value in query.multi_items():
        own = _METADATA.fullmatch(name)
        where, key = (metadata, own[1]) if own else (given, name)
        if not own and name not in _NAMES:
            raise wrong(name[:64], f"isn't a known parameter; there are {', '.join(_NAMES)} and metadata[key]")
        if key in where:
            raise wrong(name, "is given twice")
        if "\x00" in name or "\x00" in value:
            raise wrong(name.replace("\x00", "�"), "must not contain U+0000")
        where[key] = value
    if len(metadata) > MAX_METADATA_FILTERS:
        raise wrong("metadata", f"at most {MAX_METADATA_FILTERS} pairs can be asked for", limit=MAX_METADATA_FILTERS)
    wanted = JobFilter(
        status=one_of(given, "status", STATUSES),
        tier=one_of(given, "tier", TIERS),
        model=_model(given),
        metadata=metadata or None,
        before=time_of(given, "created_before"),
        after=time_of(given, "created_after"),
    )
    return Page(wanted, limit_of(given, default_limit), _cursor(given))


def page_answer(
    found: Sequence[T], limit: int, show: Callable[[T], dict[str, Any]], cursor_of: Callable[[T], str]
) -> Response:
    """The page of what was found by asking for one more than `limit`, with the cursor of the page after its last."""
    shown, has_more = found[:limit], len(found) > limit
    next_cursor = cursor_of(shown[-1]) if has_more else None
    return answer(
        {"object": "list", "data": [show(each) for each in shown], "has_more": has_more, "next_cursor": next_cursor}
    )


def packed_cursor(place: bytes) -> str:
    """A cursor that holds these bytes."""
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def place_in(given: dict[str, str], pattern: str) -> bytes | None:
    """What the parameter `cursor` holds, where it is given; it looks as `pattern` has it.

    Raises:
        InvalidRequest: it doesn't.
    """
    value = given.get("cursor")
    if value is None:
        return None
    if re.fullmatch(pattern, value, re.ASCII):
        with contextlib.suppress(binascii.Error):
            return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    raise wrong_cursor()


def wrong_cursor() -> InvalidRequest:
    """The refusal of one that no page has given."""
    return wrong("cursor", "isn't a cursor that a page has given")


def cursor_parameter(pattern: str) -> dict[str, Any]:
    """`cursor` as the OpenAPI document describes it."""
    return {
        "name": "cursor",
        "in": "query",
        "description": "`next_cursor` of the page before.",
        "schema": {"type": "string", "pattern": f"^{pattern}$"},
    }


def cursor_after(job_id: UUID) -> str:
    """The cursor of the page that begins with the job before this one."""
    return packed_cursor(job_id.bytes)


def wrong(name: str, message: str, **extra: Any) -> InvalidRequest:
    """The refusal of a parameter."""
    return InvalidRequest(f"{name}: {message}", param=name, **extra)


def given_of(query: QueryParams, names: tuple[str, ...]) -> dict[str, str]:
    """What a query says, each parameter once and none but these.

    Raises:
        InvalidRequest: one is unknown or repeated.
    """
    given: dict[str, str] = {}
    for name, value in query.multi_items():
        if name not in names:
            raise wrong(name.replace("\x00", "�")[:64], f"isn't a known parameter; there are {', '.join(names)}")
        if name in given:
            raise wrong(name, "is given twice")
        given[name] = value
    return given


def one_of(given: dict[str, str], name: str, known: tuple[str, ...]) -> str | None:
    """A parameter that must be one of these, where it is given."""
    value = given.get(name)
    if value is not None and value not in known:
        raise wrong(name, f"must be one of {', '.join(known)}")
    return value


def _model(given: dict[str, str]) -> str | None:
    value = given.get("model")
    if value is not None and not re.fullmatch(MODEL_NAME.removeprefix("^").removesuffix("$"), value):
        raise wrong("model", "isn't a model's name: 1 to 128 letters, digits and . _ / -")
    return value


def time_of(given: dict[str, str], name: str) -> datetime | None:
    """A parameter that must be a time, where it is given."""
    value = given.get(name)
    if value is None:
        return None
    if _TIME.fullmatch(value):
        try:
            return datetime.fromisoformat(value.upper())
        except ValueError:
            pass
    raise wrong(name, "must be a time as in 2026-01-31T12:00:00Z (RFC 3339; write + as %2B)")


def limit_of(given: dict[str, str], default: int, *, most: int = MAX_LIMIT) -> int:
    """How many things a page may hold."""
    value = given.get("limit")
    if value is None:
        return default
    if not re.fullmatch(r"[0-9]{1,6}", value, re.ASCII) or not 1 <= int(value) <= most:
        raise wrong("limit", f"must be a whole number from 1 to {most}", limit=most)
    return int(value)


def _cursor(given: dict[str, str]) -> UUID | None:
    place = place_in(given, _CURSOR)
    return None if place is None else UUID(bytes=place)


QUERY: list[dict[str, Any]] = [
    cursor_parameter(_CURSOR),
    {
        "name": "limit",
        "in": "query",
        "description": "Most jobs of the page.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
    },
    {"name": "status", "in": "query", "schema": {"type": "string", "enum": list(STATUSES)}},
    {"name": "tier", "in": "query", "schema": {"type": "string", "enum": list(TIERS)}},
    {"name": "model", "in": "query", "schema": {"type": "string", "pattern": MODEL_NAME}},
    *(
        {
            "name": name,
            "in": "query",
            "description": f"Only jobs that were submitted {word} this time (RFC 3339).",
            "schema": {"type": "string", "format": "date-time"},
            "example": "2026-01-31T12:00:00Z",
        }
        for name, word in (("created_after", "after"), ("created_before", "before"))
    ),
    {
        "name": "metadata",
        "in": "query",
        "description": "`metadata[key]=value`: only jobs that carry all these pairs.",
        "style": "deepObject",
        "explode": True,
        "schema": {"type": "object", "maxProperties": MAX_METADATA_FILTERS, "additionalProperties": {"type": "string"}},
    },
]
