"""Are calls found in a model's text, whatever pieces it comes in?"""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.openai.calls import (
    Arguments,
    CallBegun,
    CallEnded,
    ForcedCalls,
    Part,
    PlainText,
    PossibleCalls,
    Reader,
    Said,
)

NAMES = frozenset({"weather", "now"})


def read(reader: Reader, pieces: list[str]) -> list[Part]:
    """The parts, with those put together that a piece's end has cut in two."""
    joined: list[Part] = []
    for part in [*(part for piece in pieces for part in reader.push(piece)), *reader.close()]:
        last = joined[-1] if joined else None
        if isinstance(part, Said) and isinstance(last, Said):
            joined[-1] = Said(last.text + part.text)
        elif isinstance(part, Arguments) and isinstance(last, Arguments):
            joined[-1] = Arguments(last.text + part.text)
        else:
            joined.append(part)
    return joined


def call(name: str, arguments: str) -> list[Part]:
    return [CallBegun(name), Arguments(arguments), CallEnded()]


WEATHER = '{"name": "weather", "arguments": {"city": "Rome"}}'
POSSIBLE: dict[str, list[Part]] = {
    "Hello, world.": [Said("Hello, world.")],
    "": [],
    " \n": [Said(" \n")],
    f"<tool_call>\n{WEATHER}\n</tool_call>": call("weather", '{"city": "Rome"}'),
    f"Let me see. \n<tool_call>{WEATHER}</tool_call>\n": [Said("Let me see."), *call("weather", '{"city": "Rome"}')],
    f"<tool_call>{WEATHER}</tool_call>\n<tool_call>{WEATHER}</tool_call>": call("weather", '{"city": "Rome"}') * 2,
    f"<tool_call>{WEATHER}": call("weather", '{"city": "Rome"}'),
    WEATHER: call("weather", '{"city": "Rome"}'),
    f"[TOOL_CALLS][{WEATHER}, {WEATHER}]": call("weather", '{"city": "Rome"}') * 2,
    '<|python_tag|>{"name": "now", "parameters": {}}': call("now", "{}"),
    '{"name": "now", "arguments": "{\\"a\\": 1}"}': call("now", '{"a": 1}'),
    '{"name": "unknown", "arguments": {}}': [Said('{"name": "unknown", "arguments": {}}')],
    '{"name": "now", "arguments": {"a": NaN}}': [Said('{"name": "now", "arguments": {"a": NaN}}')],
    '{"name": "now", "arguments": {"a": -1e999}}': [Said('{"name": "now", "arguments": {"a": -1e999}}')],
    '{"answer": 42}': [Said('{"answer": 42}')],
    '{"name": "now", "arguments": [1]}': [Said('{"name": "now", "arguments": [1]}')],
    "<tool_call>nonsense</tool_call> and on": [Said("<tool_call>nonsense</tool_call> and on")],
    "a <b> <tool": [Said("a <b> <tool")],
    "<table>": [Said("<table>")],
    "[1] says so": [Said("[1] says so")],
    '{"name": {"first": "A"}}': [Said('{"name": {"first": "A"}}')],
    '{"name": "now", "arguments": {"a": "\\ud83d"}}': call("now", '{"a": "\\ud83d"}'),
}


@pytest.mark.parametrize("text", POSSIBLE)
@given(data=st.data())
def test_possible_calls_are_read_from_any_pieces(text: str, data: Any) -> None:
    assert read(PossibleCalls(NAMES), cut(data, text)) == POSSIBLE[text]


def cut(data: Any, text: str) -> list[str]:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    return [text[begin:end] for begin, end in pairwise(places)]


@given(st.text(alphabet=' \n<>{}[]"/tool_cal|'), st.data())
def test_the_same_parts_come_out_whatever_the_pieces(text: str, data: Any) -> None:
    parts = read(PossibleCalls(NAMES), cut(data, text))
    assert parts == read(PossibleCalls(NAMES), [text])
    assert "".join(part.text for part in parts if isinstance(part, Said)) == text, "nothing of it is a call"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(NAMES)), st.dictionaries(st.text(), _json, max_size=3)), min_size=1, max_size=4
    ),
    st.data(),
)
def test_forced_calls_are_read_from_any_pieces(calls: list[tuple[str, dict[str, Any]]], data: Any) -> None:
    written = [(name, json.dumps(arguments, ensure_ascii=data.draw(st.booleans()))) for name, arguments in calls]
    text = "[" + ", ".join(f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in written) + "]"
    wanted = [part for name, arguments in written for part in call(name, arguments)]
    assert read(ForcedCalls(), cut(data, text)) == wanted
    end = data.draw(st.integers(0, len(text)))
    short = read(ForcedCalls(), cut(data, text[:end]))
    told = "".join(part.text for part in short if isinstance(part, Arguments))
    assert "".join(arguments for _, arguments in written).startswith(told), (
        "a text that was cut off gives what there is"
    )
    assert [part.name for part in short if isinstance(part, CallBegun)] == [name for name, _ in written][
        : sum(isinstance(part, CallBegun) for part in short)
    ]


def test_plain_text_is_never_a_call() -> None:
    assert read(PlainText(), [WEATHER]) == [Said(WEATHER)]
