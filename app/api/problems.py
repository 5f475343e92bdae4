"""How does a refusal look? RFC 9457 problem documents, one kind an error code; `type` leads to a page that explains the code."""

import inspect
import random
from collections.abc import Iterator, Mapping

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from psycopg.errors import UndefinedColumn, UndefinedTable
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from app.api.documents import ErrorPage, Explanation
from app.api.openapi import PROBLEM, problems
from app.endings import JOB_CODES, LINE_CODES, Explained
from app.errors import (
    BudgetExhausted,
    InvalidRequest,
    MethodNotAllowed,
    ModelUnavailable,
    NotFound,
    Overloaded,
    PenstockError,
    QueueLimitReached,
    ShareExceeded,
    Unauthenticated,
    Unavailable,
)
from app.redis import RedisError
from app.wording import in_house_words

MAX_DETAIL_CHARS = 1000
_encode = msgspec.json.Encoder().encode

router = APIRouter(tags=["errors"])


def problem(error: PenstockError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that tells this error."""
    detail = error.detail if len(error.detail) <= MAX_DETAIL_CHARS else error.detail[:MAX_DETAIL_CHARS] + "…"
    body = error.extra | {
        "type": f"/errors/{error.code}",
        "title": _title(error.code),
        "status": error.status,
        "detail": detail,
        "code": error.code,
        "retryable": error.retryable,
    }
    all_headers = {**standing_headers(error), **error.headers, **(headers or {})}
    return Response(_encode(body), error.status, all_headers, PROBLEM)


def error_classes() -> dict[str, type[PenstockError]]:
    """Every class of the error tree by its public code."""
    return {cls.code: cls for cls in _tree(PenstockError)}


def install(app: FastAPI) -> None:
    """Let every error of the app be told as a problem."""
    app.add_exception_handler(PenstockError, _ours)
    app.add_exception_handler(HTTPException, _frameworks)
    app.add_exception_handler(RequestValidationError, _parameters)
    for kind in (OperationalError, InterfaceError, InternalError, ProgrammingError, PoolTimeout, TimeoutError):
        app.add_exception_handler(kind, _databases)
    app.add_exception_handler(RedisError, _redis)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _unforeseen)


@router.get(
    "/errors/{code}",
    operation_id="explainError",
    summary="What an error code means",
    response_model=ErrorPage,
    responses=problems(404),
)
async def explain(code: str) -> ErrorPage:
    """The page that a problem's `type` leads to."""
    cls, job, line = error_classes().get(code), JOB_CODES.get(code), LINE_CODES.get(code)
    ending = job or line
    if cls is not None:
        meaning = inspect.cleandoc(cls.__doc__ or "")
    elif ending is not None:
        meaning = ending.meaning
    else:
        raise NotFound("there is no such code")
    return ErrorPage(
        code=code,
        title=_title(code),
        status=None if cls is None else cls.status,
        retryable=None if cls is None else cls.retryable,
        meaning=meaning,
        job=_explanation(job),
        line=_explanation(line),
    )


def _explanation(found: Explained | None) -> Explanation | None:
    return None if found is None else Explanation(meaning=found.meaning, advice=found.advice)


def _tree(cls: type[PenstockError]) -> Iterator[type[PenstockError]]:
    yield cls
    for below in cls.__subclasses__():
        yield from _tree(below)


def _title(code: str) -> str:
    return code.replace("_", " ").capitalize()


def standing_headers(error: PenstockError) -> dict[str, str]:
    """The headers that every answer with this error carries."""
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, BudgetExhausted):
        return {"x-should-retry": "false"}  # the openai client would try a 429 again
    if isinstance(error, ModelUnavailable | Overloaded | ShareExceeded):
        return {"Retry-After": str(error.extra["retry_after_s"])}
    if isinstance(error, Unavailable | QueueLimitReached):
        # Spread, so that those who were refused together don't come back together.
        return {"Retry-After": str(random.randint(1, 4))}  # noqa: S311
    return {}


async def _ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, PenstockError)
    return problem(error)


async def _frameworks(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return problem(NotFound("there is nothing at this path"))
    if error.status_code == 405:
        methods = ", ".join(sorted(_methods_here(request))) or (error.headers or {}).get("Allow", "")
        return problem(MethodNotAllowed(f"this path has {methods}"), {"Allow": methods})
    refusal = InvalidRequest(str(error.detail))
    return problem(refusal, error.headers)


def _methods_here(request: Request) -> set[str]:
    """What `Allow` says: the methods of every route with this path; Starlette names only the first one's."""
    found: set[str] = set()
    for route in request.app.state.all_routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            found |= route.methods or set()
    return found


async def _parameters(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = str(first["loc"][-1])
    return problem(InvalidRequest(f"{field}: {in_house_words(first['msg'])}", param=field))


async def _databases(request: Request, error: Exception) -> Response:
    if isinstance(error, ProgrammingError) and not isinstance(error.orig, UndefinedTable | UndefinedColumn):
        return await _unforeseen(request, error)
    if isinstance(error, DBAPIError) and isinstance(error.orig, UndefinedTable | UndefinedColumn):
        return problem(Unavailable("the database isn't migrated to what this version wants: run `penstock migrate`"))
    return problem(Unavailable("Postgres doesn't answer now; nothing was lost, try again"))


async def _redis(_: Request, __: Exception) -> Response:
    return problem(Unavailable("Redis doesn't answer now; nothing was lost, try again"))


async def _left(_: Request, __: Exception) -> Response:
    return problem(InvalidRequest("the body ended early"))  # nobody reads it


async def _unforeseen(_: Request, __: Exception) -> Response:
    return problem(PenstockError("something broke on our side; it was logged"))
