"""Does every chunk leave once and in order, whether the server takes it at once, makes one wait, or fails?"""

import asyncio
import gc
import weakref
from uuid import uuid4

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.api.outlet import DirectApp, Outlet, servers_send
from app.streams.event import Tokens
from app.streams.fold import Fold
from app.streams.reader import Item, Reader, Spare
from app.streams.rows import Output


class Server:
    """An ASGI server's `send`, which waits while its window is shut."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.sent: list[bytes] = []
        self.error: OSError | None = None

    async def send(self, message: Message) -> None:
        await self.is_open.wait()
        await asyncio.sleep(0) if self.error else None
        if self.error is not None:
            raise self.error
        assert message["more_body"]
        self.sent.append(message["body"])


def reader(*, most_bytes: int = 1 << 20) -> Reader:
    async def load(_: object) -> Output:
        raise AssertionError("no output is asked for")

    return Reader(
        uuid4(), Fold(1), most_bytes=most_bytes, load=load, on_close=lambda _: None, now=lambda: 7.0, spare=Spare(0)
    )


def news(number: int) -> Item:
    return Item(Tokens(number, "tokens", 0, 0, 0, str(number), [], None))


def give(reader: Reader, *numbers: int) -> None:
    items = [news(number) for number in numbers]
    reader.put(items, sum(item.size for item in items), 7.0)
    reader.tell()


async def test_a_chunk_that_is_taken_at_once_leaves_nothing_to_wait_for() -> None:
    server = Server()
    outlet = Outlet(server.send)
    assert outlet(b"one") is None
    assert server.sent == [b"one"]


async def test_a_chunk_that_has_to_wait_is_sent_by_whoever_awaits_the_rest() -> None:
    server = Server()
    server.is_open.clear()
    rest = Outlet(server.send)(b"one")
    assert rest is not None
    asyncio.get_running_loop().call_soon(server.is_open.set)
    await rest
    assert server.sent == [b"one"]


async def test_a_send_that_is_given_up_while_it_waits_is_closed() -> None:
    ended = False

    async def send(message: Message) -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended = True

    rest = Outlet(send)(b"one")
    assert rest is not None
    waiting = asyncio.ensure_future(rest)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended


async def test_news_leave_while_the_reader_sleeps() -> None:
    server, one = Server(), reader()
    one.outlet = Outlet(server.send)
    reading = asyncio.create_task(one.read())
    await asyncio.sleep(0)
    give(one, 1)
    give(one, 2, 3)
    assert server.sent == [news(1).wire, news(2).wire + news(3).wire]
    assert not reading.done()
    one.close()
    assert await reading is None


async def test_what_comes_while_the_server_is_busy_is_read_after_what_it_is_busy_with() -> None:
    server, one = Server(), reader()
    one.outlet = Outlet(server.send)
    reading = asyncio.create_task(one.read())
    await asyncio.sleep(0)
    server.is_open.clear()
    give(one, 1)
    assert one.busy_since == 7.0  # from here on it may stall
    give(one, 2)
    await asyncio.sleep(0)
    give(one, 3)
    assert server.sent == []
    assert not reading.done()
    server.is_open.set()
    items = await reading
    assert items is not None
    assert server.sent == [news(1).wire]
    assert [item.event.id for item in items] == [2, 3]


async def test_a_reader_that_is_cut_off_before_its_task_has_seen_the_shut_window_is_stopped() -> None:
    server, one = Server(), reader()
    one.outlet = Outlet(server.send)
    reading = asyncio.create_task(one.read())
    one.stalled = reading.cancel
    await asyncio.sleep(0)
    server.is_open.clear()
    give(one, 1)
    one.cut()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_reader_that_leaves_while_its_window_is_shut_ends() -> None:
    """Nobody would wake it any more: its task would stay for ever, once for each slow caller who hangs up."""
    server, one = Server(), reader()
    one.outlet = Outlet(server.send)
    reading = asyncio.create_task(one.read())
    await asyncio.sleep(0)
    server.is_open.clear()
    give(one, 1)
    await asyncio.sleep(0)
    one.close()
    server.is_open.set()
    async with asyncio.timeout(5):
        assert await reading is None


async def test_a_busy_readers_buffer_fills_up_and_is_bounded_by_whoever_fills_it() -> None:
    server, one = Server(), reader(most_bytes=news(1).size)
    one.outlet = Outlet(server.send)
    reading = asyncio.create_task(one.read())
    await asyncio.sleep(0)
    server.is_open.clear()
    give(one, 1)
    assert not one.is_full  # that is on its way
    give(one, 2)
    assert one.is_full
    had_room: list[bool] = []
    one.call_at_room(lambda: had_room.append(True))
    server.is_open.set()
    await reading
    assert had_room == [True]


async def test_a_send_that_fails_is_the_readers_own_trouble() -> None:
    server, one = Server(), reader()
    one.outlet = Outlet(server.send)
    reading = asyncio.create_task(one.read())
    await asyncio.sleep(0)
    server.error = OSError("gone")
    give(one, 1)  # raises nothing here: the hub has others to serve
    with pytest.raises(OSError, match="gone"):
        await reading


async def test_a_send_that_fails_at_once_is_the_readers_own_trouble_too() -> None:
    async def send(message: Message) -> None:
        raise OSError("gone")

    one = reader()
    one.outlet = Outlet(send)
    reading = asyncio.create_task(one.read())
    await asyncio.sleep(0)
    give(one, 1)
    with pytest.raises(OSError, match="gone"):
        await reading


class Cycle:
    """A request as uvicorn keeps it: it has the scope, and the scope shall not have it."""

    def __init__(self) -> None:
        self.scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


async def test_a_request_leaves_nothing_for_the_garbage_collector() -> None:
    app, direct = DirectApp(), list[bool]()

    async def show(scope: Scope, receive: Receive, send: Send) -> None:
        direct.append(servers_send(scope, send) is not send)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    app.mount("/", show)
    await app(Cycle().scope, Cycle().receive, Cycle().send)  # what is made at the first request only
    cycle = Cycle()
    served = weakref.ref(cycle)
    gc.disable()
    try:
        await app(cycle.scope, cycle.receive, cycle.send)
        assert len(cycle.sent) == 2
        del cycle
        assert served() is None
    finally:
        gc.enable()
    assert direct == [True, True]
