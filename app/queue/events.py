"""How do a job's tokens reach its readers? One Redis stream a job; entry ids are token offsets."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from app.queue.keys import CANCEL_CHANNEL, ENDED_CHANNEL, events_key
from app.redis import Redis, ResponseError


class ChoiceDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new of one choice: tokens from `offset` on and the text that they completed."""

    choice: int
    offset: int
    token_ids: list[int]
    text: str
    finish_reason: str | None = None


class JobEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of a job's stream. `kind` is `started`, `tokens` or a terminal status; `attempt` wrote it."""

    kind: str
    attempt: int
    deltas: list[ChoiceDelta] = []


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with its place: `seq` counts the job's tokens (all choices) that it and those before it bring."""

    seq: int
    order: int
    event: JobEvent


@dataclass(frozen=True, slots=True)
class Publication:
    """An event to append. `order` sets apart events that bring no token (started 0, tokens 1, end 2)."""

    job_id: UUID
    seq: int
    event: JobEvent

    @property
    def order(self) -> int:
        """The second part of the entry's id."""
        return {"started": 0, "tokens": 1}.get(self.event.kind, _END_ORDER)


_END_ORDER = 2
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(JobEvent)


class EventLog:
    """Appends to and reads from the streams `ev:<job>`. A fenced attempt's late or repeated entries are refused by their ids."""

    def __init__(self, redis: Redis, *, ttl_s: float, max_entries: int) -> None:
        self.redis = redis
        self._ttl_s = int(ttl_s)
        self._max_entries = max_entries

    async def publish(self, publications: list[Publication]) -> None:
        """Append all in one round trip; an entry that isn't newer than the stream's last one is dropped.

        Raises:
            RedisError: Redis doesn't answer; nothing is lost but the stream: results go through Postgres.
        """
        if not publications:
            return
        pipe = self.redis.pipeline(transaction=False)
        for each in publications:
            key = events_key(each.job_id)
            pipe.xadd(
                key,
                {"d": _encoder.encode(each.event)},
                id=f"{each.seq}-{each.order + 1}",
                maxlen=self._max_entries,
                approximate=True,
            )
            pipe.expire(key, self._ttl_s)
        replies = await pipe.execute(raise_on_error=False)
        for each, reply in zip(publications, replies[::2], strict=True):
            if isinstance(reply, ResponseError) and "equal or smaller" in str(reply):
                if each.order == _END_ORDER:
                    await self._append_end(each)
            elif isinstance(reply, Exception):
                raise reply

    async def _append_end(self, end: Publication) -> None:
        """Put an end behind the tokens of an earlier, longer attempt: readers must learn that there is no more."""
        last = await self.last(end.job_id)
        if last is not None and last.order < _END_ORDER:
            await self.redis.xadd(
                events_key(end.job_id), {"d": _encoder.encode(end.event)}, id=f"{last.seq}-{_END_ORDER + 1}"
            )

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
        seq, _, order = entry_id.partition(b"-")
        return StoredEvent(int(seq), int(order) - 1, _decoder.decode(fields[b"d"]))


async def announce_end(redis: Redis, ended: list[tuple[UUID, str]]) -> None:
    """Wake those who wait for these jobs; who misses it polls."""
    pipe = redis.pipeline(transaction=False)
    for job_id, status in ended:
        pipe.publish(ENDED_CHANNEL, f"{job_id.hex}:{status}")
    await pipe.execute()


async def announce_cancel(redis: Redis, job_ids: list[UUID]) -> None:
    """Tell the workers that these running jobs are no longer wanted; who misses it learns at the next lease renewal."""
    pipe = redis.pipeline(transaction=False)
    for job_id in job_ids:
        pipe.publish(CANCEL_CHANNEL, job_id.hex)
    await pipe.execute()
