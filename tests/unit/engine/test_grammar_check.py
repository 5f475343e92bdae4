"""A grammar that explodes is stopped, in a process that can be killed, and nobody else waits for it."""

import json
import os
import signal

import pytest

from workers.engine.grammar import Grammars
from workers.engine.grammar_check import GrammarChecker
from workers.engine.grammar_source import GrammarInvalid, GrammarTooComplex, compile_grammar, tokenizer_of
from workers.engine.protocol import Grammar
from workers.engine.tokenizer import byte_bundle

VOCAB = 300
# llguidance builds an automaton with as many states: minutes, and no limit of its own stops it.
ENDLESS = Grammar("json_schema", '{"type": "integer", "multipleOf": 99999989}')
REFERENCES = 400


@pytest.fixture(scope="module")
def checker():
    return GrammarChecker(byte_bundle(VOCAB).tokenizer_json, VOCAB, [VOCAB - 1], limit_s=1)


def union_of_patterns(count):
    patterns = [f"^(.*a){{{n + 3}}}.*[b-{chr(99 + n % 20)}]{{1,{n + 2}}}$" for n in range(count)]
    return json.dumps({"anyOf": [{"type": "string", "pattern": each} for each in patterns]})


def web_of_references(count):
    return json.dumps(
        {
            "$defs": {
                f"d{n}": {"anyOf": [*({"$ref": f"#/$defs/d{(n * 7 + k) % count}"} for k in range(8)), {"type": "null"}]}
                for n in range(count)
            },
            "$ref": "#/$defs/d0",
        }
    )


def nested(depth):
    schema = {"type": "string", "pattern": "^a+b$"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"x": schema, "y": schema}, "required": ["x", "y"]}
    return json.dumps(schema)


def refused(checker, grammar):
    try:
        checker.check(grammar)
    except GrammarInvalid as error:
        return error
    return None


# Each of these either compiles or is refused; none may hold the process up or take its memory.
EXPLOSIVE = {
    "nested repeats": Grammar("regex", "(a{1,1000}){1,1000}"),
    "four nested repeats": Grammar("regex", "(((a{1,100}){1,100}){1,100}){1,100}"),
    "exponential automaton": Grammar("regex", "(.*[abc].{30}){5}"),
    "letters of all scripts": Grammar("regex", r"(\p{L}{1,500}\p{N}{1,500}){1,500}"),
    "huge enum": Grammar("json_schema", json.dumps({"enum": [f"value {n}" for n in range(9000)]})),
    "union of patterns": Grammar("json_schema", union_of_patterns(20)),
    "web of references": Grammar("json_schema", web_of_references(REFERENCES)),
    "tree of objects": Grammar("json_schema", nested(10)),
    "all of any of": Grammar(
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [{"required": [f"p{n}{k}"]} for k in range(4)]} for n in range(12)]}),
    ),
    "long string": Grammar("json_schema", '{"type": "string", "minLength": 1000000, "maxLength": 1000000000}'),
    "long array": Grammar("json_schema", '{"type": "array", "items": {"type": "integer"}, "minItems": 1000000}'),
    "left recursion": Grammar("lark", 'start: start start | "a" | '),
    "ambiguity": Grammar("lark", 'start: a a a a a a\na: a a | "x" | a "x" a | '),
    "repeats of repeats": Grammar("lark", 'start: (("a"~1..500)~1..500)~1..500'),
}


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_llguidances_own_limits_stop_most_explosions(checker, name):
    refusal = refused(checker, EXPLOSIVE[name])
    assert not isinstance(refusal, GrammarTooComplex)
    assert len(str(refusal)) < 500, "a refusal doesn't repeat the grammar"


def test_thousands_of_choices_can_be_followed(checker):
    texts = [f"value {n}" for n in range(5000)]
    grammar = Grammar("choice", json.dumps([*texts, 'a "quoted" \\ one\n']))
    checker.check(grammar)
    tokenizer = tokenizer_of(byte_bundle(VOCAB).tokenizer_json, VOCAB, [VOCAB - 1])
    for text in ("value 4999", 'a "quoted" \\ one\n'):
        matcher = compile_grammar(tokenizer, grammar)
        assert matcher.consume_tokens([*text.encode(), VOCAB - 1])
    assert compile_grammar(tokenizer, grammar).validate_tokens(list(b"value 5000")) < len(b"value 5000")


def test_what_they_do_not_stop_is_killed_and_the_next_grammar_is_checked(checker):
    with pytest.raises(GrammarTooComplex, match="more than 1 s"):
        checker.check(ENDLESS)
    checker.check(Grammar("regex", "a+"))


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("regex", "["), "regex"),
        (Grammar("lark", "start: nobody"), "unknown name"),
        (Grammar("lark", "start: start"), "vocabulary can spell"),
        (Grammar("json_schema", '{"$ref": "#"}'), "vocabulary can spell"),
        (Grammar("choice", "[]"), "aren't empty"),
    ],
)
def test_a_refusal_says_why(checker, grammar, words):
    with pytest.raises(GrammarInvalid, match=words):
        checker.check(grammar)


def test_a_process_that_was_killed_meanwhile_is_started_again(checker):
    checker.check(Grammar("regex", "a"))
    os.kill(checker._process.pid, signal.SIGKILL)
    checker._process.wait()
    checker.check(Grammar("regex", "b"))


def test_the_process_ends_with_its_owner():
    mine = GrammarChecker(byte_bundle(VOCAB).tokenizer_json, VOCAB, [VOCAB - 1], limit_s=1)
    mine.check(Grammar("regex", "a"))
    process = mine._process
    del mine
    assert process.poll() is not None


def test_a_verdict_is_remembered_and_others_do_not_wait_for_it():
    grammars = Grammars(byte_bundle(VOCAB).tokenizer_json, VOCAB, [VOCAB - 1], check_limit_s=1)
    endless = grammars.begin(ENDLESS)
    quick = grammars.begin(Grammar("regex", "a+"))
    quick.result(timeout=60)
    assert grammars.begin(ENDLESS) is endless, "one check for all who ask"
    with pytest.raises(GrammarTooComplex):
        endless.result(timeout=60)
    assert grammars.begin(ENDLESS) is endless
    assert grammars.begin(Grammar("regex", "a+")) is quick
