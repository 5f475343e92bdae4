"""Both clients behind one face: each test here runs with the sync one and with the async one."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from app.client import AsyncPenstock, Event, Job, Penstock, Retries
from tests.support.hostile import Slept

KEY = "pk_000000000000_secret"
Handler = Callable[[httpx.Request], httpx.Response]


@dataclass
class Driven:
    """A client whose sleeps take no time. `handler` answers instead of a network where it is given."""

    kind: str
    url: str = "http://127.0.0.1:1"
    handler: Handler | None = None
    retries: Retries = field(default_factory=Retries)
    slept: Slept = field(default_factory=Slept)
    draw: float = 0.0
    told: list[tuple[Any, float]] = field(default_factory=list)

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """What the method returns."""
        if self.kind == "sync":
            with self._sync() as penstock:
                return getattr(penstock, name)(*args, **options)
        return asyncio.run(self._call(name, args, options))

    def events(self, job: Job | str = "job_1", **options: Any) -> list[Event]:
        """A whole stream."""
        return self._all("stream", job, **options)

    def listed(self, **options: Any) -> list[Job]:
        """All jobs of a list."""
        return self._all("list", **options)

    def _all(self, name: str, *args: Any, **options: Any) -> list[Any]:
        if self.kind == "sync":
            with self._sync() as penstock:
                return list(getattr(penstock, name)(*args, **options))

        async def gathered() -> list[Any]:
            async with self._async() as penstock:
                return [each async for each in getattr(penstock, name)(*args, **options)]

        return asyncio.run(gathered())

    async def _call(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        async with self._async() as penstock:
            return await getattr(penstock, name)(*args, **options)

    def _sync(self) -> Penstock:
        return Penstock(
            self.url, KEY, sleep=self.slept, transport=httpx.MockTransport(self.handler) if self.handler else None, **self._shared()
        )  # fmt: skip

    def _async(self) -> AsyncPenstock:
        return AsyncPenstock(
            self.url, KEY, sleep=self.slept.asleep, transport=httpx.MockTransport(self.handler) if self.handler else None, **self._shared()
        )  # fmt: skip

    def _shared(self) -> dict[str, Any]:
        def tell(error: Any, delay_s: float) -> None:
            self.told.append((error, delay_s))

        return {"retries": self.retries, "clock": self.slept.clock, "draw": lambda: self.draw, "on_retry": tell}


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which client."""
    return str(request.param)


@pytest.fixture
def driven(kind: str) -> Callable[..., Driven]:
    """Makes a client."""
    return lambda **options: Driven(kind, **options)


def answers(*responses: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """A handler that gives these in their order, and what it was asked."""
    seen: list[httpx.Request] = []
    rest: Iterator[httpx.Response | Exception] = iter(responses)

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = next(rest)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handler, seen


def problem(status: int, headers: dict[str, str] | None = None, **members: Any) -> httpx.Response:
    """A refusal."""
    return httpx.Response(status, json=members, headers=headers)
