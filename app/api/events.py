"""How does a caller watch a job? GET /v1/jobs/{id}/events: server-sent events from any place, as it runs and after its end."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.types import Receive, Scope, Send

from app.api.authentication import Reader as MayRead
from app.api.jobs import JobId, id_of
from app.api.openapi import problems
from app.api.outlet import Outlet, servers_send
from app.api.paging import given_of
from app.api.runtime import runtime_of
from app.errors import InvalidRequest
from app.streams.reader import Reader, wire_of

MAX_ID = 2**53 - 1  # what every client can count to
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_HELLO = b"retry: 1000\n\n"  # milliseconds until an EventSource comes back
_BEAT = b": still here\n\n"
_CUT = b": cut off; come back with the last id\n\n"

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events, up to and with `finished`. A stream that ends before it is to be gone on with.",
        "content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/ServerSentEvent"}}},
        "headers": {
            "X-Accel-Buffering": {
                "description": "`no`: proxies shall pass events on at once.",
                "schema": {"type": "string"},
            }
        },
    },
    204: {"description": "The job has ended, and nothing follows that event. An EventSource doesn't come back."},
}

router = APIRouter(prefix="/v1", tags=["jobs"])


@router.get(
    "/jobs/{id}/events",
    operation_id="readJobEvents",
    summary="Watch a job",
    response_class=Response,
    responses=_ANSWERS | problems(401, 403, 404, 410, 422, 503),
)
async def read_events(
    request: Request,
    name: JobId,
    caller: MayRead,
    starting_after: Annotated[
        str | None, Query(description="The id of the last event that is known; 0, or nothing: from the beginning.")
    ] = None,
    last_event_id: Annotated[
        str | None,
        Header(description="As `starting_after`, and goes before it: what an EventSource sends when it comes back."),
    ] = None,
) -> Response:
    """What happens to a job and what it writes, from any event on."""
    given_of(request.query_params, ("starting_after",))  # a misspelt offset must not be the beginning
    after = _after(starting_after, "starting_after")
    if last_event_id:
        after = _after(last_event_id, "Last-Event-ID")
    reader = await runtime_of(request).streams.open(caller.tenant_id, id_of(name), after)
    if reader.is_over:
        reader.close()
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    return EventStream(reader)


def _after(value: str | None, param: str) -> int:
    if not value:
        return 0
    if not (value.isascii() and value.isdigit() and len(value) <= 16 and int(value) <= MAX_ID):
        raise InvalidRequest(f"{param} must be the id of an event, a whole number from 0 to {MAX_ID}", param=param)
    return int(value)


class EventStream(Response):
    """A response that sends what its reader gets, until the job's end, the caller's, or ours."""

    media_type = "text/event-stream"

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events as they come. A caller who takes nothing for long is hung up on."""
        reader = self._reader
        leaving = asyncio.create_task(_close_when_gone(reader, receive))
        sending = asyncio.current_task()
        assert sending is not None
        reader.stalled = sending.cancel
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await send({"type": "http.response.body", "body": _HELLO, "more_body": True})
            send = servers_send(scope, send)
            reader.outlet = Outlet(send)
            while (items := await reader.read()) is not None:
                body = wire_of(items) if items else _BEAT
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": _CUT if reader.cut_off else b"", "more_body": False})
        except asyncio.CancelledError:
            if not reader.cut_off:
                raise
            sending.uncancel()  # our own doing: the connection is closed by whoever called us
        finally:
            leaving.cancel()
            reader.close()


async def _close_when_gone(reader: Reader, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.close()
