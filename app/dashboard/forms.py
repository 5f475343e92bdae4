"""What does a form say? Its fields as the types that operators' acts take; a refusal names the field."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from fastapi import Request

from app.errors import InvalidRequest
from app.jobs.states import TIERS, Tier

MAX_FIELD_CHARS = 1_000_000
MAX_REASON_CHARS = 500

Form = Mapping[str, list[str]]


async def read_form(request: Request) -> dict[str, list[str]]:
    """Every field's values, in their order; files are none of ours.

    Raises:
        InvalidRequest: it has a file, or a field that is far too long.
    """
    form = await request.form()
    found: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if not isinstance(value, str) or len(value) > MAX_FIELD_CHARS:
            raise InvalidRequest(f"{name}: must be text of at most {MAX_FIELD_CHARS} characters", param=name)
        if name != "csrf":
            found.setdefault(name, []).append(value)
    return found


def text_of(form: Form, name: str, default: str = "") -> str:
    """The field's first value, without spaces around it."""
    return form.get(name, [default])[0].strip()


def whole_of(form: Form, name: str) -> int | None:
    """The field as a whole number: 1,000 and 1 000 and 1_000 are read; empty is None.

    Raises:
        InvalidRequest: it is something else.
    """
    given = text_of(form, name)
    digits = given.translate(str.maketrans("", "", ", _\u202f\u00a0'"))
    if not digits:
        return None
    if not (digits.isascii() and digits.removeprefix("-").isdigit()) or len(digits) > 18:
        raise InvalidRequest(f"{name}: must be a whole number, or empty for no limit", param=name)
    return int(digits)


def wholes_of(form: Form, names: Iterable[str]) -> dict[str, int | None]:
    """Those of these fields that the form has, as whole numbers."""
    return {name: whole_of(form, name) for name in names if name in form}


def flag_of(form: Form, name: str) -> bool:
    """Whether the box was ticked."""
    return text_of(form, name) in {"on", "true", "1", "yes"}


def reason_of(form: Form) -> str:
    """The field `reason`: why an operator does something, for the log of acts.

    Raises:
        InvalidRequest: nothing, or too much.
    """
    reason = text_of(form, "reason")
    if not reason or len(reason) > MAX_REASON_CHARS or "\x00" in reason:
        raise InvalidRequest(f"reason: say why, in at most {MAX_REASON_CHARS} characters", param="reason")
    return reason


def tier_of(form: Form) -> Tier:
    """The field `tier`.

    Raises:
        InvalidRequest: there is none such.
    """
    known: tuple[Tier, ...] = get_args(Tier)
    for tier in known:
        if tier == text_of(form, "tier"):
            return tier
    raise InvalidRequest(f"tier: must be one of {', '.join(TIERS)}", param="tier")


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that aren't None."""
    return {name: value for name, value in values.items() if value is not None}
