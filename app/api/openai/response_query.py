"""What does the query of GET /v1/responses/{id} ask for?"""

from dataclasses import dataclass

from starlette.datastructures import QueryParams

from app.errors import InvalidRequest

_KNOWN = {"stream", "starting_after", "include", "include[]", "include_obfuscation"}
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class ResponseQuery:
    """`starting_after`: the number of the last event that was seen."""

    stream: bool
    starting_after: int | None


def parse_query(params: QueryParams) -> ResponseQuery:
    """Raises InvalidRequest for what isn't known or can't be read."""
    for name in params:
        if name not in _KNOWN:
            raise InvalidRequest(f"{name[:64]}: isn't a known parameter", param=name[:64])
    word = params.get("stream", "false")
    if word not in {"true", "false"}:
        raise InvalidRequest("stream: must be true or false", param="stream")
    after = params.get("starting_after")
    if after is not None and word == "false":
        raise InvalidRequest("starting_after: goes with stream=true", param="starting_after")
    if after is not None and not (after.isascii() and after.isdigit() and len(after) <= _MAX_DIGITS):
        raise InvalidRequest("starting_after: must be the sequence_number of an event", param="starting_after")
    return ResponseQuery(word == "true", None if after is None else int(after))
