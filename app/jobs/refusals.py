"""How is a body refused that breaks a rule? By field and limit, in our words, whoever has read it."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.errors import InvalidRequest
from app.wording import in_house_words

MAX_ERRORS = 20  # that one problem document lists
MAX_MEMBERS = 1024  # of any object in a request
_OBJECTS = ("metadata", "logit_bias", "webhook", "filter", "changes")
MAX_NAME_CHARS = 64  # of a caller's own name, where it is repeated in a message
_UNIONS = {"prompt", "stop", "input", "content", "output", "tool_choice"}  # either a text or something else
_TAGS = {"message", "function_call", "function_call_output"}  # of the items of a response's input: kinds, no fields
_WRONG_TYPES = {"string_type", "list_type"}
_LIMITS = ("le", "lt", "ge", "gt", "max_length", "min_length", "pattern", "expected")


def refuse_wide_objects(decoded: dict[str, Any]) -> None:
    """Refuse objects with many members: each may break a rule of its own, and so many that a list of all is worth it are never meant.

    Raises:
        InvalidRequest: one has too many.
    """
    messages = decoded.get("messages")
    for field in ("body", *_OBJECTS):
        _refuse_wide(decoded if field == "body" else decoded.get(field), field)
    # A message's name is made for one that is too wide only: it costs more than the look.
    for place, each in enumerate(messages[:MAX_MEMBERS] if isinstance(messages, list) else ()):
        if isinstance(each, dict) and len(each) > MAX_MEMBERS:
            _refuse_wide(each, f"messages[{place}]")


def _refuse_wide(value: Any, field: str) -> None:
    if isinstance(value, dict) and len(value) > MAX_MEMBERS:
        message = f"must have at most {MAX_MEMBERS} members"
        raise InvalidRequest(
            f"{field}: {message}",
            param=field,
            errors=[{"field": field, "message": message, "limit": MAX_MEMBERS}],
        )


def broken_body(message: str) -> InvalidRequest:
    """A body that breaks a rule as a whole."""
    return InvalidRequest(f"body: {message}", param="body", errors=[{"field": "body", "message": message}])


def refusal(error: ValidationError) -> InvalidRequest:
    """What pydantic found, in our words."""
    found: dict[str, dict[str, Any]] = {}
    details = error.errors(include_url=False, include_input=False)
    for each in details:
        if _is_shadowed(each, details):
            continue
        rule = _broken_rule(each)
        known = found.setdefault(rule["field"], rule)
        if rule["message"] not in known["message"]:
            known["message"] += f", or {rule['message']}"
    errors = list(found.values())
    detail = "; ".join(f"{each['field']}: {each['message']}" for each in errors[:3])
    more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
    return InvalidRequest(detail + more, param=errors[0]["field"], errors=errors[:MAX_ERRORS])


def _is_shadowed(each: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Of the two readings of a text-or-list, the one that has the wrong type says nothing where the other one got further."""
    if each["type"] not in _WRONG_TYPES:
        return False
    loc = each["loc"]
    field = loc[:-1] if len(loc) > 1 and loc[-2] in _UNIONS else loc
    if field[-1] not in _UNIONS:
        return False
    return any(
        other["loc"][: len(field)] == field
        and (len(other["loc"]) > len(field) + 1 or other["type"] not in _WRONG_TYPES)
        for other in details
    )


def _broken_rule(each: ErrorDetails) -> dict[str, Any]:
    context = each.get("ctx") or {}
    field, message = _path(each["loc"]), each["msg"]
    if each["type"] == "value_error":
        message = str(context.get("error", message))
        own = re.fullmatch(r"([a-z_]+(?:\[\d+\])*): (.*)", message, re.DOTALL)
        if own:
            field, message = f"{field}.{own[1]}" if field else own[1], own[2]
    elif each["type"] == "extra_forbidden":
        message = "isn't a known field"
    elif each["type"] == "missing":
        message = "is required"
    rule: dict[str, Any] = {"field": field or "body", "message": in_house_words(message)}
    limit = next((context[name] for name in _LIMITS if name in context), None)
    if limit is not None:
        rule["limit"] = limit
    return rule


def _path(parts: Sequence[int | str]) -> str:
    path = ""
    for before, part in zip(("", *parts), parts, strict=False):
        if isinstance(part, int):
            path += f"[{part}]"
        elif before in _UNIONS or (part in _TAGS and isinstance(before, int)):
            continue  # pydantic's name for the reading
        elif part != "[key]":
            name = part if len(part) <= MAX_NAME_CHARS else part[:MAX_NAME_CHARS] + "…"
            path += f".{name}" if path else name
    return path
