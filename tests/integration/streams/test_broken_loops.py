"""Is a loop that breaks seen, and does it turn again?"""

import asyncio
import logging
from typing import Any

import httpx
import pytest

from app.queue.events import EventLog
from app.queue.keys import ENDED_CHANNEL
from app.redis import Redis
from tests.support.api import HandWorker, assert_problem, job_id_of, until
from tests.support.streams import Heard, Served, Writer, read_to_end, submitted, watching


class Break:
    """Takes a method's place, and raises until it is mended: however late a test looks, it finds the loop broken."""

    def __init__(self, owner: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real, self.is_done, self.is_mended = getattr(owner, name), False, False
        monkeypatch.setattr(owner, name, self)

    async def __call__(self, *args: Any) -> Any:
        if self.is_mended:
            return await self._real(*args)
        self.is_done = True
        raise KeyError("what nobody foresaw")

    def mend(self) -> None:
        self.is_mended = True


@pytest.fixture(autouse=True)
def _soon_trusted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.runtime.loops, "_steady_s", 1.0)


async def test_streams_that_break_are_seen_and_turn_again(
    served: Served,
    client: httpx.AsyncClient,
    worker: HandWorker,
    log: EventLog,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    job, heard = await submitted(client), Heard()
    writer = Writer(log, job_id_of(job))
    await worker.start(job)
    await writer.start()
    await writer.write("Once")
    broken = Break(served.hub, "_spread", monkeypatch)
    async with asyncio.timeout(20):
        await read_to_end(client, job, heard)  # cut off, not left to wait for ever
        assert broken.is_done
        assert heard.comments[-1].startswith(": cut off")
        assert_problem(await client.get("/readyz"), 503, "unavailable", "streams", "KeyError")
        broken.mend()
        records = [each for each in caplog.records if each.getMessage() == "api.loop_broke"]
        assert {each.fields["loop"] for each in records} == {"streams"}  # type: ignore[attr-defined]
        async with watching(client, job, heard) as events:
            while heard.text() != "Once":
                await anext(events)
            await writer.write(" upon")
            while heard.text() != "Once upon":
                await anext(events)
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.05)


async def test_reading_loads_that_breaks_does_as_well(
    served: Served, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Break(served.runtime.loads, "refresh", monkeypatch)
    await until(lambda: "loads" in served.runtime.loops.broken)
    assert_problem(await client.get("/readyz"), 503, "unavailable", "loads", "KeyError")
    assert broken.is_done
    broken.mend()
    await until(lambda: "loads" not in served.runtime.loops.broken)
    assert (await client.get("/readyz")).status_code == 200


async def test_so_does_hearing_of_ends(
    served: Served, client: httpx.AsyncClient, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = served.runtime.watch
    await until(watch.subscribed.is_set)
    with monkeypatch.context() as patch:
        patch.setattr(watch, "_heard", lambda _: {}["what nobody foresaw"])
        async with asyncio.timeout(20):
            while (answer := await client.get("/readyz")).status_code == 200:
                await redis.publish(ENDED_CHANNEL, b"x")
                await asyncio.sleep(0.05)
        assert_problem(answer, 503, "unavailable", "waiting", "KeyError")
    await until(watch.subscribed.is_set)
    await until(lambda: "waiting" not in served.runtime.loops.broken)


async def test_what_broke_isnt_raised_when_the_process_ends(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    Break(served.hub, "_spread", monkeypatch)
    Break(served.runtime.loads, "refresh", monkeypatch)
    await until(lambda: "loads" in served.runtime.loops.broken)
