"""What do the request's headers ask for? `Prefer: wait` (RFC 7240) and `Idempotency-Key`."""

import re
from collections.abc import Iterator

from starlette.datastructures import Headers

from app.errors import InvalidRequest

MAX_KEY_CHARS = 255
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 - RFC 9110's word for a word
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PREFERENCE = re.compile(rf"\s*({_TOKEN})(?:\s*=\s*({_TOKEN}|{_QUOTED}))?\s*(?:;(?:[^,\"]|{_QUOTED})*)?\s*")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_QUOTED_KEY = re.compile(r'"((?:[^"\\]|\\["\\])*)"')


def preferred_wait_s(headers: Headers, *, most: float) -> int | None:
    """Seconds of `Prefer: wait=N`, at most `most`; None where nothing that can be understood is preferred."""
    for name, value in _preferences(headers):
        if name == "wait":
            # The first one counts, as RFC 7240 says; a malformed one is as good as none.
            return min(int(value[:9]), int(most)) if re.fullmatch(r"[0-9]+", value) else None
    return None


def idempotency_key(headers: Headers) -> str | None:
    """The caller's key, given bare or as a quoted string; None where there is none.

    Raises:
        InvalidRequest: it is given twice, or isn't 1 to 255 visible ASCII characters.
    """
    given = headers.getlist("idempotency-key")
    if not given:
        return None
    key = given[0].strip(" \t")
    if key.startswith('"'):
        quoted = _QUOTED_KEY.fullmatch(key)
        key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else ""
    if len(given) > 1 or len(key) > MAX_KEY_CHARS or not _VISIBLE.fullmatch(key):
        raise InvalidRequest(
            f"Idempotency-Key: must be one key of 1 to {MAX_KEY_CHARS} visible ASCII characters, bare or quoted",
            param="Idempotency-Key",
            limit=MAX_KEY_CHARS,
        )
    return key


def _preferences(headers: Headers) -> Iterator[tuple[str, str]]:
    """(name, value) of each preference that is well formed; what isn't is skipped up to the next comma."""
    text = ",".join(headers.getlist("prefer"))
    place = 0
    while place < len(text):
        found = _PREFERENCE.match(text, place)
        if found and (found.end() == len(text) or text[found.end()] == ","):
            yield found[1].lower(), (found[2] or "").strip('"')
            place = found.end() + 1
        else:
            comma = text.find(",", place)
            place = len(text) if comma < 0 else comma + 1
