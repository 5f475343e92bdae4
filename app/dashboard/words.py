"""How are ids, JSON and sentences shown?"""

import json
from typing import Any


def short_id(name: str) -> str:
    """An id by its prefix and its end, which is random; its beginning is a time, and much the same for neighbours."""
    prefix, underscore, digits = name.rpartition("_")
    return f"{prefix}{underscore}…{digits[-8:]}" if len(digits) > 12 else name


def pretty(value: Any) -> str:
    """JSON for people; lines of a text within it stay lines."""
    if isinstance(value, str):
        return value
    text = json.dumps(value, ensure_ascii=False, indent=1, default=str)
    return text.replace("\\n", "\n")


def sentence(text: str) -> str:
    """With a capital at its beginning, and nothing else changed."""
    return text[:1].upper() + text[1:]


FILTERS = {"short_id": short_id, "pretty": pretty, "sentence": sentence}
