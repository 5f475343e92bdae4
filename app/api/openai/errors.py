"""How does the face refuse? OpenAI's bodies, `{"error": {message, type, param, code}}`, with the statuses that its clients know."""

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.api.problems import problem, standing_headers
from app.errors import (
    BudgetExhausted,
    PenstockError,
    PromptTooLong,
    Unauthenticated,
    Unavailable,
    UnknownModel,
)
from app.jobs.read import JobView
from app.jobs.refusals import refusal
from app.openai.fields import REQUESTS_FAULT, Generation, in_callers_words
from app.quotas.rates import RateLimited
from app.redis import RedisError
from app.telemetry import emit

log = logging.getLogger("penstock.api.openai")
_encode = msgspec.json.Encoder().encode
AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout, TimeoutError, RedisError)

# What OpenAI calls what we call otherwise: (type, code).
_NAMES: dict[type[PenstockError], tuple[str, str]] = {
    BudgetExhausted: ("insufficient_quota", "insufficient_quota"),
    RateLimited: ("rate_limit_error", "rate_limit_exceeded"),
    Unauthenticated: ("invalid_request_error", "invalid_api_key"),
    UnknownModel: ("invalid_request_error", "model_not_found"),
    PromptTooLong: ("invalid_request_error", "context_length_exceeded"),
}
_TYPES = {401: "invalid_request_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class FaceError:
    """A refusal as OpenAI's clients read it."""

    status: int
    message: str
    type: str
    param: str | None
    code: str | None
    headers: dict[str, str]

    @property
    def body(self) -> dict[str, Any]:
        """The error object; `error` in an answer's body or an event's data."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def answer(self) -> Response:
        """The whole answer."""
        return Response(_encode({"error": self.body}), self.status, self.headers, "application/json")


class JobEndedWithout(PenstockError):
    """A call's job ended without a result. `job_code` is the job's own error code."""

    code = "job_ended"
    status = 500
    retryable = False


def type_of(status: int) -> str:
    """OpenAI's word for what an error of this status is."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def face_error(error: PenstockError, renamed: dict[str, str] | None = None) -> FaceError:
    """Our error in OpenAI's words; `renamed`: fields that the caller knows by another name."""
    status = 400 if error.status == 422 else error.status
    kind, code = type_of(status), error.code
    for cls, names in _NAMES.items():
        if isinstance(error, cls):
            kind, code = names
    message, param = in_callers_words(error.detail, error.extra.get("param"), renamed or {})
    if isinstance(error, JobEndedWithout):
        code = error.extra["job_code"]
        status = error.extra["status"]
        kind = "invalid_request_error" if status < 500 else "server_error"
    headers = standing_headers(error) | error.headers
    if isinstance(error, JobEndedWithout):
        headers["x-should-retry"] = "false"  # the same would happen again, or its caller wanted it so
    return FaceError(status, message, kind, param, code, headers)


def end_of(job: JobView) -> JobEndedWithout:
    """The error that tells of a job which ended without success."""
    error = job.error or {}
    code = str(error.get("code") or job.status)
    message = str(error.get("message") or f"the job ended as {job.status}")
    status = {"cancelled": 409, "expired": 504}.get(job.status, 400 if code in REQUESTS_FAULT else 500)
    return JobEndedWithout(message, job_code=code, status=status)


def away() -> FaceError:
    """A server that we need doesn't answer."""
    return face_error(Unavailable("a server that this needs doesn't answer now; nothing was lost, try again"))


def broken() -> FaceError:
    """Something that we didn't foresee."""
    return face_error(PenstockError("something broke on our side; it was logged"))


def _renamed(request: Request) -> dict[str, str]:
    """The names that the caller of a body which was read has given to the job's fields; what is wrong with the body itself has them already."""
    asked = getattr(request.state, "asked", None)
    return asked.renamed() if isinstance(asked, Generation) else {}


class FaceRoute(APIRoute):
    """A route whose refusals are in OpenAI's words, whoever raised them: the key's check, the body's, the job's."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with its errors told."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except PenstockError as error:
                return face_error(error, _renamed(request)).answer()
            except ValidationError as error:
                return face_error(refusal(error), _renamed(request)).answer()
            except AWAY:
                return away().answer()
            except HTTPException:
                raise
            except Exception as error:  # noqa: BLE001 - the edge of the face: its clients read no other bodies
                emit(log, logging.ERROR, "openai.failed", error=error)
                return broken().answer()

        return handler


class BothRoute(APIRoute):
    """A route of both faces: its problems carry `error` in OpenAI's words besides."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with its errors told."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except PenstockError as error:
                error.extra["error"] = face_error(error).body
                return problem(error)

        return handler
