"""Is it told where in a schema or regex the fault is, and never by a word of it?"""

import json
import re
from typing import Any

import pytest

from workers.engine.grammar_place import MAX_CHARS, place_of
from workers.engine.grammar_source import GrammarInvalid, compile_grammar, tokenizer_of
from workers.engine.protocol import Grammar
from workers.engine.tokenizer import byte_bundle

VOCAB = 300
PLAIN = {"type": "string", "maxLength": 3}


def told(kind: Any, text: str) -> str:
    tokenizer = tokenizer_of(byte_bundle(VOCAB).tokenizer_json, VOCAB, [VOCAB - 1])
    with pytest.raises(GrammarInvalid) as refused:
        compile_grammar(tokenizer, Grammar(kind, text))
    return str(refused.value)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "zebra"}, "type"),
        ({"properties": {"type": PLAIN, "zebra": {"type": "zebra"}}}, "properties[2nd].type"),
        ({"items": {"anyOf": [PLAIN, PLAIN, {"type": "zebra"}]}}, "items.anyOf[3rd].type"),
        ({"properties": {"a": {"const": {"type": "zebra"}}, "b": {"type": "zebra"}}}, "properties[2nd].type"),
        ({"$defs": {"zebra": {"format": "zebra"}}, "$ref": "#/$defs/zebra"}, "$defs[1st].format"),
        ({"properties": {"a": {"$ref": "#/$defs/a"}, "b": {"$ref": "#/zebra"}}, "$defs": {"a": PLAIN}}, "properties[2nd].$ref"),
        ({"properties": {"a": PLAIN, "b": {"type": "string", "maxLength": -1}}}, "properties[2nd].maxLength"),
        ({"$defs": {"a": {"minimum": 5}, "b": {"type": "integer", "minimum": 4, "maximum": 2}}, "$ref": "#/$defs/b"}, "$defs[2nd].minimum"),
        ({"properties": {"a": {"enum": [1]}, "b": {"enum": "zebra"}}}, "properties[2nd].enum"),
        ({"items": {"type": "array", "uniqueItems": True}}, "items.uniqueItems"),
        ({"properties": {f"p{n}": PLAIN for n in range(110)} | {"b": {"pattern": "zebra("}}}, "properties[111th].pattern"),
    ],
)  # fmt: skip
def test_a_schemas_fault_is_told_with_its_place(schema: Any, place: str) -> None:
    said = told("json_schema", json.dumps(schema))
    assert said.startswith(f"at {place}: ")
    assert "zebra" not in said


def test_a_place_is_of_bounded_length() -> None:
    schema: dict[str, Any] = {"type": "zebra"}
    for _ in range(30):
        schema = {"properties": {"zebra": schema}}
    place = place_of(Grammar("json_schema", json.dumps(schema)), "Invalid type: zebra")
    assert len(place) == MAX_CHARS
    assert place.endswith("properties[1st].type")


@pytest.mark.parametrize("before", ["", "a", "zebra", "é/\n\t", "\\/\\n", "x" * 1000])
def test_the_character_at_which_a_regex_is_wrong_is_counted_in_the_senders_own(before: str) -> None:
    found = re.match(r"at character (\d+): invalid regex: unclosed character class$", told("regex", before + "["))
    assert found is not None
    assert int(found[1]) == len(before) + 1


@pytest.mark.parametrize("text", ["[]", "nonsense", "[" * 100_000])
def test_what_has_no_place_has_none(text: str) -> None:
    assert place_of(Grammar("json_schema", text), "Invalid type: zebra") == ""


def test_a_word_of_the_sender_is_no_place() -> None:
    schema = Grammar("json_schema", '{"zebra": 1, "enum": 1}')
    assert place_of(schema, "zebra must be an object") == ""
    assert place_of(schema, "enum must be an array") == "enum"
