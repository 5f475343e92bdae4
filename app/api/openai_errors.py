"""How does a refusal look where OpenAI's clients ask? Our problem document, with their `error` object in it."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.errors import PenstockError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class OpenAIRoute(APIRoute):
    """A route whose problems have the member `error`, which OpenAI's clients read: message, type, param and code."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route, its errors told in both ways."""
        handle = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handle(request)
            except PenstockError as error:
                error.extra["error"] = {
                    "message": error.detail,
                    "type": _TYPES.get(
                        error.status, "server_error" if error.status >= 500 else "invalid_request_error"
                    ),
                    "param": error.extra.get("param"),
                    "code": error.code,
                }
                raise

        return told
