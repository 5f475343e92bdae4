"""How are a dead job's parameters edited in a form? Each as a text, and back into what was changed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidRequest
from app.jobs.dead.edit import CHANGEABLE
from app.jobs.states import TIERS

_CHOICES = {"tier": TIERS, "speculate": ("true", "false")}
_LINES = ("stop",)
_WORDS = ("model", "tier")
_FIELDS = tuple(name for name in CHANGEABLE if name != "deadline_s")  # said for the requeue, not for the job


@dataclass(frozen=True, slots=True)
class FieldShown:
    """A field of the form; `choices` where it has so many values only, `has_lines` where it is a list, one a line."""

    name: str
    value: str
    choices: tuple[str, ...] = ()
    has_lines: bool = False


def shown_fields(as_it_is: Mapping[str, Any]) -> list[FieldShown]:
    """The fields that may be changed, with their values as texts."""
    return [FieldShown(name, _text(as_it_is[name]), tuple(_CHOICES.get(name, ())), name in _LINES) for name in _FIELDS]


def changes_of(as_it_is: Mapping[str, Any], form: Mapping[str, list[str]]) -> dict[str, Any]:
    """What the form says otherwise. Whether that makes sense is said by the rules of a submission.

    Raises:
        InvalidRequest: a field that must be a number isn't one.
    """
    changes = {}
    for name in _FIELDS:
        if name not in form:
            continue
        given = form[name][0].replace("\r\n", "\n").strip()
        if given != _text(as_it_is[name]).strip():
            changes[name] = _value(name, given)
    return changes


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return "\n".join(str(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value)


def _value(name: str, given: str) -> Any:
    if name in _LINES:
        return given.split("\n") if given else None
    if not given:
        return None
    if name in _WORDS:
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{name}: must be a number, such as 0.7, or empty", param=name) from None
