"""Can a message that is kept with a job quote what its caller sent? Not a word of it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.completions import message_of
from workers.engine.grammar_source import GrammarInvalid, compile_grammar, tokenizer_of
from workers.engine.plain_words import _WORDS, MAX_CHARS, plain_words
from workers.engine.protocol import Grammar
from workers.engine.tokenizer import byte_bundle

VOCAB = 300


@given(st.text() | st.text(alphabet="abe \n\t:'\"^|\\1(4)/[]…$_-", max_size=400))
def test_only_known_words_and_a_place_are_left(message: str) -> None:
    told = plain_words(message)
    assert len(told) <= MAX_CHARS
    rest = re.sub(r"^(?:at )?\d{1,6}\(\d{1,6}\)|^(?:at )?line \d{1,6} column \d{1,6}", "", told)
    for word in re.split(r"[\s:;,.()=<>…]+", rest):
        assert not word or word.lower() in _WORDS, told


@pytest.mark.parametrize(
    ("kind", "source", "told"),
    [
        ("regex", "zebra[", "at character 6: invalid regex: unclosed character class"),
        ("regex", "zebra\n/\\/[", "at character 10: invalid regex: unclosed character class"),
        ("regex", "zebra)", "at character 6: invalid regex: unopened group"),
        ("regex", "zebra{", "at character 6: invalid regex: unclosed counted repetition"),
        ("regex", 'zebra \\" zebra[', "unclosed character class"),
        ("regex", "the error is zebra(?=x)", "look-around, including look-ahead and look-behind, is not supported"),
        ("lark", "start: zebra", "at line 1 column 8: unknown name: …"),
        ("lark", "start: ZEBRA\nZEBRA: /[/", "at line 2 column 8: invalid regex: unclosed character class"),
        ("lark", 'start: ("zebra"', "line 1 column 16: Expected token closing parenthesis, found line break"),
        ("lark", "start: A\nA: B\nB: A // zebra", "at line 3 column 4: circular reference in token A definition"),
        ("lark", 'start: "zebra', "lexer error"),
        (
            "json_schema",
            '{"properties": {"a": {"type": "string"}, "zebra": {"items": {"type": ["null", "zebra"]}}}}',
            "at properties[2nd].items.type: Invalid type: …; the types are array, boolean, integer, null, number, object and string",
        ),
        (
            "json_schema",
            '{"type": "array", "contains": {"const": "zebra"}}',
            "at contains: Unimplemented keys: contains",
        ),
        (
            "json_schema",
            '{"type": "object", "required": ["zebra"], "properties": {"zebra": false}}',
            "required property …",
        ),
        (
            "json_schema",
            '{"type": "string", "pattern": "zebra["}',
            "at pattern: invalid regex: unclosed character class",
        ),
        ("json_schema", '{"const": 1, "zebra', "at line 1 column 19: EOF while parsing a string"),
        ("choice", '["zebra', "Unterminated string"),
    ],
)
def test_a_grammars_fault_is_said_without_the_grammar(kind: str, source: str, told: str) -> None:
    tokenizer = tokenizer_of(byte_bundle(VOCAB).tokenizer_json, VOCAB, [VOCAB - 1])
    with pytest.raises(GrammarInvalid) as refused:
        compile_grammar(tokenizer, Grammar(kind, source))
    assert told in str(refused.value)
    assert "zebra" not in str(refused.value)


def test_an_upstreams_words_are_kept_without_what_it_quotes() -> None:
    said = b'{"error": {"message": "The prompt \'my zebra\' is too long: maximum context length is exceeded"}}'
    assert message_of(said) == "The prompt … is too long: maximum context length is exceeded"
