"""Two attempts write one run at once, and Redis takes what has the greater id: is everything heard that the later one tells?"""

from hypothesis import given
from hypothesis import strategies as st

from app.queue.checkpoints import assemble
from app.queue.events import ChoiceDelta, EventPlace, JobEvent, StoredEvent
from app.streams.event import Tokens
from app.streams.fold import Fold

TEXTS = ["abcdefgh", "ABCDEFGH", "12345678"]
# Of which choice the next token is, for each of two attempts that choose the same tokens, in an order of their own.
ORDERS = st.permutations([choice for choice in range(len(TEXTS)) for _ in TEXTS[0]])


class Stream:
    """A Redis stream: what isn't greater than the last entry is refused."""

    def __init__(self) -> None:
        self.entries: list[StoredEvent] = []
        self.last = (0, 0)

    def add(self, place: EventPlace, event: JobEvent) -> bool:
        first, second = map(int, place.entry_id.split("-"))
        if (first, second) <= self.last:
            return False
        self.last = (first, second)
        self.entries.append(StoredEvent(place, event))
        return True


def tell(stream: Stream, attempt: int, order: list[int], at: int) -> bool:
    """The token at this place of an attempt's order."""
    choice = order[at]
    offset = order[:at].count(choice)
    letter = TEXTS[choice][offset]
    delta = ChoiceDelta(choice=choice, offset=offset, token_ids=[ord(letter)], text=letter, text_offset=offset)
    event = JobEvent(kind="tokens", attempt=attempt, deltas=[delta])
    return stream.add(EventPlace(1, at + 1, attempt, 2), event)


@given(ORDERS, ORDERS, st.integers(0, 24), st.integers(0, 24), st.lists(st.booleans(), max_size=40))
def test_a_later_attempt_is_heard_whole_whatever_an_earlier_one_goes_on_writing(
    old: list[int], new: list[int], told: int, ahead: int, turns: list[bool]
) -> None:
    stream = Stream()
    stream.add(EventPlace(1, 0, 1, 1), JobEvent(kind="started", attempt=1, made_by="us"))
    for at in range(told):
        tell(stream, 1, old, at)
    # The second one goes on from these, and has begun before the first one, which doesn't know, writes the rest.
    resumed = [old[:told].count(choice) for choice in range(len(TEXTS))]
    left = [choice for place, choice in enumerate(new) if new[:place].count(choice) >= resumed[choice]]
    mine = old[:told] + left
    assert stream.add(EventPlace(1, told, 2, 1), JobEvent(kind="started", attempt=2, made_by="us"))
    places = iter(range(told, len(mine)))
    late = iter(range(min(told + ahead, len(old)), len(old)))
    for is_late in [*turns, *[False] * len(mine)]:
        if is_late and (at := next(late, None)) is not None:
            assert not tell(stream, 1, old, at), "the earlier attempt is refused"
        elif not is_late and (at := next(places, None)) is not None:
            assert tell(stream, 2, mine, at), "the later one is not"
            heard = fold_of(stream)
            assert heard == [TEXTS[choice][: mine[: at + 1].count(choice)] for choice in range(len(TEXTS))]
    checkpoint = assemble(stream.entries, len(TEXTS))
    assert checkpoint is not None
    assert ["".join(map(chr, choice.token_ids)) for choice in checkpoint.choices] == TEXTS


def fold_of(stream: Stream) -> list[str]:
    """What a reader has heard by now."""
    fold = Fold(len(TEXTS))
    texts = [""] * len(TEXTS)
    for entry in stream.entries:
        for event in fold.take(entry.place.run, entry.event.deltas):
            if isinstance(event, Tokens):
                assert event.offset == len(texts[event.index])
                texts[event.index] += event.text
    assert not fold.has_gap
    return texts


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 9), st.integers(1, 3)), max_size=20))
def test_ids_are_ordered_by_run_attempt_and_tokens(places: list[tuple[int, int, int, int]]) -> None:
    found = [EventPlace(run, seq, run + later, order) for run, later, seq, order in places]
    by_rule = sorted(found, key=lambda each: (each.run, each.attempt, each.seq, each.order))
    by_id = sorted(found, key=lambda each: tuple(map(int, each.entry_id.split("-"))))
    assert [each.entry_id for each in by_id] == [each.entry_id for each in by_rule]
    assert [EventPlace.of(each.entry_id.encode()) for each in found] == found
