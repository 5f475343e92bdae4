"""Whom does an answer of Redis move on? Those who stand where it was asked for or behind, and nobody else."""

import asyncio
import itertools
from collections.abc import Awaitable, Iterator
from uuid import uuid4

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from app.queue.events import ChoiceDelta, EventPlace, JobEvent
from app.streams.event import Tokens, wire
from app.streams.fold import Fold
from app.streams.reader import Reader, Spare, wire_of
from app.streams.rows import Output
from app.streams.topic import Cursor, Topic, cursor_of
from app.streams.xread import Entry

JOB = uuid4()
NUM_TOKENS = 12


def entry(seq: int) -> Entry:
    """The entry that brings the token `seq`, counted from 1."""
    event = JobEvent(
        kind="tokens",
        attempt=1,
        deltas=[ChoiceDelta(choice=0, offset=seq - 1, token_ids=[seq], text="x", text_offset=seq - 1)],
    )
    more = [b"of", b"a later version"] if seq % 3 == 0 else []
    return EventPlace(1, seq, 1, 2).entry_id.encode(), [b"d", msgspec.json.encode(event), *more]


STREAM = [entry(seq) for seq in range(1, NUM_TOKENS + 1)]


async def _nothing(_: object) -> Output:
    raise AssertionError("no output is asked for")


def reader(*, most_bytes: int = 1 << 20) -> Reader:
    return Reader(
        JOB, Fold(1), most_bytes=most_bytes, load=_nothing, on_close=lambda _: None, now=lambda: 0.0, spare=Spare(0)
    )


def tokens_of(reader: Reader) -> list[int]:
    events = [item.event for item in reader._items]
    return [token for event in events if isinstance(event, Tokens) for token in event.token_ids]


def place_of(topic: Topic) -> Cursor | None:
    feed = topic.hindmost
    return None if feed is None else feed.cursor


def answer_to(asked: Cursor, written: int) -> list[Entry]:
    """What Redis says when so many tokens stand in the stream."""
    return [each for each in STREAM[:written] if cursor_of(each[0]) > asked]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, NUM_TOKENS)), min_size=1, max_size=8))
def test_whoever_joins_while_an_answer_is_on_its_way_misses_nothing(steps: list[tuple[bool, int]]) -> None:
    topic, readers = Topic(JOB, 1, lambda: None), [reader()]
    topic.join(readers[0])
    for is_joined_in_flight, written in steps:
        asked = place_of(topic)
        assert asked is not None
        if is_joined_in_flight:
            readers.append(reader())
            topic.join(readers[-1])
        topic.take(asked, answer_to(asked, written), 0.0)
    for _ in readers:  # everybody is asked for in turn, the one furthest behind first
        asked = place_of(topic)
        assert asked is not None
        topic.take(asked, answer_to(asked, NUM_TOKENS), 0.0)
    for each in readers:
        assert tokens_of(each) == list(range(1, NUM_TOKENS + 1))
    assert not any(feed.fold.has_gap for feed in topic.feeds)


def test_a_reader_with_room_again_isnt_given_an_answer_that_was_asked_for_another() -> None:
    topic = Topic(JOB, 1, lambda: None)
    slow, quick = reader(most_bytes=1), reader()
    topic.join(slow)
    topic.join(quick)
    topic.take((0, 0), STREAM[:4], 0.0)  # the slow one is full after one entry
    assert tokens_of(slow) == [1]
    asked = place_of(topic)
    assert asked == cursor_of(STREAM[3][0])
    slow._take()  # there is room while the answer is on its way
    slow.most_bytes = 1 << 20
    topic.take(asked, STREAM[4:6], 0.0)
    assert tokens_of(quick) == [1, 2, 3, 4, 5, 6]
    assert not any(feed.fold.has_gap for feed in topic.feeds)
    asked = place_of(topic)
    assert asked == cursor_of(STREAM[0][0])
    topic.take(asked, STREAM[1:6], 0.0)
    assert tokens_of(slow) == [2, 3, 4, 5, 6]
    assert len(topic.feeds) == 1


class Connection:
    """Whoever reads: what it has got, by the outlet, which may have to be waited for, or by itself."""

    def __init__(self, topic: Topic, is_slow: Iterator[bool]) -> None:
        self.got = b""
        self._is_slow = is_slow
        self.reader = reader()
        self.reader.outlet = self._outlet
        topic.join(self.reader)

    def _outlet(self, body: bytes) -> Awaitable[None] | None:
        if next(self._is_slow):
            return self._later(body)
        self.got += body
        return None

    async def _later(self, body: bytes) -> None:
        await asyncio.sleep(0)
        self.got += body

    async def read(self) -> None:
        while (items := await self.reader.read()) is not None:
            self.got += wire_of(items)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12),
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.integers(1, 2),
)
def test_what_is_sent_at_once_and_what_waits_its_turn_come_in_order(
    steps: list[tuple[int, int]], slow: list[bool], num_readers: int
) -> None:
    async def told() -> list[bytes]:
        topic, written = Topic(JOB, 1, lambda: None), 0
        connections = [Connection(topic, itertools.cycle(slow)) for _ in range(num_readers)]
        tasks = [asyncio.create_task(each.read()) for each in connections]
        for count, turns in [*steps, (NUM_TOKENS, 0)]:
            asked, written = place_of(topic), min(NUM_TOKENS, written + count)
            assert asked is not None
            topic.take(asked, answer_to(asked, written), 0.0)
            for _ in range(turns):
                await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        for connection in connections:
            connection.reader.close()
        await asyncio.gather(*tasks)
        return [each.got for each in connections]

    fold = Fold(1)
    events = [msgspec.json.decode(content, type=JobEvent) for _, (_, content, *_) in STREAM]
    expected = b"".join([wire(each) for event in events for each in fold.take(1, event.deltas)])
    assert asyncio.run(told()) == [expected] * num_readers
