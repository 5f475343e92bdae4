"""Guesses: where they come from, and when they stop."""

from workers.engine.protocol import SamplingParams
from workers.engine.sequence import Sequence
from workers.engine.speculate import Speculator


def sequence(token_ids, **sampling):
    return Sequence(
        request_id="r",
        choice=0,
        priority=0,
        arrival=0,
        sampling=SamplingParams(max_tokens=1000, **sampling),
        max_len=2000,
        token_ids=list(token_ids),
        num_prompt_tokens=1,
    )


def test_what_followed_the_last_tokens_before_is_guessed_again():
    it = sequence([9, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3])
    assert Speculator(3).guess(it, room=10) == [4, 5, 6]
    assert Speculator(8).guess(it, room=2) == [4, 5]
    assert Speculator(8).guess(it, room=0) == []


def test_the_latest_occurrence_counts_but_a_longer_match_wins():
    latest = sequence([1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3])
    assert Speculator(1).guess(latest, room=1) == [60]
    longer = sequence([7, 8, 9, 1, 2, 3, 50, 1, 2, 3, 60, 7, 8, 9, 1, 2, 3])
    assert Speculator(1).guess(longer, room=1) == [50]


def test_a_guess_that_reaches_the_end_goes_on_from_its_own_beginning():
    assert Speculator(8).guess(sequence([1, 2] * 4), room=8) == [1, 2] * 4


def test_nothing_is_guessed_where_nothing_was_seen_before_or_where_a_request_says_no():
    assert Speculator(8).guess(sequence(range(100)), room=8) == []
    assert Speculator(8).guess(sequence([1, 2]), room=8) == []
    assert Speculator(8).guess(sequence([1, 2] * 4, speculate=False), room=8) == []


def test_it_sees_what_came_since_the_last_guess():
    target, it = Speculator(2), sequence([1, 2, 3, 4])
    assert target.guess(it, room=2) == []
    it.token_ids += [5, 1, 2, 3]
    assert target.guess(it, room=2) == [4, 5]


def test_wrong_guesses_get_shorter_then_rarer_and_right_ones_long_again():
    target, it = Speculator(8), sequence([1, 2] * 10)
    lens = []
    for _ in range(5):
        lens.append(len(target.guess(it, room=8)))
        target.learn(it, lens[-1] or 1, 0)
    assert lens == [8, 4, 2, 1, 0]
    it.token_ids += [1, 2] * 100
    assert len(target.guess(it, room=8)) == 1
    for wanted in (2, 4, 8, 8):
        target.learn(it, 1, 1)
        assert len(target.guess(it, room=8)) == wanted


def test_a_sequence_whose_guesses_stay_wrong_costs_ever_less():
    target, it, steps, guessed = Speculator(8), sequence([1, 2] * 10), 2000, 0
    for _ in range(steps):
        guess = target.guess(it, room=8)
        if guess:
            target.learn(it, len(guess), 0)
            guessed += len(guess)
        it.token_ids.append(1 + len(it.token_ids) % 2)
    assert guessed < steps / 50


def test_a_sequence_that_left_is_forgotten():
    target, it = Speculator(8), sequence([1, 2] * 10)
    target.guess(it, room=8)
    target.forget(it.arrival)
    target.forget(it.arrival)
    assert target._histories == {}
