"""How is refused what no route of the face has answered: an unknown path or method, a server that is away? In its words, too."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response

from app.api.openai.errors import BothRoute, FaceRoute
from app.api.openapi import PROBLEM
from app.openai.refusals import type_of

_PREFIX = "/v1/"
_encode = msgspec.json.Encoder().encode
Handler = Callable[[Request, Exception], Response | Awaitable[Response]]


def install(app: FastAPI) -> None:
    """Let the handlers of errors that the app has now speak OpenAI's words below `/v1/`, but for paths that are only ours.

    Where both faces have a path, or none, the answer is a problem document with `error` in it.
    """
    own, faces = set[str](), set[str]()
    for route in app.state.all_routes:
        if isinstance(route, FaceRoute):
            faces.add(_room_of(route.path))
        elif not isinstance(route, BothRoute):
            own.add(_room_of(route.path))
    for kind, handle in list(app.exception_handlers.items()):
        app.add_exception_handler(kind, _faced(handle, own, faces))


def _room_of(path: str) -> str:
    """The first part of a path below `/v1/`, empty elsewhere."""
    return path.removeprefix(_PREFIX).partition("/")[0] if path.startswith(_PREFIX) else ""


def _faced(handle: Handler, own: set[str], faces: set[str]) -> Handler:
    async def handler(request: Request, error: Exception) -> Response:
        made = handle(request, error)
        answer = made if isinstance(made, Response) else await made
        room = _room_of(request.url.path)
        is_problem = answer.headers.get("content-type") == PROBLEM
        if not room or room in own or not is_problem:
            return answer
        problem = msgspec.json.decode(answer.body)
        status, body = answer.status_code, problem
        if room in faces:
            status, body = 400 if status == 422 else status, {}
        body |= {"error": problem.get("error") or _error_of(problem, status)}
        headers = {
            name: value for name, value in answer.headers.items() if name not in {"content-length", "content-type"}
        }
        return Response(_encode(body), status, headers, "application/json" if room in faces else PROBLEM)

    return handler


def _error_of(problem: dict[str, Any], status: int) -> dict[str, Any]:
    return {
        "message": problem["detail"],
        "type": type_of(status),
        "param": problem.get("param"),
        "code": problem["code"],
    }
