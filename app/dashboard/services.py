"""What do the pages need of the process that serves them? Its pools and boards, passed in: this room doesn't know the API."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.requests import Request

from app.clock import Clock
from app.jobs.breakers import BreakerBoard
from app.jobs.lengths import LengthBook
from app.jobs.loads import LoadBoard
from app.jobs.models import ModelCatalog
from app.looks import Looks
from app.queue.events import EventLog
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings


class Services(Protocol):
    """The part of the API's runtime that pages use."""

    settings: Settings
    clock: Clock
    engine: AsyncEngine
    redis: Redis
    catalog: ModelCatalog
    breakers: BreakerBoard
    looks: Looks
    loads: LoadBoard
    lengths: LengthBook
    events: EventLog

    def decided(self) -> dict[str, int]:
        """How many submissions this process has decided since its start, by `decision:reason`."""
        ...

    def queue(self, pool: str) -> JobQueue:
        """The pool's queue."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """One transaction, committed at its end; bounded in time."""
        ...


def services_of(request: Request) -> Services:
    """Those of the app that serves this request."""
    found: Services = request.app.state.services()
    return found
