"""What does a form say? Its fields as the types that operators' acts take; a refusal names the field."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fastapi import Request

from app.dashboard.figures import grouped, money
from app.errors import ChangedMeanwhile, InvalidRequest

MAX_FIELD_CHARS = 1_000_000
MAX_REASON_CHARS = 500


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


def text_of(form: Mapping[str, list[str]], name: str, default: str = "") -> str:
    """The field's first value, without spaces around it."""
    return form.get(name, [default])[0].strip()


def whole_of(form: Mapping[str, list[str]], name: str) -> int | None:
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


def wholes_of(form: Mapping[str, list[str]], names: Iterable[str]) -> dict[str, int | None]:
    """Those of these fields that the form has, as whole numbers."""
    return {name: whole_of(form, name) for name in names if name in form}


def why_of(form: Mapping[str, list[str]]) -> str | None:
    """The reason of an act that wants none, for the log of acts.

    Raises:
        InvalidRequest: it is too long, or has a NUL.
    """
    why = text_of(form, "reason")
    if len(why) > MAX_REASON_CHARS or "\x00" in why:
        raise InvalidRequest(f"reason: must be at most {MAX_REASON_CHARS} characters of text, or empty", param="reason")
    return why or None


def flag_of(form: Mapping[str, list[str]], name: str) -> bool:
    """Whether the box was ticked."""
    return text_of(form, name) in {"on", "true", "1", "yes"}


def conflict_of(error: ChangedMeanwhile, form: dict[str, list[str]], *, amounts: Collection[str] = ()) -> str:
    """What is there now, in words, and what can be done; `amounts` are fields in millionths of the currency.

    The form loses the version that it was made over: shown again, it has the one that these words tell of. A form that is shown again
    for another reason keeps its own.
    """
    form.pop("seen", None)
    now = "; ".join(
        f"{name.replace('_', ' ')}: {money(value) if name in amounts else _said(value)}"
        for name, value in error.extra["now"].items()
    )
    return (
        f"Somebody else has changed this since the form was opened. There is now: {now}. Nothing was saved. "
        "What you entered is kept below: save again to put it in its place."
    )


def _said(value: Any) -> str:
    if value is None or value == "":
        return "nothing"
    if isinstance(value, list):
        return ", ".join(str(each) for each in value)
    return grouped(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that aren't None."""
    return {name: value for name, value in values.items() if value is not None}
