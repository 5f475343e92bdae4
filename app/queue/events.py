"""How do a job's tokens reach its readers? One Redis stream a job; entry ids tell how far it has come."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from app.queue.keys import CANCEL_CHANNEL, ENDED_CHANNEL, READ_CHANNEL, events_key, read_key
from app.redis import Redis, ResponseError


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural log of the probability of a token and of the best ones in its place."""

    chosen: float
    top_ids: list[int]
    top_logprobs: list[float]


class ChoiceDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new of one choice: tokens from `offset` on and the text that they completed, which begins after `text_offset` characters."""

    choice: int
    offset: int
    token_ids: list[int]
    text: str
    text_offset: int = 0
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] = []  # as many as tokens, where the job asked for them


class JobEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of a job's stream, written by `attempt`.

    `kind` is `started`, `restarted` (tokens before it are void: their text begins anew), `tokens` or a terminal status.
    """

    kind: str
    attempt: int
    deltas: list[ChoiceDelta] = []
    made_by: str = ""  # with started and restarted: hashes of whatever decides tokens


class EventPlace(NamedTuple):
    """Where an event stands in its stream. Redis refuses what isn't greater than the stream's last entry.

    `run` is the attempt that began with no token; those that resumed from its tokens belong to it. `seq` counts the run's
    tokens, of all choices, that the event and those before it bring.

    Of one run, whatever a later attempt writes is greater than all that earlier ones may write: once it has begun, they are
    refused, however far ahead they are.
    """

    run: int
    seq: int
    attempt: int
    order: int  # 1 started or restarted, 2 tokens, 3 end

    @property
    def entry_id(self) -> str:
        """The entry's id."""
        assert max(self.seq, self.attempt) < _RESUMED
        if self.attempt == self.run:
            return f"{self.run << _SEQ_BITS | self.seq}-{self.attempt * _ORDERS + self.order}"
        return f"{self.run << _SEQ_BITS | _RESUMED | self.attempt}-{self.seq * _ORDERS + self.order}"

    @classmethod
    def of(cls, entry_id: bytes) -> "EventPlace":
        """The place that an entry's id tells."""
        first, second = entry_id.split(b"-")
        return cls.at(int(first), int(second))

    @classmethod
    def at(cls, first: int, second: int) -> "EventPlace":
        """The place that the two numbers of an entry's id tell."""
        run, low = first >> _SEQ_BITS, first & ((1 << _SEQ_BITS) - 1)
        if low & _RESUMED:
            return cls(run, second // _ORDERS, low - _RESUMED, second % _ORDERS)
        return cls(run, low, second // _ORDERS, second % _ORDERS)


def run_and_order(entry: tuple[int, int]) -> tuple[int, int]:
    """What the two numbers of an entry's id tell without its place: a reader needs no more of nearly all of them."""
    return entry[0] >> _SEQ_BITS, entry[1] % _ORDERS


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with its place."""

    place: EventPlace
    event: JobEvent

    @property
    def seq(self) -> int:
        """The run's tokens so far."""
        return self.place.seq


@dataclass(frozen=True, slots=True)
class Publication:
    """An event to append; `seq` and `run` as in `EventPlace`."""

    job_id: UUID
    seq: int
    event: JobEvent
    run: int = 1

    @property
    def place(self) -> EventPlace:
        """Where it belongs."""
        order = {"started": 1, "restarted": 1, "tokens": 2}.get(self.event.kind, END_ORDER)
        return EventPlace(self.run, self.seq, self.event.attempt, order)


_SEQ_BITS = 32
_RESUMED = (
    1 << 31
)  # set in ids of attempts that go on from an earlier one's tokens: no run has so many tokens, and no job attempts
_ORDERS = 4  # places that one attempt has at one seq
END_ORDER = 3
_KEEP_PART = 1 / 100  # of the time that a stream stays: after so much of it the time is set anew
_MAX_KEPT = 10_000
_ENDS_A_MESSAGE = 500
_READERS_A_MESSAGE = 500
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(JobEvent)


class EventLog:
    """Appends to and reads from the streams `ev:<job>`. A fenced attempt's late or repeated entries are refused by their ids."""

    def __init__(self, redis: Redis, *, ttl_s: float, max_entries: int) -> None:
        self.redis = redis
        self._ttl_s = int(ttl_s)
        self._max_entries = max_entries
        self._kept_at: dict[UUID, float] = {}  # when each stream that we write was last told how long to stay

    async def publish(self, publications: list[Publication]) -> None:
        """Append all in one round trip; an entry that isn't newer than the stream's last one is dropped.

        Raises:
            RedisError: Redis doesn't answer; nothing is lost but the stream: results go through Postgres.
        """
        if publications and (lost := await self._append(publications)):
            await self._append(lost, is_lost=True)

    async def _append(self, publications: Sequence[Publication], *, is_lost: bool = False) -> list[Publication]:
        """Append; return those whose stream Redis has lost since its time was set. They are to be sent again as `is_lost`, with a time."""
        pipe = self.redis.pipeline(transaction=False)
        appends: list[tuple[int, Publication]] = []  # which of the replies are theirs
        for each in publications:
            key, event = events_key(each.job_id), _encoder.encode(each.event)
            appends.append((len(pipe.command_stack), each))
            keeps = is_lost or self._must_keep(each)
            # Without a time of its own an entry must not make a stream: that would stay for ever.
            where = (key,) if keeps else (key, "NOMKSTREAM")
            pipe.execute_command("XADD", *where, "MAXLEN", "~", self._max_entries, each.place.entry_id, "d", event)
            if keeps:
                pipe.execute_command("EXPIRE", key, self._ttl_s)
        replies = await pipe.execute(raise_on_error=False)
        for place, _ in appends:
            if isinstance(reply := replies[place], Exception) and not _is_refused(reply):
                raise reply
        return [each for place, each in appends if replies[place] is None]

    def _must_keep(self, publication: Publication) -> bool:
        """Whether its stream's time is to be set: at the start, and now and then from there on."""
        now = asyncio.get_running_loop().time()
        kept_at, is_end = self._kept_at.get(publication.job_id), publication.place.order == END_ORDER
        if is_end:
            self._kept_at.pop(publication.job_id, None)
        is_new = publication.event.kind in {"started", "restarted"}
        if kept_at is not None and not is_new and now - kept_at < self._ttl_s * _KEEP_PART:
            return False
        if is_end:
            return True
        if len(self._kept_at) >= _MAX_KEPT:
            self._kept_at.clear()  # of jobs that were given back: the others are set once more
        self._kept_at[publication.job_id] = now
        return True

    async def forget(self, job_ids: list[UUID]) -> None:
        """Delete the streams of these jobs: what stands there isn't to be trusted. The next attempt begins a new run."""
        if job_ids:
            await self.redis.delete(*[events_key(job_id) for job_id in job_ids])

    async def read(self, job_id: UUID, *, after: str = "0-0", count: int = 1000) -> list[StoredEvent]:
        """Entries after the id `after`, oldest first."""
        entries: Any = await self.redis.xrange(events_key(job_id), min=f"({after}", max="+", count=count)
        return [self._stored(entry_id, fields) for entry_id, fields in entries]

    async def last(self, job_id: UUID) -> StoredEvent | None:
        """The newest entry."""
        entries: Any = await self.redis.xrevrange(events_key(job_id), count=1)
        return self._stored(*entries[0]) if entries else None

    @staticmethod
    def _stored(entry_id: bytes, fields: dict[bytes, bytes]) -> StoredEvent:
        return StoredEvent(EventPlace.of(entry_id), _decoder.decode(fields[b"d"]))


def _is_refused(reply: Exception) -> bool:
    return isinstance(reply, ResponseError) and "equal or smaller" in str(reply)


async def announce_end(redis: Redis, ended: list[tuple[UUID, str]]) -> None:
    """Wake those who wait for these jobs, many by one message; who misses it polls."""
    for first in range(0, len(ended), _ENDS_A_MESSAGE):
        some = ended[first : first + _ENDS_A_MESSAGE]
        await redis.publish(ENDED_CHANNEL, " ".join(f"{job_id.hex}:{status}" for job_id, status in some))


# One command for many jobs: two for each of a thousand held up the process that sends them for some tenths of a second.
_ANNOUNCE = """
for _, key in ipairs(KEYS) do redis.call('SET', key, '1', 'EX', ARGV[1]) end
return redis.call('PUBLISH', ARGV[2], ARGV[3])
"""


async def announce_readers(redis: Redis, job_ids: Sequence[UUID], *, ttl_s: int) -> None:
    """Somebody reads the events of these jobs for the next `ttl_s`: workers publish more often. Who misses it does so a little later."""
    for first in range(0, len(job_ids), _READERS_A_MESSAGE):
        some = job_ids[first : first + _READERS_A_MESSAGE]
        names = " ".join([job_id.hex for job_id in some])
        await redis.eval(_ANNOUNCE, len(some), *map(read_key, some), ttl_s, READ_CHANNEL, names)


async def read_now(redis: Redis, job_ids: Sequence[UUID]) -> set[UUID]:
    """Those of these jobs whose events somebody reads."""
    keys = [read_key(job_id) for job_id in job_ids]
    values: list[Any] = await redis.mget(keys) if keys else []
    return {job_id for job_id, value in zip(job_ids, values, strict=True) if value is not None}


async def announce_cancel(redis: Redis, job_ids: list[UUID]) -> None:
    """Tell the workers that these running jobs are no longer wanted; who misses it learns at the next lease renewal."""
    pipe = redis.pipeline(transaction=False)
    for job_id in job_ids:
        pipe.publish(CANCEL_CHANNEL, job_id.hex)
    await pipe.execute()
