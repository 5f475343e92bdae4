"""What does one process follow of one job? Each entry of its stream is decoded once, whoever reads."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple
from uuid import UUID

import msgspec

from app.queue.events import EventPlace, JobEvent
from app.queue.keys import events_key
from app.streams.fold import Fold
from app.streams.reader import Item, Reader

_decode = msgspec.json.Decoder(JobEvent).decode
_END_ORDER = 3


def _event(content: bytes) -> JobEvent | None:
    try:
        return _decode(content)
    except (msgspec.MsgspecError, ValueError):  # what isn't an event stands there
        return None


class Cursor(NamedTuple):
    """An entry's id in Redis, as it is ordered there."""

    first: int
    second: int

    @classmethod
    def of(cls, entry_id: bytes | str) -> "Cursor":
        """From `first-second`."""
        first, second = entry_id.split(b"-") if isinstance(entry_id, bytes) else entry_id.split("-")
        return cls(int(first), int(second))

    def __str__(self) -> str:
        return f"{self.first}-{self.second}"


class Feed:
    """Readers who stand at the same place of a job's stream."""

    __slots__ = ("cursor", "fold", "readers", "waits_for_room", "whole_at")

    def __init__(self, fold: Fold, cursor: Cursor, readers: list[Reader]) -> None:
        self.fold = fold
        self.cursor = cursor
        self.readers = readers
        self.waits_for_room = False
        self.whole_at = 0  # the attempt whose end has been read, with all that came before it

    def take(self, entry: Cursor, place: EventPlace, event: JobEvent | None, now: float) -> None:
        """Move on by one entry; None is one that can't be read."""
        self.cursor = entry
        if event is None:
            self.fold.has_gap = True
            return
        events = self.fold.take(place.run, event.deltas)
        if events:
            items = [Item(each) for each in events]
            for reader in self.readers:
                reader.heard_at = now
                for item in items:
                    reader.put(item)
        is_whole = place.order == _END_ORDER and self.fold.has_all(place.run, place.seq)
        self.whole_at = place.attempt if is_whole else 0

    def stands_with(self, other: "Feed") -> bool:
        """Whether both can go on as one."""
        is_waiting = self.waits_for_room or other.waits_for_room
        return self.cursor == other.cursor and not is_waiting and self.fold.stands_with(other.fold)


class Topic:
    """One job that is followed, by one feed for each place at which its readers stand."""

    __slots__ = ("_on_room", "feeds", "has_end", "job_id", "key", "n")

    def __init__(self, job_id: UUID, n: int, on_room: Callable[[], None]) -> None:
        """`on_room` is called when a reader that had none has room again."""
        self.job_id = job_id
        self.n = n
        self.key = events_key(job_id).encode()
        self.feeds: list[Feed] = []
        self._on_room = on_room
        self.has_end = False  # the newest entry that was read says that the job has ended

    def join(self, reader: Reader) -> None:
        """A new reader, who stands where its fold does."""
        fold = reader.fold.fork()
        self.feeds.append(Feed(fold, Cursor.of(fold.seek), [reader]))

    def leave(self, reader: Reader) -> None:
        """It reads no more."""
        for feed in self.feeds:
            if reader in feed.readers:
                feed.readers.remove(reader)
        self.feeds = [feed for feed in self.feeds if feed.readers]

    @property
    def cursor(self) -> Cursor | None:
        """From where on entries are wanted; None where every reader's buffer is full."""
        wanted = [feed.cursor for feed in self.feeds if not feed.waits_for_room]
        return min(wanted) if wanted else None

    def take(self, asked: Cursor, entries: Sequence[tuple[bytes, bytes]], now: float) -> None:
        """Entries of the stream, oldest first, as (id, JSON): all that followed `asked`, up to the last of them.

        A feed that stands before `asked` misses what lies between, so it waits for an answer of its own.
        """
        for entry_id, content in entries:
            cursor, event = Cursor.of(entry_id), _event(content)
            place = EventPlace.at(*cursor)
            self.has_end = place.order == _END_ORDER
            for feed in list(self.feeds):
                if asked <= feed.cursor < cursor and not feed.waits_for_room:
                    feed.take(cursor, place, event, now)
                    self._part_from_full(feed)
        if len(self.feeds) > 1:
            self._merge()

    def _merge(self) -> None:
        """Readers who have caught up with others go on with them."""
        merged: list[Feed] = []
        for feed in self.feeds:
            for other in merged:
                if feed.stands_with(other):
                    other.readers += feed.readers
                    break
            else:
                merged.append(feed)
        self.feeds = merged

    def _part_from_full(self, feed: Feed) -> None:
        """A reader whose buffer is full stays behind: Redis keeps what it hasn't got."""
        full = [reader for reader in feed.readers if reader.is_full]
        for reader in full:
            feed.readers.remove(reader)
            alone = Feed(feed.fold.fork(), feed.cursor, [reader])
            alone.waits_for_room, alone.whole_at = True, feed.whole_at
            self.feeds.append(alone)
            reader.call_at_room(partial(self._has_room, alone))
        if not feed.readers:
            self.feeds.remove(feed)

    def _has_room(self, feed: Feed) -> None:
        feed.waits_for_room = False
        self._on_room()
