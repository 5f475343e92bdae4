"""Which tokens of a stream may an attempt go on from?"""

import pytest

from app.queue.checkpoints import Checkpoint, assemble
from app.queue.events import ChoiceDelta, EventPlace, JobEvent, StoredEvent, TokenLogprob


def started(attempt: int = 1, made_by: str = "us", *, run: int = 1, seq: int = 0) -> StoredEvent:
    return StoredEvent(EventPlace(run, seq, attempt, 1), JobEvent(kind="started", attempt=attempt, made_by=made_by))


def tokens(offset: int, ids: list[int], *, choice: int = 0, run: int = 1, end: str | None = None) -> StoredEvent:
    delta = ChoiceDelta(choice=choice, offset=offset, token_ids=ids, text="", finish_reason=end)
    return StoredEvent(EventPlace(run, offset + len(ids), run, 2), JobEvent(kind="tokens", attempt=run, deltas=[delta]))


def ids_of(checkpoint: Checkpoint | None) -> list[list[int]]:
    assert checkpoint is not None
    return [choice.token_ids for choice in checkpoint.choices]


def test_tokens_are_joined_by_choice_with_ends_and_logprobs() -> None:
    logprob = TokenLogprob(-0.5, [5], [-0.5])
    delta = ChoiceDelta(choice=1, offset=0, token_ids=[5], text="e", finish_reason="stop", logprobs=[logprob])
    other = StoredEvent(EventPlace(1, 4, 1, 2), JobEvent(kind="tokens", attempt=1, deltas=[delta]))
    checkpoint = assemble([started(), tokens(0, [1, 2]), tokens(2, [3]), other], 2)
    assert ids_of(checkpoint) == [[1, 2, 3], [5]]
    assert checkpoint is not None
    assert [choice.finish_reason for choice in checkpoint.choices] == [None, "stop"]
    assert checkpoint.choices[1].logprobs == [logprob]
    assert (checkpoint.run, checkpoint.made_by, checkpoint.num_tokens) == (1, "us", 4)


def test_a_repetition_by_an_attempt_that_resumed_from_fewer_tokens_is_taken_once() -> None:
    entries = [started(), tokens(0, [1, 2, 3]), started(2, seq=3), tokens(1, [2, 3, 4]), tokens(1, [2]), tokens(4, [5])]
    assert ids_of(assemble(entries, 1)) == [[1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([tokens(0, [1])], id="its first entries were trimmed"),
        pytest.param([started(), tokens(1, [2])], id="a gap"),
        pytest.param([started(), tokens(0, [1, 2]), tokens(1, [9])], id="two truths"),
        pytest.param([started(made_by=""), tokens(0, [1])], id="nobody knows who made it"),
        pytest.param([started(), tokens(0, [1], choice=1)], id="a choice that the job hasn't"),
        pytest.param([], id="nothing"),
    ],
)
def test_a_stream_that_cannot_be_gone_on_from(entries: list[StoredEvent]) -> None:
    assert assemble(entries, 1) is None


def test_only_the_newest_run_counts() -> None:
    entries = [started(), tokens(0, [1, 2]), started(3, "them", run=3), tokens(0, [7], run=3)]
    checkpoint = assemble(entries, 1)
    assert ids_of(checkpoint) == [[7]]
    assert checkpoint is not None
    assert (checkpoint.run, checkpoint.made_by) == (3, "them")


def test_places_order_as_attempts_follow_each_other() -> None:
    in_order = [
        EventPlace(1, 0, 1, 1), EventPlace(1, 5, 1, 2), EventPlace(1, 9, 1, 2), EventPlace(1, 5, 2, 1),
        EventPlace(1, 6, 2, 2), EventPlace(1, 6, 2, 3), EventPlace(3, 0, 3, 1), EventPlace(3, 2**31 - 1, 3, 2),
        EventPlace(3, 0, 4, 1), EventPlace(4, 0, 4, 1),
    ]  # fmt: skip
    ids = [tuple(map(int, place.entry_id.split("-"))) for place in in_order]
    assert ids == sorted(ids)
    assert [EventPlace.of(place.entry_id.encode()) for place in in_order] == in_order


def test_a_resumed_attempts_places_of_an_earlier_layout_are_understood() -> None:
    """Those were ordered by their tokens, as the first attempt's are: streams outlive an upgrade."""
    assert EventPlace.of(b"%d-%d" % (3 << 32 | 70, 4 * 4 + 2)) == EventPlace(3, 70, 4, 2)
