"""What of a request is its owner's own text, for their eyes and not for every operator's?"""

from typing import Any

# Of the rest, anybody may see numbers, and these words: prompts, tools, schemas and stop strings are texts.
_WORDS = ("model", "fallback_model", "tier", "on_budget")
LABELS = ("metadata", "webhook")  # what the job is found by and told to: shown to all who see the job


def is_text(name: str, value: Any) -> bool:
    """Whether this field of a stored request is its owner's own; None says nothing, and is."""
    return not (name in LABELS or isinstance(value, int | float) or (name in _WORDS and isinstance(value, str)))


def texts_of(request: dict[str, Any]) -> dict[str, Any]:
    """The fields that are its owner's own; those that say nothing are left out."""
    return {name: value for name, value in request.items() if is_text(name, value) and value is not None}
