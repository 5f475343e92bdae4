"""Do OpenAI's bodies become the jobs that they mean?"""

from typing import Any

import pytest

from app.batches.translate import to_request
from app.errors import InvalidRequest

CHAT, TEXT, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("endpoint", "body", "wanted"),
    [
        (CHAT, HELLO | {"max_completion_tokens": 5}, {"max_tokens": 5}),
        (CHAT, HELLO | {"max_tokens": 9, "user": "u", "stream": False, "store": None}, {"max_tokens": 9}),
        (CHAT, HELLO | {"logprobs": True}, {"logprobs": 0}),
        (CHAT, HELLO | {"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        (CHAT, HELLO | {"logprobs": False}, {"logprobs": None}),
        (CHAT, HELLO | {"temperature": 0, "seed": 4, "stop": ["x"]}, {"temperature": 0, "seed": 4, "stop": ["x"]}),
        (TEXT, {"prompt": "a"}, {"prompt": "a", "max_tokens": None}),
        (TEXT, {"prompt": ["a"], "logprobs": 2}, {"prompt": "a", "logprobs": 2}),
        (TEXT, {"prompt": [[1, 2]]}, {"prompt": [1, 2]}),
        (TEXT, {"prompt": [1, 2], "max_tokens": 3}, {"prompt": [1, 2], "max_tokens": 3}),
        (RESPONSE, {"input": "a", "max_output_tokens": 3}, {"max_tokens": 3}),
    ],
)  # fmt: skip
def test_fields_come_over_under_our_names(endpoint: str, body: dict[str, Any], wanted: dict[str, Any]) -> None:
    request = to_request(endpoint, body)
    assert {name: getattr(request, name) for name in wanted} == wanted


def test_messages_of_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = to_request(CHAT, {"messages": [{"role": "user", "content": parts, "name": "me"}]})
    assert [(each.role, each.content) for each in request.messages or []] == [("user", "one\ntwo")]


def test_instructions_come_first() -> None:
    turns = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}]
    request = to_request(RESPONSE, {"input": turns, "instructions": "Be brief."})
    assert [(each.role, each.content) for each in request.messages or []] == [("system", "Be brief."), ("user", "a")]


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, HELLO | {"stream": True}, "stream"),
        (CHAT, HELLO | {"tools": [{}]}, "tools"),
        (CHAT, HELLO | {"top_logprobs": 3}, "top_logprobs"),
        (CHAT, HELLO | {"model": 3}, "model"),
        (CHAT, {"messages": ["x"]}, "messages[0]"),
        (CHAT, HELLO | {"max_completion_tokens": 5, "max_tokens": 9}, "max_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        (CHAT, {"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        (TEXT, {"prompt": ["a", "b"]}, "prompt"),
        (RESPONSE, {"input": "a", "previous_response_id": ""}, "previous_response_id"),
        (TEXT, {}, "prompt"),
        (RESPONSE, {"instructions": "x"}, "input"),
        (RESPONSE, {"input": "x", "background": True}, "background"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_its_name(endpoint: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_request(endpoint, body)
    assert caught.value.extra["param"] == param
