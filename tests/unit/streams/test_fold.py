"""Does a reader get each token once, however its stream was cut, repeated and mixed, and wherever it comes back?"""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.queue.events import ChoiceDelta
from app.queue.traces import Step, Trace
from app.streams.event import Event, Tokens, first_id, last_id, run_of, units_of
from app.streams.fold import Fold


@dataclass
class Heard:
    """Puts events together, and minds gaps and repeats."""

    n: int
    texts: list[str] = field(default_factory=list)
    last_id: int = 0

    def __post_init__(self) -> None:
        self.texts = [""] * self.n

    def take(self, events: list[Event]) -> None:
        for event in events:
            assert event.id > self.last_id
            self.last_id = event.id
            if event.kind == "restarted":
                self.texts = [""] * self.n
            if isinstance(event, Tokens):
                assert event.offset == event.text_offset == len(self.texts[event.index])
                assert event.token_ids == [ord(letter) for letter in event.text]
                self.texts[event.index] += event.text


def delta(choice: int, text: str, start: int, stop: int, reason: str | None = None) -> ChoiceDelta:
    """A part of a choice whose tokens are single characters."""
    part = text[start:stop]
    return ChoiceDelta(
        choice=choice,
        offset=start,
        token_ids=[ord(letter) for letter in part],
        text=part,
        text_offset=start,
        finish_reason=reason,
    )


@st.composite
def written(draw: st.DrawFn) -> tuple[list[str], list[ChoiceDelta]]:
    """The texts of a job's choices, and the deltas that tell them, with finishes sometimes on their own."""
    texts = draw(st.lists(st.text(alphabet="abcdef", max_size=12), min_size=1, max_size=3))
    deltas, places = [], [0] * len(texts)
    finished: set[int] = set()
    while len(finished) < len(texts):
        choice = draw(st.sampled_from([place for place in range(len(texts)) if place not in finished]))
        text, start = texts[choice], places[choice]
        stop = min(len(text), start + draw(st.integers(1, 4)))
        ends = stop == len(text) and (start == stop or draw(st.booleans()))
        deltas.append(delta(choice, text, start, stop, "stop" if ends else None))
        places[choice] = stop
        if ends:
            finished.add(choice)
    return texts, deltas


def trace_of(texts: list[str], deltas: list[ChoiceDelta]) -> list[ChoiceDelta]:
    """The same as a worker packs it and Postgres gives it back."""
    steps = [Step(each.choice, len(each.token_ids), len(each.text), each.finish_reason is not None) for each in deltas]
    packed = Trace.of(1, steps, [[ord(letter) for letter in text] for text in texts]).pack()
    return list(Trace.unpack(packed).deltas(texts, ["stop"] * len(texts), [[] for _ in texts]))


@given(written())
def test_what_postgres_keeps_is_what_was_told(job: tuple[list[str], list[ChoiceDelta]]) -> None:
    texts, deltas = job
    assert trace_of(texts, deltas) == deltas


@given(written(), st.data())
def test_a_reader_who_comes_back_anywhere_gets_the_rest_from_redis_or_postgres(
    job: tuple[list[str], list[ChoiceDelta]], data: st.DataObject
) -> None:
    texts, deltas = job
    first, heard = Fold(len(texts)), Heard(len(texts))
    heard.take(first.take(1, deltas[: data.draw(st.integers(0, len(deltas)))]))
    again = Fold(len(texts), heard.last_id)
    if len(texts) == 1:  # its stream is read from here on
        _, seq = divmod(int(again.seek.partition("-")[0]), 2**32)
        deltas = [each for each in deltas if each.offset + len(each.token_ids) >= seq]
    heard.take(again.take(1, deltas))
    assert heard.texts == texts
    assert not again.has_gap


@given(written(), st.data())
def test_entries_that_are_lost_are_made_up_by_postgres_in_the_same_connection(
    job: tuple[list[str], list[ChoiceDelta]], data: st.DataObject
) -> None:
    texts, deltas = job
    kept = [each for each in deltas if data.draw(st.booleans())]
    fold, heard = Fold(len(texts)), Heard(len(texts))
    for each in kept:
        heard.take(fold.take(1, [each]))
    fold.has_gap = False
    heard.take(fold.take(1, trace_of(texts, deltas)))
    assert heard.texts == texts


@given(written(), st.data())
def test_an_attempt_that_goes_on_from_fewer_tokens_repeats_nothing(
    job: tuple[list[str], list[ChoiceDelta]], data: st.DataObject
) -> None:
    texts, deltas = job
    told = data.draw(st.integers(0, len(deltas)))
    fold, heard = Fold(len(texts)), Heard(len(texts))
    heard.take(fold.take(1, deltas[:told]))
    for choice, text in enumerate(texts):  # the next one cuts the text otherwise
        start = data.draw(st.integers(0, min(len(text), fold_tokens(deltas[:told], choice))))
        while start <= len(text):
            stop = min(len(text), start + data.draw(st.integers(1, 5)))
            heard.take(fold.take(1, [delta(choice, text, start, stop, "stop" if stop == len(text) else None)]))
            if stop == len(text):
                break
            start = stop
    assert heard.texts == texts
    assert fold.has_all(1, sum(map(len, texts)))


def fold_tokens(deltas: list[ChoiceDelta], choice: int) -> int:
    return sum(len(each.token_ids) for each in deltas if each.choice == choice)


def test_a_run_that_starts_over_says_so_and_begins_with_a_greater_id() -> None:
    fold = Fold(1)
    before = fold.take(1, [delta(0, "abc", 0, 3)])
    after = fold.take(2, [delta(0, "xyz", 0, 2)])
    assert [event.kind for event in before + after] == ["started", "tokens", "restarted", "tokens"]
    assert after[0].id > before[-1].id
    assert fold.take(1, [delta(0, "abcdef", 3, 6)]) == [], "of a run that is over"


def test_a_gap_is_told_by_silence() -> None:
    fold = Fold(1)
    assert len(fold.take(1, [delta(0, "abcdef", 0, 2)])) == 2
    assert fold.take(1, [delta(0, "abcdef", 3, 4)]) == []
    assert fold.take(1, [delta(0, "abcdef", 4, 6)]) == []
    assert fold.has_gap
    assert not fold.has_all(1, 6)


def test_whoever_names_an_id_beyond_the_end_gets_nothing_before_it() -> None:
    fold = Fold(1, first_id(1) + 100)
    assert fold.take(1, [delta(0, "abc", 0, 3, "stop")]) == []


def test_an_id_within_an_event_gets_that_event_whole() -> None:
    fold = Fold(1, first_id(1) + 2)
    (event,) = fold.take(1, [delta(0, "abcd", 0, 4)])
    assert isinstance(event, Tokens)
    assert (event.offset, event.text) == (0, "abcd")


@pytest.mark.parametrize(("attempt", "run"), [(1, 1), (2, 2), (7, 7)])
def test_ids_tell_their_run(attempt: int, run: int) -> None:
    assert run_of(first_id(run)) == run
    assert run_of(last_id(attempt)) == run
    assert first_id(run) < last_id(attempt) < first_id(run + 1) < 2**53
    assert units_of(first_id(run) + 5) == 5
    assert (run_of(0), units_of(0), last_id(0)) == (1, 0, last_id(1))
