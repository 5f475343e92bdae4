"""Which tokens may come next, if the output must keep to a grammar? llguidance knows; here a matcher is kept per sequence.

A matcher's state follows from the tokens, so preemption and resume need nothing special.
"""

from collections import OrderedDict
from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from llguidance import LLExecutor, LLMatcher
from torch import Tensor

from workers.engine.grammar_check import GrammarChecker
from workers.engine.grammar_source import GrammarInvalid, compile_grammar, reason_of, tokenizer_of
from workers.engine.protocol import Grammar
from workers.engine.sequence import Sequence

_NUM_KEPT = 128  # verdicts, with the compiled grammars: schemas come in bursts of the same
_NUM_CHECKERS = 2  # so that one grammar that takes all its time doesn't hold up every other


@dataclass(frozen=True, slots=True)
class GrammarMasks:
    """What the rows of a step may choose."""

    rows: list[int]  # those that keep to a grammar
    words: Tensor  # [len(rows), vocab / 32] int32, a bit a token, good until the next step
    faults: dict[int, str]  # by row, why its grammar can't go on; such a row isn't in `rows`


class Grammars:
    """Compiles grammars for one tokenizer, and keeps the matchers of the sequences that have one.

    One thread uses it at a time; `masks` may run in another one while its caller waits for it or does something else.
    """

    def __init__(
        self, tokenizer_json: str, vocab_size: int, eos_token_ids: list[int], *, check_limit_s: int = 5
    ) -> None:
        """Raises ValueError for a tokenizer that llguidance doesn't know, or a model without EOS.

        `check_limit_s`: processor time that compiling a grammar may take.
        """
        self._tokenizer = tokenizer_of(tokenizer_json, vocab_size, eos_token_ids)
        self._words_per_row = -(-vocab_size // 32)
        self._known: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()
        self._checkers: SimpleQueue[GrammarChecker] = SimpleQueue()
        for _ in range(_NUM_CHECKERS):
            self._checkers.put(GrammarChecker(tokenizer_json, vocab_size, eos_token_ids, limit_s=check_limit_s))
        self._threads = ThreadPoolExecutor(_NUM_CHECKERS, "grammar-check")
        self._filler = LLExecutor(1)
        self._words = torch.zeros(0, self._words_per_row, dtype=torch.int32)
        self._matchers: dict[int, LLMatcher] = {}  # by arrival
        self._num_consumed: dict[int, int] = {}  # by arrival: generated tokens that the matcher has seen

    def begin(self, grammar: Grammar) -> "Future[LLMatcher]":
        """Compile a grammar, in the background unless it is known. The future may raise GrammarInvalid or CheckFailed."""
        found = self._known.get(grammar)
        if found is None or (found.done() and not _is_verdict(found)):
            found = self._known[grammar] = self._threads.submit(self._compile, grammar)
            oldest = next(iter(self._known))
            if len(self._known) > _NUM_KEPT and self._known[oldest].done():
                del self._known[oldest]
        self._known.move_to_end(grammar)
        return found

    def forget(self, arrivals: list[int]) -> None:
        """Drop the matchers of sequences that left."""
        for arrival in arrivals:
            self._matchers.pop(arrival, None)
            self._num_consumed.pop(arrival, None)

    def permitted(self, sequence: Sequence, token_ids: list[int]) -> list[int]:
        """The first of these tokens, as far as the grammar allows them to follow a sequence's own."""
        matcher = self._advanced(sequence)
        if not token_ids or matcher.is_error():
            return []
        return token_ids[: matcher.validate_tokens(token_ids)]

    def masks(self, sequences: Items[Sequence], guesses: Items[list[int]]) -> GrammarMasks:
        """The masks of a step's rows, as `Sampler.sample` is given them: a row after each of a sequence's guesses.

        llguidance releases the GIL, so in a thread of its own this costs the forward pass next to nothing.
        """
        rows = [row for row, sequence in enumerate(sequences) if sequence.sampling.grammar is not None]
        if len(self._words) < len(rows):
            self._words = torch.zeros(2 * len(rows), self._words_per_row, dtype=torch.int32)
        plain: list[tuple[LLMatcher, int]] = []
        drafted: list[tuple[LLMatcher, int, list[int]]] = []
        firsts: list[int] = []  # places, in `rows`, of the first row of each sequence
        for place, row in enumerate(rows):
            if guesses[row]:
                continue
            firsts.append(place)
            draft = _longest(sequences, guesses, row)
            matcher = self._advanced(sequences[row])
            if matcher.is_error():
                continue
            if draft:
                drafted.append((matcher, place, draft))
            else:
                plain.append((matcher, place))
        self._fill(plain, drafted)
        return self._sorted_out(rows, firsts, sequences)

    def _fill(self, plain: list[tuple[LLMatcher, int]], drafted: list[tuple[LLMatcher, int, list[int]]]) -> None:
        words = self._words
        size, address = words.shape[1] * words.element_size(), words.data_ptr()
        if plain:
            self._filler.unsafe_compute_mask_ptr(plain, address, size, len(words))
        if drafted:
            for _, place, draft in drafted:
                words[place : place + 1 + len(draft)] = -1  # what stands after an EOS isn't filled
            self._filler.unsafe_compute_mask_ptr_with_draft_token(drafted, address, size, len(words))

    def _sorted_out(self, rows: list[int], firsts: list[int], sequences: Items[Sequence]) -> GrammarMasks:
        """Rows whose matcher gave up become faults. One that did so over its guesses is asked again without them."""
        faults: dict[int, str] = {}
        for first, end in zip(firsts, [*firsts[1:], len(rows)], strict=True):
            sequence = sequences[rows[first]]
            matcher = self._matchers[sequence.arrival]
            if not matcher.is_error():
                continue
            reason = reason_of(matcher)
            faults |= dict.fromkeys(rows[first:end], reason)
            if end - first > 1:
                self.forget([sequence.arrival])
                matcher = self._advanced(sequence)
                if not matcher.is_error():
                    self._fill([(matcher, first)], [])
                if not matcher.is_error():
                    del faults[rows[first]]
        words = self._words[: len(rows)]
        if faults:
            kept = [place for place, row in enumerate(rows) if row not in faults]
            return GrammarMasks([rows[place] for place in kept], words[kept], faults)
        return GrammarMasks(rows, words, faults)

    def _advanced(self, sequence: Sequence) -> LLMatcher:
        """A sequence's matcher, after all of its tokens. It may be in error."""
        arrival, grammar = sequence.arrival, sequence.sampling.grammar
        assert grammar is not None
        matcher = self._matchers.get(arrival)
        if matcher is None:
            known = self._known.get(grammar)
            # One that was forgotten meanwhile has passed its check when its request came in.
            fresh_one = known.result() if known is not None else compile_grammar(self._tokenizer, grammar)
            matcher = self._matchers[arrival] = fresh_one.deep_copy()
            self._num_consumed[arrival] = 0
        fresh = sequence.token_ids[sequence.num_prompt_tokens + self._num_consumed[arrival] :]
        if fresh:
            matcher.consume_tokens(fresh)
            self._num_consumed[arrival] += len(fresh)
        return matcher

    def _compile(self, grammar: Grammar) -> LLMatcher:
        checker = self._checkers.get()
        try:
            checker.check(grammar)
        finally:
            self._checkers.put(checker)
        return compile_grammar(self._tokenizer, grammar)


def _is_verdict(checked: "Future[LLMatcher]") -> bool:
    error = checked.exception()
    return error is None or isinstance(error, GrammarInvalid)


def _longest(sequences: Items[Sequence], guesses: Items[list[int]], row: int) -> list[int]:
    """The guess of the last row that belongs to the sequence whose first row is `row`."""
    last = row
    while last + 1 < len(sequences) and sequences[last + 1] is sequences[row] and guesses[last + 1]:
        last += 1
    return guesses[last]
