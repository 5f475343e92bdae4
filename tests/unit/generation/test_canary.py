"""Is an engine that gives no answer to its self-test told from a supervisor that was away itself?"""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from workers.engine.protocol import Request, RequestFailed, TokenDelta
from workers.generation.canary import Canary, EngineUnfit

TIMEOUT_S = 0.5


class Engine:
    """Takes a request and does nothing about it."""

    def __init__(self) -> None:
        self.info = SimpleNamespace(vocab_size=500, max_model_len=100)
        self.added = asyncio.Event()
        self.aborted: list[str] = []

    async def add(self, request: Request) -> None:
        self.name = request.id
        self.added.set()

    async def abort(self, name: str) -> None:
        self.aborted.append(name)


def canary_of(engine: Any) -> Canary:
    return Canary(engine, "null", timeout_s=TIMEOUT_S)


async def test_no_answer_in_time_is_an_unfit_engine() -> None:
    engine = Engine()
    with pytest.raises(EngineUnfit, match=r"no answer to its self-test within 0\.5 s"):
        await canary_of(engine).sing()
    assert engine.aborted == [engine.name]


async def test_an_answer_that_comes_while_the_supervisor_is_stopped_is_in_time() -> None:
    engine = Engine()
    canary = canary_of(engine)
    singing = asyncio.create_task(canary.sing())
    await engine.added.wait()
    time.sleep(3 * TIMEOUT_S)  # noqa: ASYNC251 - nothing of this process goes on meanwhile
    await asyncio.sleep(TIMEOUT_S / 5)  # it is read after the timers that are due
    canary.take(TokenDelta(engine.name, 0, 0, list(range(16)), "length"))
    await singing
    assert engine.aborted == []


async def test_a_refusal_is_told_at_once() -> None:
    engine = Engine()
    canary = canary_of(engine)
    singing = asyncio.create_task(canary.sing())
    await engine.added.wait()
    canary.fail(RequestFailed(engine.name, "too_long", "no room"))
    with pytest.raises(EngineUnfit, match="no room"):
        await singing
