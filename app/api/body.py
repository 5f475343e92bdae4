"""What does the body say? Read up to the limit, decoded strictly, validated into a type; refusals name field and limit."""

import gc
import re
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from app.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedMedia
from app.jobs.request import JobRequest

M = TypeVar("M", bound=BaseModel)

MAX_ERRORS = 20  # that one problem document lists
MAX_MEMBERS = 1024  # of any object in a request
MAX_NAME_CHARS = 64  # of a caller's own name, where it is repeated in a message
_UNIONS = {"prompt", "stop"}  # either a text or a list
_LIMITS = ("le", "lt", "ge", "gt", "max_length", "min_length", "pattern", "expected")
_decoder = msgspec.json.Decoder(dict[str, Any])


async def read_body(request: Request, *, most: int) -> bytes:
    """The body, of a kind that we read.

    Raises:
        UnsupportedMedia: it isn't plain JSON.
        BodyTooLarge: it passes `most` bytes, by its own word or by count.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMedia("Content-Type: must be application/json", param="Content-Type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia(
            "Content-Encoding: must be left out: compressed bodies aren't read", param="Content-Encoding"
        )
    too_large = BodyTooLarge(f"the body must have at most {most} bytes", limit=most)
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > most):
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > most:
            raise too_large
        body += chunk
    return bytes(body)


def parse_job(body: bytes) -> JobRequest:
    """The job that a body asks for; raises as `parse_body`. Takes long on large bodies: call it in a thread."""
    return parse_body(body, JobRequest)


def parse_body(body: bytes, model: type[M]) -> M:
    """What a body says, as `model`.

    Raises:
        MalformedBody: it isn't JSON as RFC 8259 has it: no NaN, no lone surrogates, no endless nesting or numbers.
        InvalidRequest: a rule is broken; `errors` lists which.
    """
    decoded = decode(body)
    refuse_wide_objects(decoded)
    try:
        return model.model_validate(decoded)
    except ValidationError as error:
        raise refusal(error) from None


def decode(body: bytes) -> dict[str, Any]:
    """The body's JSON object, held to no rule.

    Raises:
        MalformedBody: it isn't JSON.
        InvalidRequest: it isn't an object.
    """
    # Millions of small lists would start the collector again and again, for seconds; there are no cycles to find.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        if "Expected `object`" in str(error):
            raise InvalidRequest("the body must be a JSON object", errors=[]) from None
        raise MalformedBody("the body holds a number that is out of range") from None
    except UnicodeError:
        raise MalformedBody("the body isn't UTF-8") from None
    except msgspec.DecodeError as error:
        # Its messages give the place, never the text.
        raise MalformedBody(f"the body isn't JSON: {str(error).removeprefix('JSON is malformed: ')}") from None
    except RecursionError:
        raise MalformedBody("the body is nested too deeply") from None
    finally:
        if collects:
            gc.enable()


def refuse_wide_objects(decoded: dict[str, Any]) -> None:
    """Refuse objects with many members: each may break a rule of its own, and so many that a list of all is worth it are never meant.

    Raises:
        InvalidRequest: one has too many.
    """
    messages = decoded.get("messages")
    found = [(name, decoded.get(name)) for name in ("metadata", "logit_bias", "webhook", "filter", "changes")]
    if isinstance(messages, list):
        found += [(f"messages[{place}]", message) for place, message in enumerate(messages[:MAX_MEMBERS])]
    for field, value in [("body", decoded), *found]:
        if isinstance(value, dict) and len(value) > MAX_MEMBERS:
            message = f"must have at most {MAX_MEMBERS} members"
            raise InvalidRequest(
                f"{field}: {message}",
                param=field,
                errors=[{"field": field, "message": message, "limit": MAX_MEMBERS}],
            )


def refusal(error: ValidationError) -> InvalidRequest:
    """What pydantic found, in our words."""
    found: dict[str, dict[str, Any]] = {}
    details = error.errors(include_url=False, include_input=False)
    for each in details:
        if _is_shadowed(each, details):
            continue
        told = _told(each)
        known = found.setdefault(told["field"], told)
        if told["message"] not in known["message"]:
            known["message"] += f", or {told['message']}"
    errors = list(found.values())
    detail = "; ".join(f"{each['field']}: {each['message']}" for each in errors[:3])
    more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
    return InvalidRequest(detail + more, param=errors[0]["field"], errors=errors[:MAX_ERRORS])


def _is_shadowed(each: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Of the two readings of a text-or-list, the one that has the wrong type says nothing where the other one got further."""
    if not each["loc"] or each["loc"][0] not in _UNIONS or each["type"] not in {"string_type", "list_type"}:
        return False
    if len(each["loc"]) > 2:
        return False
    return any(
        other["loc"][:1] == each["loc"][:1]
        and (len(other["loc"]) > 2 or other["type"] not in {"string_type", "list_type"})
        for other in details
    )


def _told(each: ErrorDetails) -> dict[str, Any]:
    context = each.get("ctx") or {}
    parts = list(each["loc"])
    if parts and parts[0] in _UNIONS:
        del parts[1:2]  # pydantic's name for the reading
    field, message = _path(parts), each["msg"]
    if each["type"] == "value_error":
        message = str(context.get("error", message))
        own = re.fullmatch(r"([a-z_]+(?:\[\d+\])?): (.*)", message, re.DOTALL)
        if own:
            field, message = f"{field}.{own[1]}" if field else own[1], own[2]
    elif each["type"] == "extra_forbidden":
        message = "isn't a known field"
    elif each["type"] == "missing":
        message = "is required"
    told: dict[str, Any] = {"field": field or "body", "message": _in_house_words(message)}
    limit = next((context[name] for name in _LIMITS if name in context), None)
    if limit is not None:
        told["limit"] = limit
    return told


def _path(parts: list[int | str]) -> str:
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":
            name = part if len(part) <= MAX_NAME_CHARS else part[:MAX_NAME_CHARS] + "…"
            path += f".{name}" if path else name
    return path


def _in_house_words(message: str) -> str:
    return re.sub(r"^(?:Input|String|List|Dictionary|Value) should ", "must ", message)
