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
from app.errors import PenstockError, Unavailable
from app.jobs.read import JobView
from app.jobs.refusals import refusal
from app.openai.fields import REQUESTS_FAULT, Generation
from app.openai.refusals import Refusal, in_openais_words
from app.redis import RedisError
from app.telemetry import emit

log = logging.getLogger("penstock.api.openai")
_encode = msgspec.json.Encoder().encode
AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout, TimeoutError, RedisError)


@dataclass(frozen=True, slots=True)
class FaceError(Refusal):
    """A refusal with the headers of its answer."""

    headers: dict[str, str]

    def answer(self) -> Response:
        """The whole answer."""
        return Response(_encode({"error": self.body}), self.status, self.headers, "application/json")


class JobEndedWithout(PenstockError):
    """A call's job ended without a result. `job_code` is the job's own error code."""

    code = "job_ended"
    status = 500
    retryable = False


def face_error(error: PenstockError, renamed: dict[str, str] | None = None) -> FaceError:
    """Our error in OpenAI's words; `renamed`: fields that the caller knows by another name."""
    told = in_openais_words(error, renamed or {})
    headers = standing_headers(error) | error.headers
    status, kind, code = told.status, told.type, told.code
    if isinstance(error, JobEndedWithout):
        code, status = error.extra["job_code"], error.extra["status"]
        kind = "invalid_request_error" if status < 500 else "server_error"
        headers["x-should-retry"] = "false"  # the same would happen again, or its caller wanted it so
    return FaceError(status, told.message, kind, told.param, code, headers)


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
