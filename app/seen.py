"""Is what somebody changes still what they saw? A form, or If-Match, brings the version of that; the act compares, under the row's lock."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from app.errors import ChangedMeanwhile


def version_of(*values: Any) -> str:
    """The same for the same values in the same order, and for no others: 16 hex digits."""
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:16]


Seen = str | frozenset[str] | None  # one version, or any of these; None: whoever changes it doesn't care


def refuse_unless_seen(seen: Seen, version: str, now: Mapping[str, Any]) -> None:
    """Refuse a change that was made over another state than this one. Call it with the row locked.

    Args:
        seen: the version that was shown, or those that whoever changes it takes for current.
        version: of the row.
        now: what the row has in the fields that would become others.

    Raises:
        ChangedMeanwhile: with `now`.
    """
    known: Collection[str] = {seen} if isinstance(seen, str) else seen or ()
    if seen is not None and version not in known:
        raise ChangedMeanwhile("it was changed since it was shown: look at it anew, and change it then", now=dict(now))
