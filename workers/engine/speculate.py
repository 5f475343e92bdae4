"""Which tokens will probably come next? Those that came when a sequence's last tokens stood there before.

The guess costs a lookup. It is fed together with the pending token, and each of its tokens is kept only if it is the one
that would have been chosen there anyway, so the output is the same as without it.
Source: A. Saxena, "Prompt Lookup Decoding", 2023 (the idea); here with an index per sequence instead of a search.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from workers.engine.sequence import Sequence

_MATCH_LENS = (6, 3)  # tokens at the end that must have stood there before; the longer match is the better guess
_FIRST_PAUSE = 8  # tokens without a guess, after guesses were wrong until none was left; doubles each time
_LONGEST_PAUSE = 256


@dataclass(slots=True)
class _History:
    """What is known of one sequence."""

    limit: int  # tokens to guess at once: halves after a guess that was all wrong, doubles after one that was all right
    num_indexed: int = 0  # tokens before the end whose predecessors are in `after`
    after: dict[tuple[int, ...], int] = field(default_factory=dict)  # tokens -> the place after their last occurrence
    pause: int = _FIRST_PAUSE
    resumes_at: int = 0  # length of the sequence up to which nothing is guessed


class Speculator:
    """Guesses, and learns for which sequences it pays. Its state never changes what is generated."""

    def __init__(self, num_tokens: int, permitted: Callable[[Sequence, list[int]], list[int]] | None = None) -> None:
        """`permitted` cuts a guess where the sequence's grammar forbids it; without it such sequences aren't guessed for."""
        self._num_tokens = num_tokens
        self._permitted = permitted
        self._histories: dict[int, _History] = {}  # by arrival

    def guess(self, sequence: Sequence, room: int) -> list[int]:
        """Up to `room` tokens that may follow a sequence's last one."""
        has_grammar = sequence.sampling.grammar is not None
        if room <= 0 or not sequence.sampling.speculate or (has_grammar and self._permitted is None):
            return []
        history = self._histories.get(sequence.arrival)
        if history is None:
            history = self._histories[sequence.arrival] = _History(self._num_tokens)
        tokens = sequence.token_ids
        if len(tokens) < history.resumes_at:
            return []
        # The end itself isn't in the index yet, so that what is found there lies before it.
        for end in range(history.num_indexed, len(tokens)):
            for length in _MATCH_LENS:
                if end >= length:
                    history.after[tuple(tokens[end - length : end])] = end
        history.num_indexed = len(tokens)
        for length in _MATCH_LENS:
            place = history.after.get(tuple(tokens[-length:])) if len(tokens) >= length else None
            if place is not None:
                guess = _continued(tokens, place, min(room, history.limit))
                return self._permitted(sequence, guess) if has_grammar and self._permitted is not None else guess
        return []

    def learn(self, sequence: Sequence, num_guessed: int, num_right: int) -> None:
        """How a guess turned out."""
        history = self._histories.get(sequence.arrival)
        if history is None:
            return
        if num_right == num_guessed:
            history.limit = min(self._num_tokens, history.limit * 2)
            history.pause = _FIRST_PAUSE
        elif num_right == 0:
            history.limit //= 2
            if history.limit == 0:
                history.limit = 1
                history.resumes_at = len(sequence.token_ids) + history.pause
                history.pause = min(_LONGEST_PAUSE, history.pause * 2)

    def forget(self, arrival: int) -> None:
        """A sequence left."""
        self._histories.pop(arrival, None)


def _continued(tokens: list[int], place: int, count: int) -> list[int]:
    """`count` tokens from a place on; where they reach the end, the guess goes on from its own beginning."""
    found = tokens[place : place + count]
    while len(found) < count:
        found += found[: count - len(found)]
    return found
