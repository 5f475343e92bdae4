"""Do the face's bodies become the jobs that they ask for?"""

from typing import Any

import pytest
from pydantic import ValidationError

from app.errors import InvalidRequest
from app.jobs.request import JobRequest
from app.jobs.tokenizing import PromptEncoder
from app.openai.chat_request import ChatRequest
from app.openai.completion_request import CompletionRequest
from app.openai.fields import Generation
from app.openai.response_request import ResponseRequest
from tests.support.api import tokenizer_of_bytes

ASK = [{"role": "user", "content": "hi"}]
FACES: tuple[type[Generation], ...] = (ChatRequest, CompletionRequest, ResponseRequest)
LEAST: dict[type[Generation], dict[str, Any]] = {
    ChatRequest: {"messages": ASK}, CompletionRequest: {"prompt": "a"}, ResponseRequest: {"input": "a"},
}  # fmt: skip


def chat(**body: Any) -> JobRequest:
    return ChatRequest.model_validate({"messages": ASK} | body).job()


def deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels - 1):
        found = [found]
    return found


def test_only_what_was_said_is_in_the_job() -> None:
    assert chat().canonical() == {"messages": ASK}
    assert chat(temperature=None, n=None, stop=None, tools=None, stream=False).canonical() == {"messages": ASK}
    job = chat(
        max_tokens=5, logprobs=True, service_tier="flex", stop=["a"], logit_bias={"1": 2}, top_k=3, deadline_s=4.0
    )
    assert (job.max_tokens, job.logprobs, job.tier, job.top_k, job.deadline_s) == (5, 0, "batch", 3, 4.0)
    assert (job.stop_strings, job.logit_biases) == (["a"], {1: 2.0})


@pytest.mark.parametrize("face", FACES)
def test_each_unsupported_parameter_is_refused_by_name_but_for_what_asks_for_nothing(face: type[Generation]) -> None:
    assert face.unsupported
    for name, rule in face.unsupported.items():
        for value in (None, *rule.neutral):
            face.model_validate(LEAST[face] | {name: value})
        with pytest.raises(ValidationError, match=f"{name}: isn't supported here: {rule.why}"):
            face.model_validate(LEAST[face] | {name: {"some": "thing"}})
    with pytest.raises(ValidationError, match="extra_forbidden"):
        face.model_validate(LEAST[face] | {"nonsense": 1})


def test_what_asks_for_nothing_has_its_type() -> None:
    with pytest.raises(ValidationError, match="best_of"):
        CompletionRequest.model_validate({"prompt": "a", "best_of": True})
    with pytest.raises(ValidationError, match="echo"):
        CompletionRequest.model_validate({"prompt": "a", "echo": 0})


@pytest.mark.parametrize(
    ("logprobs", "why"), [([{"a": ["\x00"]}], "U\\+0000"), ([{"\x00": 1}], "U\\+0000"), (deep(129), "128 deep")]
)
def test_what_comes_back_with_a_part_can_be_written_down(logprobs: list[Any], why: str) -> None:
    """A NUL in a stored call was an error to the SQL that ends jobs: no job that ended with that one could end, and workers died of it."""
    part = {"type": "output_text", "text": "hi", "logprobs": logprobs}
    with pytest.raises(ValidationError, match=why):
        ResponseRequest.model_validate({"input": [{"role": "assistant", "content": [part]}]})


def test_turns_of_a_chat() -> None:
    called = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    job = chat(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [called], "refusal": None},
            {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        ]
    )
    assert [message.model_dump(exclude_none=True) for message in job.messages or []] == [
        {"role": "system", "content": "a\nb"},
        {"role": "assistant", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]


def test_turns_of_a_response() -> None:
    asked = ResponseRequest.model_validate(
        {
            "instructions": "Be short.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "When?"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hm."}]},
                {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "noon"},
            ],
        }
    )
    turns = [
        message.model_dump(exclude_none=True)
        for message in asked.job([{"role": "user", "content": "before"}]).messages or []
    ]
    assert [turn["role"] for turn in turns] == ["system", "user", "user", "assistant", "tool"]
    assert [call["id"] for call in turns[3]["tool_calls"]] == ["c1", "c2"]
    assert turns[3]["content"] == "Hm."


TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}


def test_tools_go_to_the_template_unless_none_may_be_called() -> None:
    assert chat(tools=[TOOL]).tools is not None
    assert chat(tools=[TOOL]).structure is None
    assert chat(tools=[TOOL], tool_choice="none").tools is None
    forced = chat(tools=[TOOL], tool_choice="required")
    assert forced.tools is not None
    assert forced.structure is not None
    assert forced.structure.kind == "lark"
    for choice in ({"type": "function", "function": {"name": "other"}}, "required", "auto"):
        with pytest.raises(InvalidRequest, match="tool_choice"):
            chat(tool_choice=choice)
    with pytest.raises(InvalidRequest, match="tools: two functions"):
        chat(tools=[TOOL, TOOL])


@pytest.mark.parametrize("kind", ["string", "array", ["object", "null"]])
def test_arguments_are_an_object(kind: Any) -> None:
    """Others have no end that a stream could be told of: what followed them was told as a part of them."""
    function = TOOL["function"] | {"parameters": {"type": kind}}
    for choice in ("required", None):
        with pytest.raises(InvalidRequest, match=r"tools\[0\].function.parameters.type: must be 'object'"):
            chat(tools=[TOOL | {"function": function}], tool_choice=choice)


def test_a_forced_call_comes_before_a_form() -> None:
    job = chat(tools=[TOOL], tool_choice="required", response_format={"type": "json_object"})
    assert job.structure is not None
    assert job.structure.kind == "lark"
    assert chat(tools=[TOOL], response_format={"type": "json_object"}).structure.kind == "json_object"  # type: ignore[union-attr]


TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}|{% endfor %}"
)


def test_the_template_sees_tools_and_calls_as_objects() -> None:
    encoder = PromptEncoder(tokenizer_of_bytes().tokenizer_json, TEMPLATE, {})
    called = {"id": "c", "type": "function", "function": {"name": "now", "arguments": '{"a": "ü"}'}}
    messages = [{"role": "assistant", "tool_calls": [called]}, {"role": "tool", "content": "x", "tool_call_id": "c"}]
    assert encoder.render(messages, [TOOL]) == 'now;assistant:<now {"a": "ü"}>|tool:x|'
    broken = [{"role": "assistant", "tool_calls": [called | {"function": {"name": "now", "arguments": "{"}}]}]
    assert encoder.render(broken) == 'assistant:<now "{">|'
