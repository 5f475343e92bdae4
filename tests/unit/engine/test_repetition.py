import random

import pytest

from workers.engine.protocol import SamplingParams
from workers.engine.repetition import runs_in_circles
from workers.engine.sequence import Sequence

NOISE = random.Random(1).choices(range(1000), k=200)


@pytest.mark.parametrize("period", [1, 2, 7, 33, 64])
def test_a_circle_is_seen_as_soon_as_it_is_closed_often_enough(period):
    pattern = list(range(5000, 5000 + period))
    needed = max(4 * period, 32)
    tokens = NOISE + (pattern * 40)[:needed]
    assert runs_in_circles(tokens, 0, 4)
    assert not runs_in_circles(tokens[:-1], 0, 4)


@pytest.mark.parametrize("tokens", [NOISE, [*NOISE, *[1] * 31], list(range(65)) * 8, [*[1] * 100, 2], []])
def test_what_is_none(tokens):
    assert not runs_in_circles(tokens, 0, 4)


def test_the_prompt_may_repeat_itself():
    assert not runs_in_circles([1] * 100, 69, 4)
    assert runs_in_circles([1] * 101, 69, 4)


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [({}, None), ({"stop_repeating": 4}, "stop"), ({"stop_repeating": 4, "min_tokens": 50}, None)],
)
def test_a_sequence_stops_by_it_if_asked_to_and_not_before_min_tokens(sampling, wanted):
    it = Sequence(
        request_id="r",
        choice=0,
        priority=0,
        arrival=0,
        sampling=SamplingParams(max_tokens=100, **sampling),
        max_len=103,
        token_ids=[1, 2, 3, *[7] * 40],
        num_prompt_tokens=3,
    )
    assert it.finish_reason(frozenset([0])) == wanted
