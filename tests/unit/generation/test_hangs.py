"""Is an engine that makes no step told from a supervisor that was away itself?"""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from app.settings import Settings
from workers.engine.protocol import EngineStats
from workers.generation.engine_life import EngineHung, EngineLife


class Enough(Exception):
    """All looks are over."""


class Looks:
    """The monotonic clock at each look."""

    def __init__(self, times_s: Sequence[float]) -> None:
        self._times_s = iter(times_s)

    def monotonic(self) -> float:
        time_s = next(self._times_s, None)
        if time_s is None:
            raise Enough
        return time_s

    def now(self) -> float:
        return 0.0


async def watch(monkeypatch: pytest.MonkeyPatch, times_s: Sequence[float]) -> None:
    """Watch an engine that has a job and makes no step, by looks at these times."""

    async def at_once(_: float) -> None:
        return

    monkeypatch.setattr(asyncio, "sleep", at_once)
    worker: Any = SimpleNamespace(stats=EngineStats(step=7), hand={"job.1": SimpleNamespace(is_ending=False)})
    await EngineLife(Settings(engine_hang_s=30), Looks(times_s), asyncio.Event()).watch_for_hang(worker)


async def test_an_engine_that_makes_no_step_for_half_a_minute_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Enough):
        await watch(monkeypatch, range(30))
    with pytest.raises(EngineHung):
        await watch(monkeypatch, range(31))


async def test_a_supervisor_that_was_stopped_for_a_minute_does_not_blame_its_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(Enough):
        await watch(monkeypatch, [0, 1, 61, 62, 63])
    with pytest.raises(EngineHung):
        await watch(monkeypatch, [0, 1, *range(61, 91)])
