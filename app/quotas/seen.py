"""Is what an operator changes still what they saw? A form brings the version of what it showed; the act compares, under the row's lock."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from app.errors import ChangedMeanwhile


def version_of(*values: Any) -> str:
    """The same for the same values in the same order, and for no others: 16 hex digits."""
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:16]


def refuse_unless_seen(seen: str | None, version: str, now: Mapping[str, Any]) -> None:
    """Refuse a change that was made over another state than this one. Call it with the row locked.

    Args:
        seen: the version that was shown; None: whoever changes it doesn't care.
        version: of the row.
        now: what the row has in the fields that would become others.

    Raises:
        ChangedMeanwhile: with `now`.
    """
    if seen is not None and seen != version:
        raise ChangedMeanwhile("it was changed since it was shown: look at it anew, and change it then", now=dict(now))
