"""How is a call answered in a stream? Events as they come, an `error` where it goes wrong, `data: [DONE]` at the end."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec

from app.api.openai.errors import AWAY, away, broken, end_of, face_error
from app.api.openai.running import Call, leave
from app.api.openai.sse import DONE, EventStream, data_event
from app.errors import PenstockError
from app.jobs.read import JobView
from app.telemetry import emit

log = logging.getLogger("penstock.api.openai")


def stream(call: Call, events: AsyncGenerator[bytes], others: Sequence[Call] = ()) -> EventStream:
    """The answer to a call whose events are these. Where it ends early, its job goes with it unless it is kept; those of `others`, too."""
    outcome = _Outcome()

    async def on_end(has_left: bool) -> None:
        if has_left or not outcome.is_whole:
            for each in (call, *others):
                await leave(each)

    return EventStream(_guarded(events, outcome), call.headers, on_end, stall_s=call.runtime.settings.stream_stall_s)


class _Outcome:
    """Whether a stream was told to its end."""

    is_whole = False


async def _guarded(events: AsyncGenerator[bytes], outcome: _Outcome) -> AsyncGenerator[bytes]:
    try:
        async for event in events:
            yield event
        outcome.is_whole = True
    except PenstockError as error:
        yield error_event(face_error(error).body)
    except AWAY:
        yield error_event(away().body)
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - the edge of a stream: its reader must learn that it ended
        emit(log, logging.ERROR, "openai.stream_failed", error=error)
        yield error_event(broken().body)
    yield DONE


def error_event(body: dict[str, Any]) -> bytes:
    """What clients of all of the face's streams raise as an error."""
    return b"event: error\ndata: " + msgspec.json.encode({"error": body}) + b"\n\n"


def succeeded(job: JobView) -> JobView:
    """The job itself. Raises JobEndedWithout where it ended otherwise."""
    if job.status != "succeeded":
        raise end_of(job)
    return job


def chunks(made: list[dict[str, Any]], write: Callable[[dict[str, Any]], bytes] = data_event) -> bytes:
    """Several events in one piece."""
    return b"".join(map(write, made))
