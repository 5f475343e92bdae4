"""The child's end of the socket, and the parent's: nothing blocks for good, nothing is torn."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from workers.engine import wire
from workers.engine.channel import Channel, ParentGone
from workers.engine.process import _Connection

LARGE = 16 << 20  # more than any socket holds


@pytest.fixture
def ends():
    parent, child = socket.socketpair()
    with parent, child:
        yield parent, child


@pytest.fixture
def in_thread():
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit


def abort_frame(name):
    return wire.frame(wire.Abort(name))


def test_frames_are_put_together_from_pieces(ends):
    parent, child = ends
    channel = Channel(child)
    assert channel.receive(block=False) == []
    data = abort_frame("a") + abort_frame("b")
    parent.sendall(data[:6])
    assert channel.receive(block=False) == []
    parent.sendall(data[6:])
    bodies = channel.receive(block=True)
    assert [wire.decode_command(body).request_id for body in bodies] == ["a", "b"]


def test_a_child_that_sends_goes_on_reading(ends, in_thread):
    parent, child = ends
    channel = Channel(child)
    sending = in_thread(channel.send, bytes(LARGE))
    parent.sendall(abort_frame("x" * LARGE))  # would wait forever for a child that only writes
    assert len(parent.recv(LARGE, socket.MSG_WAITALL)) == LARGE
    sending.result(10)
    assert len(channel.receive(block=True)) == 1


def test_a_child_that_sends_gives_up_when_told_to_stop(ends, in_thread):
    parent, child = ends
    channel = Channel(child)
    sending = in_thread(channel.send, bytes(LARGE))
    parent.sendall(abort_frame("a") + wire.frame(wire.Stop()))
    sending.result(10)
    assert channel.receive(block=False)[-1] == wire.STOP_BODY


def test_a_parent_that_is_gone_is_noticed_in_reading_and_in_writing(ends, in_thread):
    parent, child = ends
    channel = Channel(child)
    sending = in_thread(channel.send, bytes(LARGE))
    parent.recv(1)
    parent.close()
    with pytest.raises(ParentGone):
        sending.result(10)
    with pytest.raises(ParentGone):
        channel.receive(block=True)


def test_a_length_that_cannot_be_is_an_error():
    with pytest.raises(ValueError, match="the stream is broken"):
        wire.frame_length(b"\xff\xff\xff\xff")


async def test_a_reader_that_is_cancelled_within_a_frame_finds_its_place_again():
    reader = asyncio.StreamReader()
    connection = _Connection(reader, None)
    data = abort_frame("a")
    reader.feed_data(data[:6])
    receiving = asyncio.create_task(connection.receive())
    await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)
    reader.feed_data(data[6:])
    assert wire.decode_command(await connection.receive()) == wire.Abort("a")
