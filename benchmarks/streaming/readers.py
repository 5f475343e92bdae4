"""Many readers of streams, each over a connection of its own: who comes back after a cut says what it had, and counts all it gets."""

import asyncio
import sys
import time
from array import array
from random import Random
from typing import cast

import msgspec

_BACK_S = 0.25  # at most, until a reader comes back; drawn
_GIVEN_UP_S = 60.0  # without a word from the server


class Crowd(msgspec.Struct, frozen=True):
    """Who reads what."""

    host: str
    port: int
    token: str
    jobs: list[str]
    tokens: int


class Heard(msgspec.Struct):
    """What all of them have got."""

    events: int = 0
    lost: int = 0
    repeated: int = 0
    finished: int = 0
    connections: int = 0
    refused: int = 0
    made_us: list[int] = []  # of each token event: when it was made, and how long it took to come here
    took_us: list[int] = []
    processor_s: float = 0.0  # what all of it cost this process, once it had begun


class _Data(msgspec.Struct):
    id: int
    kind: str
    offset: int = 0
    text: str = ""
    token_ids: list[int] = []


_decode = msgspec.json.Decoder(_Data).decode


class Reader(asyncio.Protocol):
    """One connection of one reader."""

    def __init__(self, crowd: Crowd, job: str, state: "State") -> None:
        self._crowd, self._job, self._state = crowd, job, state
        self._head = True
        self._buffer = b""
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's isn't one by its class
        self._state.heard.connections += 1
        last = f"Last-Event-ID: {self._state.last_id}\r\n" if self._state.last_id else ""
        self._transport.write(
            f"GET /v1/jobs/{self._job}/events HTTP/1.1\r\nHost: {self._crowd.host}\r\n"
            f"Authorization: Bearer {self._crowd.token}\r\n{last}\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns() // 1000
        self._buffer += data
        if self._head:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            self._head = False
            if b" 200 " not in head[:16]:
                self._state.heard.refused += 1
                self._transport.close()
                return
            self._buffer = rest
        # Chunks' lengths stand on lines of their own between events; they are no field and mean nothing.
        *blocks, self._buffer = self._buffer.split(b"\n\n")
        for block in blocks:
            at = block.find(b"data: ")
            if at >= 0:
                self._state.take(_decode(block[at + 6 :]), now)
        if self._state.is_finished:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as asyncio has it
        if not self.ended.done():
            self.ended.set_result(None)


class State:
    """What one reader has, over all its connections."""

    def __init__(self, heard: Heard) -> None:
        self.heard = heard
        self.last_id = 0
        self.num_tokens = 0
        self.is_finished = False

    def take(self, event: _Data, now: int) -> None:
        """Count one event."""
        heard = self.heard
        heard.events += 1
        self.last_id = event.id
        if event.kind == "finished":
            self.is_finished = True
            heard.finished += 1
        for place, token_id in enumerate(event.token_ids):
            assert token_id == event.offset + place
            if token_id < self.num_tokens:
                heard.repeated += 1
            else:
                heard.lost += token_id - self.num_tokens
                self.num_tokens = token_id + 1
        if event.token_ids:
            made = int(event.text[:15])
            heard.made_us.append(made)
            heard.took_us.append(now - made)


async def _read(crowd: Crowd, job: str, heard: Heard, random: Random) -> None:
    state = State(heard)
    loop = asyncio.get_running_loop()
    away_since = time.monotonic()
    while not state.is_finished:
        try:
            _, reader = await loop.create_connection(lambda: Reader(crowd, job, state), crowd.host, crowd.port)
            await reader.ended
            away_since = time.monotonic()
        except OSError:
            if time.monotonic() - away_since > _GIVEN_UP_S:
                break
        await asyncio.sleep(random.uniform(0, _BACK_S))
    heard.lost += crowd.tokens - state.num_tokens


def _figures() -> list[int]:
    return cast("list[int]", array("q"))  # eight bytes a figure


async def read(crowd: Crowd) -> Heard:
    """Read all jobs to their ends."""
    heard = Heard(made_us=_figures(), took_us=_figures())
    random = Random(1)
    began = time.process_time()
    await asyncio.gather(*[_read(crowd, job, heard, random) for job in crowd.jobs])
    heard.processor_s = time.process_time() - began
    heard.made_us, heard.took_us = list(heard.made_us), list(heard.took_us)
    return heard


def main() -> None:
    """The crowd comes by standard input, what it has heard goes to standard output."""
    import uvloop

    crowd = msgspec.json.decode(sys.stdin.buffer.read(), type=Crowd)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        heard = runner.run(read(crowd))
    sys.stdout.buffer.write(msgspec.msgpack.encode(heard))


if __name__ == "__main__":
    main()
