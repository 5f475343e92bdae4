"""How are ids, JSON and sentences shown?"""

import json
from typing import Any
from urllib.parse import urlsplit

MAX_BRIEF_CHARS = 120
_ID_DIGITS = frozenset("0123456789abcdef-")


def short_id(name: str) -> str:
    """An id by its prefix and its end, which is random; its beginning is a time, and much the same for neighbours.

    What stands before a slash stays whole: it is the tenant that the thing belongs to.
    """
    owner, slash, own = name.rpartition("/")
    prefix, underscore, digits = own.rpartition("_")
    is_id = len(digits) > 12 and set(digits) <= _ID_DIGITS
    return f"{owner}{slash}{prefix}{underscore}…{digits[-8:]}" if is_id else name


def pretty(value: Any) -> str:
    """JSON for people; lines of a text within it stay lines."""
    if isinstance(value, str):
        return value
    text = json.dumps(value, ensure_ascii=False, indent=1, default=str)
    return text.replace("\\n", "\n")


def sentence(text: str) -> str:
    """With a capital at its beginning, and nothing else changed."""
    return text[:1].upper() + text[1:]


def brief(value: Any) -> str:
    """A detail of an act in a line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_BRIEF_CHARS else text[: MAX_BRIEF_CHARS - 1] + "…"


def without_query(url: str) -> str:
    """A URL without what may be a secret in it."""
    return urlsplit(url)._replace(query="", fragment="").geturl() + ("?…" if "?" in url else "")


FILTERS = {
    "short_id": short_id,
    "pretty": pretty,
    "sentence": sentence,
    "brief": brief,
    "without_query": without_query,
}
