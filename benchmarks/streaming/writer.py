"""A fake worker: tokens for many jobs at a steady rate, into Redis as workers put them there, and their ends into Postgres."""

import asyncio
import socket
import sys
import time
from uuid import UUID

import hiredis
import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine
from app.ids import new_id
from app.jobs import leases, store
from app.jobs.finish import Ending, finish
from app.jobs.leases import Incarnation
from app.jobs.notices import Used
from app.queue.events import ChoiceDelta, JobEvent, Publication
from app.queue.keys import events_key
from app.queue.streams import Nomination
from app.queue.traces import Step, Trace
from app.settings import Settings

POOL = "bench"
_GROUPS = 16  # workers that take turns: each writes for its jobs in one go
_PAGE = 200
_READ_BYTES = 1 << 16
_encode = msgspec.json.Encoder().encode


class Task(msgspec.Struct, frozen=True):
    """What to write."""

    jobs: list[UUID]
    rate: float  # tokens a second of each job
    tokens: int  # of each job
    starts_at: float  # time.monotonic


class Wrote(msgspec.Struct, frozen=True):
    """What it cost."""

    processor_s: float  # this process's, for the tokens alone


async def write(task: Task, config: Settings) -> Wrote:
    """Start all jobs, write their tokens, finish them."""
    db = create_engine(config, application_name="penstock-benchmark")
    try:
        await _start(db, task.jobs)
        size = -(-len(task.jobs) // _GROUPS)
        groups = [task.jobs[at : at + size] for at in range(0, len(task.jobs), size)]
        starts = [task.starts_at + place / len(groups) / task.rate for place in range(len(groups))]
        began = time.process_time()
        await asyncio.gather(*[_write_group(group, at, task, config) for group, at in zip(groups, starts, strict=True)])
        wrote = Wrote(time.process_time() - began)
        await _finish(db, task)
        pipe = await _Pipe.open(config)
        await pipe.send(task.jobs, task.tokens, _end(task.tokens))
        await pipe.close()
        return wrote
    finally:
        await db.dispose()


class _Pipe:
    """Appends to streams as `EventLog.publish` does, packed by hand: redis-py would take a processor for 20,000 a second."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._replies = hiredis.Reader()
        self._heads: dict[UUID, bytes] = {}  # of each job's XADD, up to the entry's id

    @classmethod
    async def open(cls, config: Settings) -> "_Pipe":
        address, _, database = config.required_redis_url.removeprefix("redis://:").rpartition("/")
        password, _, place = address.rpartition("@")
        host, _, port = place.rpartition(":")
        pipe = cls(*await asyncio.open_connection(host, int(port)))
        login = b"*2\r\n%b%b*2\r\n%b%b"
        await pipe._ask(login % tuple(map(_packed, (b"AUTH", password.encode(), b"SELECT", database.encode()))), 2)
        return pipe

    async def send(self, jobs: list[UUID], seq: int, event: JobEvent) -> None:
        """The same event for all of these jobs, in one round trip; each fake engine's text is the same, so it is packed once."""
        entry_id = Publication(jobs[0], seq, event).place.entry_id
        tail = _packed(entry_id.encode()) + _packed(b"d") + _packed(_encode(event))
        await self._ask(b"".join([part for job in jobs for part in (self._head(job), tail)]), len(jobs))

    def _head(self, job: UUID) -> bytes:
        if job not in self._heads:
            words = (b"XADD", events_key(job).encode(), b"MAXLEN", b"~", b"10000")
            self._heads[job] = b"*8\r\n" + b"".join(map(_packed, words))
        return self._heads[job]

    async def _ask(self, commands: bytes, count: int) -> None:
        self._writer.write(commands)
        while count:
            if not (received := await self._reader.read(_READ_BYTES)):
                raise ConnectionResetError("Redis has gone away")
            self._replies.feed(received)
            while (reply := self._replies.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError):
                    raise reply
                count -= 1

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


def _packed(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


async def _write_group(jobs: list[UUID], starts_at: float, task: Task, config: Settings) -> None:
    pipe = await _Pipe.open(config)
    started = JobEvent(kind="started", attempt=1, made_by="bench")
    await pipe.send(jobs, 0, started)
    for place in range(task.tokens):
        await asyncio.sleep(max(0.0, starts_at + place / task.rate - time.monotonic()))
        text = _text()
        delta = ChoiceDelta(choice=0, offset=place, token_ids=[place], text=text, text_offset=place * len(text))
        event = JobEvent(kind="tokens", attempt=1, deltas=[delta])
        await pipe.send(jobs, place + 1, event)
    await pipe.close()


def _text() -> str:
    return f"{time.monotonic_ns() // 1000:015d} "  # when it was made, in microseconds


def _end(tokens: int) -> JobEvent:
    delta = ChoiceDelta(choice=0, offset=tokens, token_ids=[], text="", text_offset=16 * tokens, finish_reason="length")
    return JobEvent(kind="succeeded", attempt=1, deltas=[delta])


async def _start(db: AsyncEngine, jobs: list[UUID]) -> None:
    incarnation = new_id()
    async with db.begin() as conn:
        await leases.register(
            conn, Incarnation(incarnation, POOL, POOL, socket.gethostname(), 1, "cpu", "none"), ttl_s=3600
        )
    for at in range(0, len(jobs), _PAGE):
        async with db.begin() as conn:
            page = [Nomination(job, 1, "standard", "acme", 1) for job in jobs[at : at + _PAGE]]
            assert len(await store.start(conn, incarnation, page)) == len(page)


async def _finish(db: AsyncEngine, task: Task) -> None:
    """All of them with the same text: their readers have theirs from Redis; what Postgres gives is counted by its ids."""
    text = _text() * task.tokens
    steps = [Step(0, 1, 16) for _ in range(task.tokens)] + [Step(0, 0, 0, is_finished=True)]
    trace = Trace.of(1, steps, [list(range(task.tokens))]).pack()
    choices = [{"index": 0, "text": text, "finish_reason": "length"}]
    used = Used(4, 0, task.tokens)
    for at in range(0, len(task.jobs), _PAGE):
        async with db.begin() as conn:
            endings = [
                Ending(job, 1, "succeeded", choices, used=used, trace=trace) for job in task.jobs[at : at + _PAGE]
            ]
            assert len(await finish(conn, endings)) == len(endings)


if __name__ == "__main__":
    import uvloop

    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        wrote = runner.run(write(task, Settings()))
    sys.stdout.buffer.write(msgspec.msgpack.encode(wrote))
