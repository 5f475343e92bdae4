"""Which tokens may come next, if the output must keep to a grammar? llguidance knows; here a matcher is kept per sequence.

A matcher's state follows from the tokens, so preemption and resume need nothing special.
"""

import json
from collections import OrderedDict

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from workers.engine.protocol import Grammar
from workers.engine.sequence import Sequence

_MAX_TEXT_BYTES = (
    1 << 18
)  # a longer one is a mistake or an attack; what explodes in spite of that, llguidance's fuel stops
_NUM_KEPT = 64  # compiled grammars: schemas come in bursts of the same


class GrammarInvalid(ValueError):
    """It doesn't compile; the message says why."""


class Grammars:
    """Compiles grammars for one tokenizer, and keeps the matchers of the sequences that have one."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: list[int]) -> None:
        """Raises ValueError for a tokenizer that llguidance doesn't know, or a model without EOS."""
        if not eos_token_ids:
            raise ValueError("the model has no EOS token, which is how a structured output ends")
        self._tokenizer = LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=eos_token_ids)
        self._vocab_size = vocab_size
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._matchers: dict[int, LLMatcher] = {}  # by arrival
        self._num_consumed: dict[int, int] = {}  # by arrival: generated tokens that the matcher has seen

    def check(self, grammar: Grammar) -> None:
        """Compile a grammar. Raises GrammarInvalid."""
        self._matcher(grammar)

    def forget(self, arrivals: list[int]) -> None:
        """Drop the matchers of sequences that left."""
        for arrival in arrivals:
            self._matchers.pop(arrival, None)
            self._num_consumed.pop(arrival, None)

    def allowed(self, sequence: Sequence) -> Tensor:
        """[vocab] bool: the tokens that may follow. Raises GrammarInvalid if the matcher gives up: it hit a limit."""
        assert sequence.sampling.grammar is not None
        arrival = sequence.arrival
        matcher = self._matchers.get(arrival)
        if matcher is None:
            matcher = self._matchers[arrival] = self._matcher(sequence.sampling.grammar).deep_copy()
            self._num_consumed[arrival] = 0
        fresh = sequence.token_ids[sequence.num_prompt_tokens + self._num_consumed[arrival] :]
        if fresh:
            matcher.consume_tokens(fresh)
            self._num_consumed[arrival] += len(fresh)
        bits = b"" if matcher.is_error() else matcher.compute_bitmask()
        if matcher.is_error():
            raise GrammarInvalid(matcher.get_error())
        unpacked = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=self._vocab_size, bitorder="little")
        return torch.from_numpy(unpacked.view(np.bool_))

    def _matcher(self, grammar: Grammar) -> LLMatcher:
        """Of a grammar's beginning; not to be advanced."""
        found = self._compiled.get(grammar)
        if found is None:
            found = LLMatcher(self._tokenizer, _source_of(grammar), log_level=0)
            if found.is_error():
                raise GrammarInvalid(found.get_error())
            self._compiled[grammar] = found
            if len(self._compiled) > _NUM_KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return found


def _source_of(grammar: Grammar) -> str:
    """A grammar in llguidance's own language. Raises GrammarInvalid."""
    if len(grammar.text.encode()) > _MAX_TEXT_BYTES:
        raise GrammarInvalid(f"a grammar may have {_MAX_TEXT_BYTES} bytes")
    try:
        if grammar.kind == "json_schema":
            return LLMatcher.grammar_from_json_schema(grammar.text)
        if grammar.kind == "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}')
        if grammar.kind == "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        if grammar.kind == "lark":
            return LLMatcher.grammar_from_lark(grammar.text)
        choices = json.loads(grammar.text)
    except ValueError as error:
        raise GrammarInvalid(str(error)) from error
    if not isinstance(choices, list) or not choices or not all(isinstance(each, str) and each for each in choices):
        raise GrammarInvalid("a choice needs a JSON list of texts that aren't empty")
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in choices))
