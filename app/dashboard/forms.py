"""What does a form say? Its fields as the types that operators' acts take; a refusal names the field."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import Request

from app.errors import InvalidRequest

MAX_FIELD_CHARS = 1_000_000
MICROS = 1_000_000
# Digits, or groups of thousands by one separator. Whatever else stands there is refused: `0,15` isn't 15.
_WHOLE = r"\d{1,18}|[1-9]\d{0,2}(?:(?P<by>[, _\u202f\u00a0'])\d{3})(?:(?P=by)\d{3}){0,4}"
_WHOLE_NUMBER = re.compile(f"-?(?:{_WHOLE})", re.ASCII)
_AMOUNT = re.compile(rf"(?P<sign>-?)(?P<whole>{_WHOLE})?(?:\.(?P<part>\d{{1,6}})0*)?", re.ASCII)
_SEPARATORS = str.maketrans("", "", ", _\u202f\u00a0'")


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
    if not given:
        return None
    if not _WHOLE_NUMBER.fullmatch(given):
        raise InvalidRequest(f"{name}: must be a whole number, such as 1,000, or empty for no limit", param=name)
    return int(given.translate(_SEPARATORS))


def micros_of(text: str) -> int | None:
    """An amount of the currency, such as 1,250.50, in millionths; None where it is none, or has more than six decimals.

    Digits only, no exponent: what is read is as small as its text.
    """
    found = _AMOUNT.fullmatch(text)
    if found is None or not (found["whole"] or found["part"]):
        return None
    micros = int((found["whole"] or "0").translate(_SEPARATORS)) * MICROS + int((found["part"] or "").ljust(6, "0"))
    return -micros if found["sign"] else micros


def wholes_of(form: Mapping[str, list[str]], names: Iterable[str]) -> dict[str, int | None]:
    """Those of these fields that the form has, as whole numbers."""
    return {name: whole_of(form, name) for name in names if name in form}


def flag_of(form: Mapping[str, list[str]], name: str) -> bool:
    """Whether the box was ticked."""
    return text_of(form, name) in {"on", "true", "1", "yes"}


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that aren't None."""
    return {name: value for name, value in values.items() if value is not None}
