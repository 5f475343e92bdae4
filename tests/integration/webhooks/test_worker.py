"""Is each delivery made whatever happens to the worker, to RQ and to Redis? Real processes, real signals."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest
from rq import Queue
from sqlalchemy.ext.asyncio import AsyncEngine

from app.settings import Settings
from app.settings import settings as settings_of_process
from app.webhooks.dispatch import connect_rq, dispatch_due, open_queue
from app.webhooks.nominate import Rooms
from tests.support.receiver import Receiver, receiver
from tests.support.webhooks import notify, pass_time, state, tries, trust, webhook_id
from workers.webhooks.deliver import deliver

ROOMS = Rooms(again_after_s=60.0, most=1024, cautious=1024)


@pytest.fixture
async def server() -> AsyncIterator[Receiver]:
    async with receiver() as it:
        yield it


@pytest.fixture
def queue(settings: Settings) -> Iterator[Queue]:
    with connect_rq(settings) as redis:
        yield open_queue(redis)


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    return environment | {"PENSTOCK_WEBHOOK_ALLOW_LOCAL": "true"}


class Process:
    """A webhook worker; its log is at `log`."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "workers.webhooks.main"], env=environment, stderr=stderr, stdout=stderr
            )

    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    async def stop(self, number: signal.Signals) -> int:
        self.popen.send_signal(number)
        return await asyncio.to_thread(self.popen.wait, 60)


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(more: dict[str, str] | None = None) -> Process:
        started.append(Process(environment | (more or {}), tmp_path / f"webhooks-{len(started)}.log"))
        return started[-1]

    yield start
    for each in started:
        each.popen.kill()
        each.popen.wait(10)


@pytest.fixture
async def dispatching(engine: AsyncEngine, queue: Queue) -> AsyncIterator[None]:
    """What the maintenance process does, more often. A round isn't cancelled: its thread would go on, and connect anew."""
    is_over = asyncio.Event()

    async def rounds() -> None:
        while not is_over.is_set():
            await dispatch_due(engine, queue, Rooms(again_after_s=1.0, most=1024, cautious=1024))
            with suppress(TimeoutError):
                await asyncio.wait_for(is_over.wait(), 0.1)

    task = asyncio.create_task(rounds())
    yield
    is_over.set()
    await asyncio.gather(task, return_exceptions=True)


async def ended(engine: AsyncEngine, one: UUID) -> str:
    """Its status, as soon as it isn't pending. A receiver has it a moment before Postgres does."""
    async with asyncio.timeout(30):
        while (row := await state(engine, one)).status == "pending":
            await asyncio.sleep(0.02)
    return row.status


async def test_a_slow_endpoint_delays_nobody_and_a_stop_waits_for_what_is_under_way(
    engine: AsyncEngine, queue: Queue, server: Receiver, start: Callable[..., Process]
) -> None:
    async with receiver() as slow:
        await _slow_beside_quick(engine, queue, slow, server, start)


async def _slow_beside_quick(
    engine: AsyncEngine, queue: Queue, slow: Receiver, server: Receiver, start: Callable[..., Process]
) -> None:
    slow.hold.add("/")
    await trust(engine, slow.url(), server.url())
    ids = await notify(engine, *[slow.url()] * 10, *[server.url()] * 10)
    await dispatch_due(engine, queue, ROOMS)
    process = start()
    await server.wait(10)
    await slow.wait(10)
    stopped = asyncio.create_task(process.stop(signal.SIGTERM))
    for one in ids[10:]:
        assert await ended(engine, one) == "delivered"
    async with asyncio.timeout(30):
        while queue.connection.scard("rq:workers"):
            await asyncio.sleep(0.02)
    slow.release()
    assert await stopped == 0
    for one in ids[:10]:
        assert (await state(engine, one)).status == "delivered"
    assert (len(slow.received), len(server.received)) == (10, 10)
    assert queue.connection.keys("rq:job:*") == []
    events = process.events()
    assert [each["event"] for each in events if each["event"] != "webhook_tried"] == [
        "webhook_worker_started",
        "draining",
    ]
    assert {(each["outcome"], each["http_status"]) for each in events if each["event"] == "webhook_tried"} == {
        ("delivered", 204)
    }
    assert "http://" not in process.log.read_text()


@pytest.mark.usefixtures("dispatching")
async def test_a_worker_killed_in_mid_post_is_followed_by_a_post_with_the_same_id(
    engine: AsyncEngine, server: Receiver, start: Callable[..., Process]
) -> None:
    server.hold.add("/")
    (one,) = await notify(engine, server.url())
    killed = start()
    await server.wait(1)
    server.hold.clear()
    await killed.stop(signal.SIGKILL)
    assert (await state(engine, one)).leased_until is not None
    await pass_time(engine, 3600)  # its lease has run out
    start()
    again = await server.wait(2)
    assert {each.headers["webhook-id"] for each in again} == {await webhook_id(engine, one)}
    assert await ended(engine, one) == "delivered"
    assert [(each.number, each.http_status) for each in await tries(engine, one)] == [(1, None), (2, 204)]


@pytest.mark.usefixtures("dispatching")
async def test_deliveries_survive_the_loss_of_redis_and_strangers_in_it_are_not_obeyed(
    engine: AsyncEngine, queue: Queue, server: Receiver, start: Callable[..., Process], tmp_path: Path
) -> None:
    (early,) = await notify(engine, server.url("/early"))
    async with asyncio.timeout(20):
        while queue.count == 0:
            await asyncio.sleep(0.02)
    queue.connection.flushdb()
    # Whoever writes to Redis names a function, sends what can't be read, or a number that isn't due.
    trap = tmp_path / "trap"
    queue.enqueue("pathlib.Path.touch", str(trap))
    queue.connection.hset("rq:job:odd", mapping={"data": b"\x80\x04pickle", "created_at": "never"})
    queue.connection.rpush(queue.key, "odd", "nonsense", f"{early.hex}-7")
    queue.enqueue("workers.webhooks.deliver.deliver", early.hex, 7)
    queue.enqueue("workers.webhooks.deliver.deliver", "no id", 1)
    start()
    (got,) = await server.wait(1)
    assert got.headers["webhook-id"] == await webhook_id(engine, early)
    (late,) = await notify(engine, server.url("/late"))
    assert await ended(engine, early) == await ended(engine, late) == "delivered"
    assert not queue.connection.exists("rq:job:odd")
    queue.connection.flushdb()  # under the worker's feet
    (last,) = await notify(engine, server.url("/last"))
    assert await ended(engine, last) == "delivered"
    assert [each.path for each in server.received] == ["/early", "/late", "/last"]
    assert not trap.exists()


async def test_the_function_also_works_alone(
    engine: AsyncEngine, server: Receiver, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a plain `rq worker --serializer json`; and twice, as RQ may call it."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (one,) = await notify(engine, server.url())
    settings_of_process.cache_clear()
    try:
        await asyncio.to_thread(deliver, one.hex, 1)
        await asyncio.to_thread(deliver, one.hex, 1)
    finally:
        settings_of_process.cache_clear()
    assert (await state(engine, one)).status == "delivered"
    assert len(server.received) == 1


async def test_a_configuration_that_cant_work_ends_the_process_with_a_reason(
    environment: dict[str, str], tmp_path: Path
) -> None:
    process = Process(environment | {"PENSTOCK_WEBHOOK_LEASE_S": "1"}, tmp_path / "log")
    assert await asyncio.to_thread(process.popen.wait, 30) == 1
    assert "PENSTOCK_WEBHOOK_LEASE_S must be more" in process.events()[-1]["reason"]
