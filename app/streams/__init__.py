"""Streams: the events of a job for whoever reads it, from any place, as it runs and after its end.

The hub (`hub.py`) reads for all readers of a process. `follow` is how other rooms read a job.
"""

from collections.abc import AsyncGenerator
from typing import Protocol
from uuid import UUID

from app.errors import StreamCut
from app.streams.event import Event, Finished, Tokens
from app.streams.hub import Hub

__all__ = ["Event", "Finished", "HasStreams", "Hub", "Tokens", "follow"]


class HasStreams(Protocol):
    """What holds a process's hub, such as the API's runtime."""

    @property
    def streams(self) -> Hub:
        """The hub."""
        ...


async def follow(parts: HasStreams, job_id: UUID, tenant: str, after: int = 0) -> AsyncGenerator[Event]:
    """The events of the tenant's job after the event `after` (0: all), without gap or repeat, up to and with `finished`.

    Use it in `contextlib.aclosing`, or read it to its end: what is dropped half read is closed later than you think.

    Raises:
        NotFound: the tenant has no such job.
        OutputForgotten: the job has ended so long ago that its output isn't kept.
        StreamsFull: this process has as many readers as it may.
        StreamCut: the process is going to end, this reader took nothing for too long, or the output has passed its retention or was made
            anew meanwhile. Go on after the last event's id.
        Unavailable: Postgres doesn't answer.
    """
    reader = await parts.streams.open(tenant, job_id, after)
    try:
        while (items := await reader.read()) is not None:
            for item in items:
                yield item.event
        if reader.cut_off:
            raise StreamCut("the stream was cut off before its end; go on after the last event")
    finally:
        reader.close()
