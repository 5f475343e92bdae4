"""Which page of a list that is ordered by id? The queries of the lists of tenants, keys and budgets, parsed strictly."""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from starlette.datastructures import QueryParams
from starlette.responses import Response

from app.api import paging
from app.api.paging import (
    MAX_LIMIT,
    cursor_parameter,
    given_of,
    limit_of,
    one_of,
    packed_cursor,
    place_in,
    wrong_cursor,
)

_MAX_ID_CHARS = 64
_CURSOR = "[A-Za-z0-9_-]{1,88}"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class IdPage:
    """What an operator wants to see: `limit` things whose ids come after `after`, and what filters were given."""

    limit: int
    after: str | None
    chosen: Mapping[str, str]

    @property
    def after_id(self) -> UUID | None:
        """`after`, of a list whose ids are UUIDs."""
        return None if self.after is None else UUID(hex=self.after)

    @property
    def asks(self) -> int:
        """How many to look for: one more than is shown says whether there are more."""
        return self.limit + 1


def page_answer(
    found: Sequence[T], page: IdPage, show: Callable[[T], dict[str, Any]], id_of: Callable[[T], str]
) -> Response:
    """The page of what was found by `page.asks`, with the cursor of the one after it; `id_of` as `id_pattern` has it."""
    return paging.page_answer(found, page.limit, show, lambda each: id_cursor(id_of(each)))


def parse_id_page(
    query: QueryParams,
    *,
    default_limit: int,
    id_pattern: str,
    choices: Mapping[str, tuple[str, ...]],
    others: tuple[str, ...] = (),
) -> IdPage:
    """The page that a query string asks for. `id_pattern` is what a cursor may hold; `choices` are filters and their values, `others`
    parameters that the caller reads itself.

    Raises:
        InvalidRequest: an unknown, repeated or malformed parameter.
    """
    given = given_of(query, ("cursor", "limit", *choices, *others))
    chosen = {name: given[name] for name, known in choices.items() if one_of(given, name, known) is not None}
    return IdPage(limit_of(given, default_limit), _after(given, id_pattern), chosen)


def id_cursor(last_id: str) -> str:
    """The cursor of the page that begins after this id."""
    return packed_cursor(last_id.encode())


def _after(given: dict[str, str], id_pattern: str) -> str | None:
    place = place_in(given, _CURSOR)
    if place is None:
        return None
    with contextlib.suppress(UnicodeDecodeError):
        found = place.decode()
        is_ours = len(found) <= _MAX_ID_CHARS and re.fullmatch(id_pattern, found, re.ASCII)
        if is_ours and id_cursor(found) == given["cursor"]:
            return found
    raise wrong_cursor()


def query_of(choices: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    """The query as the OpenAPI document describes it."""
    return [
        cursor_parameter(_CURSOR),
        {
            "name": "limit",
            "in": "query",
            "description": "Most things of the page.",
            "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
        },
        *(
            {"name": name, "in": "query", "schema": {"type": "string", "enum": list(known)}}
            for name, known in choices.items()
        ),
    ]
