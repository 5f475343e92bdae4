"""What does one process follow of one job? Each entry of its stream is decoded once, whoever reads."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from uuid import UUID

import msgspec

from app.queue.events import END_ORDER, EventPlace, JobEvent, run_and_order
from app.queue.keys import events_key
from app.streams.fold import Fold
from app.streams.reader import Item, Reader
from app.streams.xread import Entry

_cursor = attrgetter("cursor")
_decode = msgspec.json.Decoder(JobEvent).decode


def _event(content: bytes) -> JobEvent | None:
    try:
        return _decode(content)
    except (msgspec.MsgspecError, ValueError):  # what isn't an event stands there
        return None


Cursor = tuple[int, int]  # the two numbers of an entry's id in Redis, ordered as there


def cursor_of(entry_id: bytes) -> Cursor:
    """From `first-second`."""
    first, _, second = entry_id.partition(b"-")
    return int(first), int(second)


class Feed:
    """Readers who stand at the same place of a job's stream."""

    __slots__ = ("cursor", "entry_id", "fold", "has_untold", "readers", "waits_for_room", "whole_at")

    def __init__(self, fold: Fold, entry_id: bytes, readers: list[Reader]) -> None:
        self.fold = fold
        self.entry_id = entry_id  # after which there is news
        self.cursor = cursor_of(entry_id)
        self.readers = readers
        self.waits_for_room = False
        self.has_untold = False  # something is in its readers' buffers that they weren't told of
        self.whole_at = 0  # the attempt whose end has been read, with all that came before it

    def take(
        self,
        entry_id: bytes,
        cursor: Cursor,
        run: int,
        order: int,
        event: JobEvent | None,
        now: float,
        *,
        is_alone: bool,
    ) -> bool:
        """Move on by one entry, of this run and order; None is one that can't be read. Whether a reader's buffer is full then.

        Readers are told by `tell`, or at once where the entry `is_alone` in its answer and goes to one reader.
        """
        self.entry_id, self.cursor = entry_id, cursor
        if event is None:
            self.fold.has_gap = True
            return False
        is_full = False
        if events := self.fold.take(run, event.deltas):
            readers = self.readers
            if not (is_alone and len(readers) == len(events) == 1 and readers[0].offer(events[0], now)):
                is_full = self._put([Item(each) for each in events], now)
        self.whole_at = 0
        if order == END_ORDER:
            place = EventPlace.at(*cursor)
            if self.fold.has_all(run, place.seq):
                self.whole_at = place.attempt
        return is_full

    def _put(self, items: list[Item], now: float) -> bool:
        self.has_untold = True
        num_bytes = sum([item.size for item in items])
        for reader in self.readers:
            reader.put(items, num_bytes, now)
        return any(reader.is_full for reader in self.readers)

    def tell(self) -> None:
        """Tell the readers what was put into their buffers."""
        self.has_untold = False
        for reader in self.readers:
            reader.tell()

    def stands_with(self, other: "Feed") -> bool:
        """Whether both can go on as one."""
        is_waiting = self.waits_for_room or other.waits_for_room
        return self.cursor == other.cursor and not is_waiting and self.fold.stands_with(other.fold)


class Topic:
    """One job that is followed, by one feed for each place at which its readers stand."""

    __slots__ = ("_on_room", "feeds", "has_end", "job_id", "key", "looked_at", "n")

    def __init__(self, job_id: UUID, n: int, on_room: Callable[[], None]) -> None:
        """`on_room` is called when a reader that had none has room again."""
        self.job_id = job_id
        self.n = n
        self.key = events_key(job_id).encode()
        self.feeds: list[Feed] = []
        self._on_room = on_room
        self.looked_at = -math.inf  # when there was news last, or Postgres was asked whether the job has ended
        self.has_end = False  # the newest entry that was read says that the job has ended

    def join(self, reader: Reader) -> None:
        """A new reader, who stands where its fold does."""
        fold = reader.fold.fork()
        self.feeds.append(Feed(fold, fold.seek.encode(), [reader]))

    def leave(self, reader: Reader) -> None:
        """It reads no more."""
        for feed in self.feeds:
            if reader in feed.readers:
                feed.readers.remove(reader)
        self.feeds = [feed for feed in self.feeds if feed.readers]

    @property
    def hindmost(self) -> Feed | None:
        """From whose place on entries are wanted; None where every reader's buffer is full."""
        if len(self.feeds) == 1:  # as nearly always
            return None if self.feeds[0].waits_for_room else self.feeds[0]
        return min((feed for feed in self.feeds if not feed.waits_for_room), key=_cursor, default=None)

    def take(self, asked: Cursor, entries: Sequence[Entry], now: float) -> None:
        """Entries of the stream, oldest first: all that followed `asked`, up to the last of them.

        A feed that stands before `asked` misses what lies between, so it waits for an answer of its own.
        """
        is_alone = len(entries) == 1
        for entry_id, fields in entries:
            cursor, event = cursor_of(entry_id), _event(fields[1])
            run, order = run_and_order(cursor)
            for feed in self.feeds.copy():
                is_next = asked <= feed.cursor < cursor and not feed.waits_for_room
                if is_next and feed.take(entry_id, cursor, run, order, event, now, is_alone=is_alone):
                    self._part_from_full(feed)
            self.has_end = order == END_ORDER
        for feed in self.feeds:
            if feed.has_untold:
                feed.tell()
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
            alone = Feed(feed.fold.fork(), feed.entry_id, [reader])
            alone.waits_for_room, alone.whole_at, alone.has_untold = True, feed.whole_at, True
            self.feeds.append(alone)
            reader.call_at_room(partial(self._has_room, alone))
        if not feed.readers:
            self.feeds.remove(feed)

    def _has_room(self, feed: Feed) -> None:
        feed.waits_for_room = False
        self._on_room()
