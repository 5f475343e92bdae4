"""What does llguidance get to see of a grammar, and how much may it spend on it? No torch, no numpy.

Its limits are counted in steps of its own, not in time, so a grammar is refused on every machine or on none.
"""

import json
import re
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from workers.engine.grammar_place import place_of
from workers.engine.plain_words import MAX_CHARS, plain_words
from workers.engine.protocol import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_MAX_TEXT_BYTES = 1 << 18  # a longer one is a mistake or an attack
# At most one space between two things, and no line breaks. Where JSON's own rule holds, small models write blanks forever.
_JSON: "JsonCompileOptions" = {"whitespace_pattern": " "}
_IN_OURS = re.compile(r"^at \d+\(\d+\): ")  # a place in the grammar that llguidance makes of a regex
_TYPES = "; the types are array, boolean, integer, null, number, object and string"


class GrammarInvalid(ValueError):
    """A grammar that can't be used; the message says why, and quotes nothing of it: it is kept longer than the grammar."""

    code = "grammar_invalid"


class GrammarTooComplex(GrammarInvalid):
    """A grammar that would cost more time or memory than any may."""

    code = "grammar_too_complex"


def tokenizer_of(tokenizer_json: str, vocab_size: int, eos_token_ids: list[int]) -> LLTokenizer:
    """llguidance's view of a tokenizer. Raises ValueError for one that it doesn't know, or a model without EOS."""
    if not eos_token_ids:
        raise ValueError("the model has no EOS token, which is how a structured output ends")
    return LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=eos_token_ids)


def compile_grammar(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """A matcher at the grammar's beginning. Raises GrammarInvalid. May take as long as it likes: see `grammar_check`."""
    matcher = LLMatcher(tokenizer, _source_of(grammar), log_level=0, limits=_limits())
    if matcher.is_error():
        raise GrammarInvalid(_told(grammar, _message_of(matcher)))
    return matcher


def reason_of(matcher: LLMatcher) -> str:
    """Why a matcher gave up, in words for the sender of its grammar."""
    reason = _message_of(matcher)
    if reason.startswith("NoExtension"):
        return "nothing that this model's vocabulary can spell is allowed here"
    return plain_words(reason) or "it can't be used"


def _message_of(matcher: LLMatcher) -> str:
    return str(matcher.get_error()).partition("\n<")[0].strip()


def _told(grammar: Grammar, reason: str) -> str:
    """Why a grammar doesn't compile, and where, as far as that quotes nothing of it."""
    place = place_of(grammar, reason)
    words = plain_words(_IN_OURS.sub("", reason) if grammar.kind == "regex" else reason) or "it can't be used"
    advice = _TYPES if words.startswith("Invalid type:") else ""
    return f"at {place}: {words}{advice}"[:MAX_CHARS] if place else words + advice


def _limits() -> LLParserLimits:
    """A mask took up to 11 ms under the defaults; `verbose_errors` would put the whole grammar into each message."""
    return LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


def _source_of(grammar: Grammar) -> str:
    """A grammar in llguidance's own language. Raises GrammarInvalid."""
    if len(grammar.text.encode()) > _MAX_TEXT_BYTES:
        raise GrammarInvalid(f"a grammar may have {_MAX_TEXT_BYTES} bytes")
    try:
        if grammar.kind == "json_schema":
            return LLMatcher.grammar_from_json_schema(grammar.text, defaults=_JSON)
        if grammar.kind == "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', defaults=_JSON)
        if grammar.kind == "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        if grammar.kind == "lark":
            return LLMatcher.grammar_from_lark(grammar.text)
        choices = json.loads(grammar.text)
    except (ValueError, RecursionError) as error:
        raise GrammarInvalid(plain_words(str(error)) or "it can't be read") from None
    if not isinstance(choices, list) or not choices or not all(isinstance(each, str) and each for each in choices):
        raise GrammarInvalid("a choice needs a JSON list of texts that aren't empty")
    # One token of the grammar rather than as many rules: thousands of rules that may all begin would be too many.
    texts = " | ".join(json.dumps(each, ensure_ascii=False) for each in choices)
    return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}")
