"""Does a reader who comes while an answer of Redis is on its way get what stands before that answer?"""

import asyncio
from typing import Any

import httpx
import pytest

from app.queue.events import EventLog
from tests.support.api import HandWorker, job_id_of
from tests.support.streams import Heard, Served, Writer, read_to_end, submitted, watching


class HeldAnswers:
    """Stands before the hub's doorway: answers that were asked for while it is shut wait until it opens."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self._read = served.hub._doorway.read
        self._is_open = asyncio.Event()
        self._is_open.set()
        self.held = asyncio.Event()
        monkeypatch.setattr(served.hub._doorway, "read", self.read)

    async def read(self, *args: Any, **options: Any) -> Any:
        answer = await self._read(*args, **options)
        if not self._is_open.is_set() and any(key.startswith(b"ev:") for key, _ in answer):
            self.held.set()
            await self._is_open.wait()
        return answer

    def shut(self) -> None:
        self._is_open.clear()

    def open(self) -> None:
        self._is_open.set()


async def test_an_answer_in_flight_isnt_for_those_who_came_after_the_question(
    served: Served, client: httpx.AsyncClient, worker: HandWorker, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = HeldAnswers(served, monkeypatch)
    job, first, second = await submitted(client), Heard(), Heard()
    writer = Writer(log, job_id_of(job))
    await worker.start(job)
    await writer.start()
    await writer.write("Once")
    async with asyncio.timeout(20), watching(client, job, first) as events:
        while first.text() != "Once":
            await anext(events)
        answers.shut()
        await writer.write(" upon")
        await answers.held.wait()  # for the first reader, from "Once" on
        reading = asyncio.create_task(read_to_end(client, job, second))
        while served.hub.num_readers < 2:
            await asyncio.sleep(0.005)
        answers.open()
        while second.text() != "Once upon":  # while the job runs
            assert not reading.done()
            await asyncio.sleep(0.005)
        while first.text() != "Once upon":
            await anext(events)
    writer.deltas(" a time", reasons={0: "stop"})
    await worker.finish(job | {"status": "running"}, **writer.result())
    async with asyncio.timeout(20):
        await reading
    assert second.text() == "Once upon a time"
    assert second.kinds.count("started") == 1
