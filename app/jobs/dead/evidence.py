"""What is kept with a dead letter? Error, counters, the attempts with what they left behind; no prompts, no outputs; bounded."""

from collections.abc import Sequence
from typing import Any

import msgspec

from app.db import storable

MAX_ATTEMPTS = 32  # the newest ones
MAX_TEXT_CHARS = 4096  # of one text; of a log the end is kept
MAX_ITEMS = 256  # of one list or object
MAX_DEPTH = 8
MAX_BYTES = 64 * 2**10  # of all, as JSON
_KEEP_THE_END = {"log_tail"}


def evidence_of(
    error: dict[str, Any], counters: dict[str, int], attempts: Sequence[dict[str, Any]], extra: dict[str, Any]
) -> dict[str, Any]:
    """The evidence as it is stored: at most `MAX_BYTES` of JSON, the newest attempts first to stay.

    Args:
        attempts: oldest first; each with `attempt`, `outcome`, `detail` and whatever else is known of it.
        extra: what the code that gave the job up adds.
    """
    last = attempts[-1].get("detail") if attempts else None
    kept = [_bounded(each) for each in attempts[-MAX_ATTEMPTS:]]
    found: dict[str, Any] = {
        # What the last attempt's row says as well isn't said twice.
        **_bounded({name: value for name, value in extra.items() if value and value != last}),
        "error": _bounded(error),
        **counters,
        "attempts": kept,
    }
    while _size(found) > MAX_BYTES and kept:
        kept.pop(0)
    # Not even without its attempts: only what the code that gave it up added can be so large.
    return found if _size(found) <= MAX_BYTES else {"error": {}, **counters, "attempts": [], "too_large": True}


def _size(value: dict[str, Any]) -> int:
    return len(msgspec.json.encode(value))


def _bounded(value: Any, name: str = "", depth: int = 0) -> Any:
    if isinstance(value, str):
        return _cut(storable(value), keep_the_end=name in _KEEP_THE_END)
    if isinstance(value, bool | int | float) or value is None:
        return value
    if depth >= MAX_DEPTH:
        return "…"
    if isinstance(value, dict):
        items = list(value.items())[:MAX_ITEMS]
        return {_cut(storable(str(key))): _bounded(each, str(key), depth + 1) for key, each in items}
    if isinstance(value, list | tuple):
        return [_bounded(each, name, depth + 1) for each in value[:MAX_ITEMS]]
    return _cut(storable(str(value)))


def _cut(text: str, *, keep_the_end: bool = False) -> str:
    if len(text) <= MAX_TEXT_CHARS:
        return text
    return "…" + text[-MAX_TEXT_CHARS:] if keep_the_end else text[:MAX_TEXT_CHARS] + "…"
