"""Does each token's log-probability stand with the text that the token begins, in streams and objects alike?"""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.api.openai.response_answer import response_object
from app.api.openai.response_stream import ResponseEvents
from app.openai.response_request import ResponseRequest
from tests.unit.openai.test_response_events import FREE, JOB

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
PLAIN = ResponseRequest.model_validate({"input": "a", "top_logprobs": 0})
END = b"<|end|>"  # a token that no text has


def entries(tokens: list[bytes]) -> list[dict[str, Any]]:
    """Each token's place is its log-probability, so that it can be known again."""
    return [
        {"token": token.decode(errors="replace"), "bytes": list(token), "logprob": -place, "top_logprobs": []}
        for place, token in enumerate(tokens)
    ]


def told(
    asked: ResponseRequest, pieces: list[tuple[str, list[dict[str, Any]]]], *, after: int = -1
) -> list[dict[str, Any]]:
    text = "".join(piece for piece, _ in pieces)
    content = [entry for _, part in pieces for entry in part]
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": {"content": content}}
    job = replace(JOB, status="succeeded", finished_at=NOW, choices=[choice])
    made = ResponseEvents(JOB, asked, after=after)
    events = [*made.begin(), *(event for piece in pieces for event in made.push(*piece)), *made.end(job)]
    if events:
        assert events[-1]["response"] == response_object(job, asked)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    if after < 0:
        assert done == events[-1]["response"]["output"]
    return events


def places(logprobs: list[dict[str, Any]]) -> list[int]:
    return [-int(each["logprob"]) for each in logprobs]


def of_messages(events: list[dict[str, Any]]) -> list[list[int]]:
    return [places(event["logprobs"]) for event in events if event["type"] == "response.output_text.done"]


def of_deltas(events: list[dict[str, Any]]) -> list[int]:
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    return [place for delta in deltas for place in places(delta["logprobs"])]


@st.composite
def written(draw: st.DrawFn) -> tuple[list[tuple[str, list[dict[str, Any]]]], list[bytes], str]:
    """A text with calls in it, cut into tokens and these into pieces; a text comes with its last token or later."""
    text = "".join(draw(st.lists(st.sampled_from(["Let me see. ", CALL, "ü", " so\n", "<tool", "{", "x"]), max_size=6)))
    raw = text.encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(raw)), max_size=12)) | {0, len(raw)})
    tokens = [raw[a:b] for a, b in pairwise(cuts)] + ([END] if draw(st.booleans()) else [])
    shown = entries(tokens)
    pieces, at, sent = [], 0, 0
    while at < len(tokens):
        size = draw(st.integers(1, 4))
        known = b"".join(each for each in tokens[: at + size] if each != END).decode(errors="ignore")
        if at + size < len(tokens):
            known = known[: max(sent, len(known) - draw(st.integers(0, 3)))]  # held back for a stop string
        pieces.append((known[sent:], shown[at : at + size]))
        at, sent = at + size, max(sent, len(known))
    return pieces, tokens, text


@given(written(), st.sampled_from([PLAIN, FREE]))
def test_a_plain_text_has_all_and_each_message_those_that_begin_in_it(
    case: tuple[list[tuple[str, list[dict[str, Any]]]], list[bytes], str], asked: ResponseRequest
) -> None:
    pieces, tokens, text = case
    events = told(asked, pieces)
    messages = of_messages(events)
    texts = [event["text"] for event in events if event["type"] == "response.output_text.done"]
    begins, at = [], 0
    for token in tokens:
        begins.append(len(text.encode()[:at].decode(errors="ignore")))
        at += len(token) if token != END else 0
    if texts == [text]:
        assert messages == [list(range(len(tokens)))]
        in_text = [place for place, begin in enumerate(begins) if begin < len(text)]
        assert of_deltas(events) == in_text  # what stands behind the text comes with its end
        return
    found = 0
    for shown, message in zip(texts, messages, strict=True):
        found = text.index(shown, found)
        inside = [place for place, begin in enumerate(begins) if found <= begin < found + len(shown)]
        assert message[: len(inside)] == inside
        assert all(begins[place] == len(text) for place in message[len(inside) :])
        found += len(shown)


@given(written(), st.sampled_from([PLAIN, FREE]), st.data())
def test_whoever_comes_back_gets_those_that_are_behind(
    case: tuple[list[tuple[str, list[dict[str, Any]]]], list[bytes], str], asked: ResponseRequest, data: Any
) -> None:
    pieces, _, _ = case
    whole = told(asked, pieces)
    place = data.draw(st.integers(0, len(whole) - 1))
    rest = told(asked, pieces, after=whole[place]["sequence_number"])
    assert of_deltas(whole[: place + 1]) + of_deltas(rest) == of_deltas(whole)
    assert of_messages(whole[: place + 1]) + of_messages(rest) == of_messages(whole)


def test_a_leading_blank_that_the_text_doesnt_have() -> None:
    events = told(PLAIN, [("Once", entries([b" Once", b" upon"])[:1]), (" upon", entries([b" Once", b" upon"])[1:])])
    assert of_deltas(events) == [0, 1]
