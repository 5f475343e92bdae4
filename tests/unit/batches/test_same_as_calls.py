"""Is a line of a batch understood, and refused, as a call of its endpoint is?"""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.api.body import parse_body
from app.api.openai.errors import face_error
from app.batches.translate import NOT_IN_A_LINE, to_request
from app.errors import PenstockError
from app.jobs.refusals import refusal
from app.openai.chat_request import ChatRequest
from app.openai.completion_request import CompletionRequest
from app.openai.response_request import ResponseRequest

CALLS: dict[str, Any] = {
    "/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest, "/v1/responses": ResponseRequest,
}  # fmt: skip
TURN = {"role": "user", "content": "hi"}
PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
ITEMS = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
INPUTS: dict[str, list[tuple[str, Any]]] = {
    "/v1/chat/completions": [
        ("messages", value)
        for value in (
            [TURN], [TURN | {"content": PARTS}], [TURN | {"name": "me"}], [TURN | {"role": "developer"}], [], None, "hi",
            ["hi"], [TURN | {"role": "nobody"}], [TURN | {"content": [{"type": "image_url"}]}], [{"role": "user"}],
            [TURN | {"role": "tool"}], [TURN | {"refusal": None, "annotations": []}], [TURN | {"x": 1}],
        )
    ],
    "/v1/completions": [("prompt", value) for value in ("a", ["a"], [1, 2], [[1, 2]], "", [""], [], [-1], None, 3)],
    "/v1/responses": [("input", value) for value in ("a", ITEMS, [TURN], "", [], None, [{"type": "image"}], 3)],
}  # fmt: skip
FIELDS: list[tuple[str, Any]] = [
    (name, value)
    for name, values in {
        "model": ("tiny", 3, "", None), "max_tokens": (9, 0, "9", None, 10**9), "max_completion_tokens": (5, -1),
        "max_output_tokens": (5, 0), "logprobs": (True, False, 2, 21, "yes"), "top_logprobs": (3, 21, None),
        "temperature": (0, 1.5, 3, "hot"), "top_p": (0.5, 0), "n": (2, 0, 200), "seed": (4, -1), "stop": ("x", ["x"], 3, [""]),
        "presence_penalty": (1, 3), "logit_bias": ({"5": 1.0}, {"5": 101}, {"x": 1}), "metadata": ({"a": "b"}, {"a": 1}),
        "response_format": ({"type": "text"}, {"type": "json_object"}, SCHEMA, {"type": "x"}), "user": ("u", 3),
        "text": ({"format": {"type": "json_object"}}, {"verbosity": "low"}), "instructions": ("Be brief.", 3),
        "store": (True, False, "yes"), "service_tier": ("flex", "auto", "x"), "stream": (False, None),
        "stream_options": ({"include_usage": True}, None), "reasoning": ({}, {"effort": "high"}),
        "reasoning_effort": ("none", "high"), "echo": (False, True), "best_of": (1, 2), "top_k": (5, -2),
        "min_p": (0.1, 2), "min_tokens": (1, -1), "ignore_eos": (True, 1), "structured_outputs": ({"regex": "a+"}, {"x": 1}),
        "tool_choice": ("none", "auto", "x"), "parallel_tool_calls": (True, "x"), "nobody_knows": (1,), "background": (False,),
        "functions": ([], None), "truncation": ("disabled", "auto"), "safety_identifier": ("x",), "prompt_cache_key": ("x",),
        "include": (["message.output_text.logprobs"], ["x"]), "repetition_penalty": (1.1, 0), "stop_repeating": (3, -1),
    }.items()
    for value in values
]  # fmt: skip


def of_call(endpoint: str, body: dict[str, Any]) -> Any:
    """What a call of the endpoint makes of the body: the job's request, or how it is refused."""
    model = CALLS[endpoint]
    renamed: dict[str, str] = {}
    try:
        try:
            asked = parse_body(json.dumps(body).encode(), model)
            renamed = asked.renamed()
            return (asked.jobs()[0] if endpoint == "/v1/completions" else asked.job()).canonical()
        except ValidationError as error:
            raise refusal(error) from None
    except PenstockError as error:
        said = face_error(error, renamed)
        return said.message, said.param


def of_line(endpoint: str, body: dict[str, Any]) -> Any:
    try:
        return to_request(endpoint, body).canonical()
    except PenstockError as error:
        return error.detail, error.extra.get("param")


@pytest.mark.parametrize("endpoint", sorted(CALLS))
def test_each_field_means_the_same(endpoint: str) -> None:
    usual = dict([INPUTS[endpoint][0]])
    bodies = [dict([each]) for each in INPUTS[endpoint]] + [usual | dict([each]) for each in FIELDS] + [{}]
    found = {json.dumps(body): (of_line(endpoint, body), of_call(endpoint, body)) for body in bodies}
    assert {body: both for body, both in found.items() if both[0] != both[1]} == {}
    assert sum(isinstance(line, dict) for line, _ in found.values()) > 20, "some hold"
    assert sum(isinstance(line, tuple) for line, _ in found.values()) > 20, "some don't"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(CALLS)), st.data())
def test_so_do_several_together(endpoint: str, data: st.DataObject) -> None:
    first = data.draw(st.sampled_from(INPUTS[endpoint]))
    body = dict([first, *data.draw(st.lists(st.sampled_from(FIELDS), max_size=5))])
    assert of_line(endpoint, body) == of_call(endpoint, body)


@pytest.mark.parametrize("endpoint", sorted(CALLS))
@pytest.mark.parametrize("name", sorted(NOT_IN_A_LINE))
def test_what_goes_with_calls_only_is_refused_by_its_name(endpoint: str, name: str) -> None:
    values = {
        "stream": True, "background": True, "tools": [{"type": "function", "function": {"name": "f"}}],
        "webhook": {"url": "https://example.com/"}, "deadline_s": 5, "on_budget": "wait", "fallback_model": "other",
        "previous_response_id": "resp_1",
    }  # fmt: skip
    body = dict([INPUTS[endpoint][0], (name, values[name])])
    message, param = of_line(endpoint, body)
    assert param == name
    assert message.startswith(f"{name}: ")
    assert isinstance(of_line(endpoint, body | {name: None}), dict) == isinstance(
        of_call(endpoint, body | {name: None}), dict
    )
