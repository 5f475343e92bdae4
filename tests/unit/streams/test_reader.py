"""How much of a finished job's output does a reader hold, and does it tell all of it?"""

import asyncio
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from app.queue.events import ChoiceDelta, TokenLogprob
from app.streams.event import Tokens
from app.streams.fold import Fold
from app.streams.reader import Item, Reader, Spare
from app.streams.rows import Ended, Output

NUM_DELTAS = 1000
MOST_BYTES = 65_536  # of some 190 of them
LOGPROB = TokenLogprob(-0.5, [7], [-0.5])


class Row:
    """A finished job's output, loaded again and again."""

    def __init__(self, run: int = 1, num_deltas: int = NUM_DELTAS) -> None:
        self.output = Output(run, [_delta(place, num_deltas) for place in range(num_deltas)])
        self.num_loads = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self, _: UUID) -> Output:
        self.num_loads += 1
        await self.gate.wait()
        return self.output


def _delta(place: int, num_deltas: int) -> ChoiceDelta:
    reason = "stop" if place == num_deltas - 1 else None
    return ChoiceDelta(
        choice=0, offset=place, text_offset=place, token_ids=[place], text="x", finish_reason=reason, logprobs=[LOGPROB]
    )


def reader_of(row: Row, spare: Spare, *, after: int = 0, attempt: int = 1) -> Reader:
    fold = Fold(1, after)
    reader = Reader(
        uuid4(), fold, most_bytes=MOST_BYTES, load=row.load, on_close=lambda _: None, now=lambda: 0.0, spare=spare
    )
    reader.end(Ended(reader.job_id, attempt, "succeeded", None, 1, 0, NUM_DELTAS, False), fold, is_complete=False)
    return reader


def tokens_of(items: list[Item]) -> list[int]:
    events = [item.event for item in items]
    return [token for event in events if isinstance(event, Tokens) for token in event.token_ids]


async def rest_of(reader: Reader) -> list[Item]:
    items: list[Item] = []
    while (part := await reader.read()) is not None:
        items += part
        held = sum(Item(event).size for event in reader._rest) + sum(item.size for item in part)
        assert held <= MOST_BYTES + 1000
    return items


async def test_what_is_beyond_its_buffer_is_loaded_when_its_turn_comes() -> None:
    row, spare = Row(), Spare(0)
    items = await rest_of(reader_of(row, spare))
    assert tokens_of(items) == list(range(NUM_DELTAS)), "each once"
    assert [item.event.kind for item in (items[0], items[-1])] == ["started", "finished"]
    assert 2 < row.num_loads < 10
    assert spare.num_bytes == 0


async def test_who_begins_near_the_end_loads_it_once() -> None:
    row = Row()
    items = await rest_of(reader_of(row, Spare(0), after=NUM_DELTAS - 10))
    assert tokens_of(items) == list(range(NUM_DELTAS - 11, NUM_DELTAS))
    assert row.num_loads == 1


async def test_what_is_spare_holds_all_of_it_until_it_is_told_or_its_reader_leaves() -> None:
    row, spare = Row(), Spare(1 << 20)
    first, second = (reader_of(row, spare) for _ in range(2))
    for reader in (first, second):
        await reader.read()
        await reader.read()
    assert spare.num_bytes < (1 << 20) - 2 * MOST_BYTES
    second.close()
    while await first.read() is not None:
        pass
    first.close()
    assert row.num_loads == 2
    assert spare.num_bytes == 1 << 20


async def test_output_that_is_forgotten_meanwhile_cuts_its_reader_off() -> None:
    row = Row()
    reader = reader_of(row, Spare(0))
    assert await reader.read()
    row.output = Output(1, [], is_forgotten=True)
    while (part := await reader.read()) is not None:
        assert part[-1].event.kind == "tokens", "an end would claim that this was all"
    assert reader.cut_off


async def test_a_later_life_that_has_ended_meanwhile_cuts_its_reader_off() -> None:
    reader = reader_of(Row(run=2), Spare(0))
    assert await reader.read() is None
    assert reader.cut_off, "whoever comes back is told all of it, and its end"


async def test_a_small_buffer_doesnt_make_many_loads_of_a_large_output() -> None:
    row = Row(num_deltas=50 * NUM_DELTAS)
    reader = reader_of(row, Spare(0))
    tokens = 0
    while (part := await reader.read()) is not None:
        tokens += len(tokens_of(part))
    assert (tokens, row.num_loads) == (50 * NUM_DELTAS, 8)


@pytest.mark.parametrize("leave", [Reader.close, Reader.cut])
@pytest.mark.parametrize("when", ["while it loads", "in the middle"])
async def test_who_leaves_gives_back_what_it_held(leave: Callable[[Reader], None], when: str) -> None:
    row, spare = Row(), Spare(1 << 20)
    reader = reader_of(row, spare)
    if when == "in the middle":
        await reader.read()
        assert spare.num_bytes < 1 << 20
        leave(reader)
    else:
        row.gate.clear()
        reading = asyncio.create_task(reader.read())
        while not row.num_loads:
            await asyncio.sleep(0)
        leave(reader)
        row.gate.set()
        assert await reading is None
    assert await reader.read() is None
    assert spare.num_bytes == 1 << 20
