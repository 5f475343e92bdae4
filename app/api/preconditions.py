"""Is what a caller changes still what they read? `ETag` of an object's version, and `If-Match` (RFC 9110, 13.1.1)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers

from app.errors import ChangedMeanwhile, InvalidRequest, PreconditionFailed

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAGS = re.compile(rf"(?:\s*,)*\s*{_TAG}\s*(?:,\s*(?:{_TAG}\s*)?)*")  # empty elements are none (RFC 9110, 5.6.1.2)
_EACH = re.compile(r'(W/)?"([^"]*)"')

VERSION: dict[str, Any] = {
    "ETag": {
        "description": "The version of what PATCH may change, for `If-Match`; other figures change without it.",
        "schema": {"type": "string"},
        "example": '"3f1c5a9b7e20d846"',
    }
}
IF_MATCH: dict[str, Any] = {
    "name": "If-Match",
    "in": "header",
    "description": "The `ETag` of the object as it was read: changed only if it is current, else a 412. Several, divided by commas: "
    "any of them. `*`, or without the header: whatever is there.",
    "schema": {"type": "string"},
    "example": '"3f1c5a9b7e20d846"',
}


def etag(version: str) -> dict[str, str]:
    """The header that tells this version."""
    return {"ETag": f'"{version}"'}


@contextmanager
def precondition(headers: Headers) -> Iterator[frozenset[str] | None]:
    """The versions that `If-Match` takes for current, None for any; a change of something else that fails within is a 412.

    Weak tags name none: they are no match for a change.

    Raises:
        InvalidRequest: the header isn't `*` nor a list of entity tags.
        PreconditionFailed: the version was another.
    """
    seen = _matched(headers)
    try:
        yield seen
    except ChangedMeanwhile as error:
        raise PreconditionFailed(
            "If-Match: it was changed since you read it: read it again, and send the change with its new ETag",
            param="If-Match", now=error.extra["now"],
        ) from error  # fmt: skip


def _matched(headers: Headers) -> frozenset[str] | None:
    text = ",".join(headers.getlist("if-match")).strip(" \t")
    if "if-match" not in headers or text == "*":
        return None
    if not _TAGS.fullmatch(text):
        raise InvalidRequest(
            'If-Match: must be * or ETags as they were sent, such as "3f1c5a9b7e20d846", divided by commas',
            param="If-Match",
        )
    return frozenset(version for weak, version in _EACH.findall(text) if not weak)
