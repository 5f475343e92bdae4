"""What does a form say? Its fields as the types that operators' acts take; a refusal names the field."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, get_args
from urllib.parse import parse_qsl

from fastapi import Request

from app.dashboard.figures import grouped, money
from app.errors import BodyTooLarge, ChangedMeanwhile, InvalidRequest, MalformedBody, UnsupportedMedia
from app.jobs.states import TIERS, Tier

Form = Mapping[str, list[str]]
MAX_BODY_BYTES = 2 * 2**20
MAX_FIELD_CHARS = 1_000_000
MAX_REASON_CHARS = 500
MAX_FIELDS = 500
_KIND = "application/x-www-form-urlencoded"
MICROS = 1_000_000
# Digits, or groups of thousands by one separator. Whatever else stands there is refused: `0,15` isn't 15.
_WHOLE = r"\d{1,18}|[1-9]\d{0,2}(?:(?P<by>[, _\u202f\u00a0'])\d{3})(?:(?P=by)\d{3}){0,4}"
_WHOLE_NUMBER = re.compile(f"-?(?:{_WHOLE})", re.ASCII)
_AMOUNT = re.compile(rf"(?P<sign>-?)(?P<whole>{_WHOLE})?(?:\.(?P<part>\d{{1,6}})0*)?", re.ASCII)
_SEPARATORS = str.maketrans("", "", ", _\u202f\u00a0'")


async def read_form(request: Request, *, most_bytes: int = MAX_BODY_BYTES) -> dict[str, list[str]]:
    """Every field's values, in their order, but for the session's token.

    Raises: as `whole_form`.
    """
    return {
        name: values for name, values in (await whole_form(request, most_bytes=most_bytes)).items() if name != "csrf"
    }


async def whole_form(request: Request, *, most_bytes: int = MAX_BODY_BYTES) -> dict[str, list[str]]:
    """Every field's values, the token's too. Read once; whoever asks again gets the same.

    Forms as browsers write them where nothing else is said (application/x-www-form-urlencoded, UTF-8): a page has no files to send,
    and each other encoding has its own traps.

    Raises:
        UnsupportedMedia: it is encoded otherwise.
        BodyTooLarge: it has more than `most_bytes`.
        MalformedBody: it isn't UTF-8.
        InvalidRequest: it has too many fields, or one that is far too long.
    """
    known: dict[str, list[str]] | None = getattr(request.state, "form", None)
    if known is not None:
        return known
    kind = request.headers.get("content-type", _KIND).partition(";")[0].strip().lower()
    if kind != _KIND:
        raise UnsupportedMedia(f"Content-Type: must be {_KIND}", param="Content-Type")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise BodyTooLarge(f"the form must have at most {most_bytes} bytes", limit=most_bytes)
    if body.count(b"&") >= MAX_FIELDS:
        raise InvalidRequest(f"the form must have at most {MAX_FIELDS} fields")
    found: dict[str, list[str]] = {}
    try:
        for name, value in parse_qsl(body.decode(), keep_blank_values=True, errors="strict"):
            if len(value) > MAX_FIELD_CHARS:
                raise InvalidRequest(f"{name}: must have at most {MAX_FIELD_CHARS} characters", param=name)
            found.setdefault(name, []).append(value)
    except UnicodeDecodeError:
        raise MalformedBody("the form isn't UTF-8") from None
    request.state.form = found
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


def wholes_of(form: Form, names: Iterable[str]) -> dict[str, int | None]:
    """Those of these fields that the form has, as whole numbers."""
    return {name: whole_of(form, name) for name in names if name in form}


def why_of(form: Form) -> str | None:
    """The reason of an act that wants none, for the log of acts.

    Raises:
        InvalidRequest: it is too long, or has a NUL.
    """
    why = text_of(form, "reason")
    if len(why) > MAX_REASON_CHARS or "\x00" in why:
        raise InvalidRequest(f"reason: must be at most {MAX_REASON_CHARS} characters of text, or empty", param="reason")
    return why or None


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
