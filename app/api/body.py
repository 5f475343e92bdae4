"""What does the body say? Read up to the limit, decoded strictly, validated into a type; refusals name field and limit."""

import gc
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from app.errors import BodyTooLarge, MalformedBody, UnsupportedMedia
from app.jobs.refusals import broken_body, refusal, refuse_wide_objects
from app.jobs.request import JobRequest

M = TypeVar("M", bound=BaseModel)

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
            raise broken_body("must be a JSON object") from None
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
