"""Does a refusal name what its caller wrote, whichever rule was broken: the body's own, or one of the job underneath?"""

from typing import Any

import pytest

from app.batches.translate import to_request
from app.errors import InvalidRequest
from app.openai.chat_request import ChatRequest
from app.openai.completion_request import CompletionRequest
from app.openai.fields import in_callers_words
from app.openai.response_request import ResponseRequest

CHAT, TEXT, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
LEAST: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]}, TEXT: {"prompt": "a"}, RESPONSE: {"input": "a"},
}  # fmt: skip
SCHEMA = {"type": "object"}
CALL = {"type": "function_call", "name": "a", "arguments": "{}"}


def form(**fields: Any) -> dict[str, Any]:
    return {"text": {"format": fields}}


@pytest.mark.parametrize(
    ("endpoint", "body", "param", "said"),
    [
        # text.format of a response
        (RESPONSE, form(type="json_schema", name="a b", schema=SCHEMA), "text.format.name", "must match"),
        (RESPONSE, form(type="json_schema", name="x" * 65, schema=SCHEMA), "text.format.name", "must match"),
        (RESPONSE, form(type="json_schema", schema=SCHEMA), "text.format.name", "is required"),
        (RESPONSE, form(type="json_schema", name="a"), "text.format.schema", "is required"),
        (RESPONSE, form(type="json_schema", name="a", schema=[]), "text.format.schema", "must be an object"),
        (RESPONSE, form(type="json_object", schema=SCHEMA), "text.format.schema", "goes with the type json_schema"),
        (RESPONSE, form(type="text", name="a"), "text.format.name", "goes with the type json_schema"),
        (RESPONSE, form(type="json_object", strict=True), "text.format.strict", "goes with the type json_schema"),
        (RESPONSE, form(type="xml"), "text.format.type", "must be 'text', 'json_object' or 'json_schema'"),
        (RESPONSE, form(type="text", json_schema={}), "text.format.json_schema", "isn't a known field"),
        (RESPONSE, form(type="json_object") | {"structured_outputs": {"regex": "a"}}, "structured_outputs",
         "give only one of text.format and structured_outputs"),
        # Other fields of a response
        (RESPONSE, {"max_output_tokens": 4, "min_tokens": 5}, "min_tokens", "not be more than max_output_tokens (4)"),
        (RESPONSE, {"max_output_tokens": 0}, "max_output_tokens", "must be greater"),
        (RESPONSE, {"max_tokens": 4}, "max_tokens", "isn't a known field"),
        (RESPONSE, {"top_logprobs": 21}, "top_logprobs", "must be less"),
        (RESPONSE, {"input": [CALL | {"call_id": str(i)} for i in range(129)]}, "input", "at most 128"),
        (RESPONSE, {"input": [{"role": "user", "content": "a"}] * 1024, "instructions": "b"}, "input", "at most 1024"),
        (RESPONSE, {"input": [{"role": "x", "content": "a"}]}, "input[0].role", "must be 'system'"),
        (RESPONSE, {"input": [CALL]}, "input[0].call_id", "is required"),
        (RESPONSE, {"input": [{"role": "user", "content": [{"type": "image"}]}]}, "input[0].content[0].type", "must be"),
        (RESPONSE, {"tool_choice": "any"}, "tool_choice", "or must be an object"),
        (RESPONSE, {"tool_choice": {"type": "function"}}, "tool_choice", "tool_choice.name: is required"),
        # Completions
        (TEXT, {"max_tokens": 3, "min_tokens": 4}, "min_tokens", "not be more than max_tokens (3)"),
        (TEXT, {"logprobs": 21}, "logprobs", "must be less"),
        (TEXT, {"prompt": [-1]}, "prompt[0]", "must be a token id"),
        (TEXT, {"prompt": [[1], [2, 2**40]]}, "prompt[1][1]", "must be a token id"),
        (TEXT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema", "goes with the type"),
        (TEXT, {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
         "structured_outputs", "give only one of response_format and structured_outputs"),
        # Chat: the one of two names that was used
        (CHAT, {"max_tokens": 3, "min_tokens": 4}, "min_tokens", "not be more than max_tokens (3)"),
        (CHAT, {"max_completion_tokens": 3, "min_tokens": 4}, "min_tokens", "than max_completion_tokens (3)"),
        (CHAT, {"max_tokens": 0}, "max_tokens", "max_tokens: must be greater"),
        (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens", "must be greater"),
        (CHAT, {"logprobs": 5}, "logprobs", "logprobs: must be a valid boolean"),
        (CHAT, {"tool_choice": {"type": "function"}}, "tool_choice", "tool_choice.function: is required"),
    ],
)  # fmt: skip
def test_it_is_called_as_its_caller_called_it(endpoint: str, body: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_request(endpoint, LEAST[endpoint] | body)
    assert caught.value.extra["param"] == param
    assert caught.value.detail.startswith(f"{param}: ")
    assert said in caught.value.detail


def test_a_tools_path_is_flat_in_a_response_and_not_in_a_chat() -> None:
    function = {"name": "now", "parameters": {"type": "array"}}
    asked = ResponseRequest.model_validate({"input": "a", "tools": [{"type": "function", **function}]})
    with pytest.raises(InvalidRequest, match=r"^tools\[0\].parameters.type: ") as caught:
        asked.calling()
    assert caught.value.extra["param"] == "tools[0].parameters.type"
    tool = {"type": "function", "function": function}
    with pytest.raises(InvalidRequest, match=r"^tools\[0\].function.parameters.type: "):
        ChatRequest.model_validate(LEAST[CHAT] | {"tools": [tool]}).calling()


@pytest.mark.parametrize(
    ("message", "param", "wanted", "wanted_param"),
    [
        ("max_tokens: prompt and n x max_tokens may be 9", "max_tokens",
         "max_output_tokens: prompt and n x max_output_tokens may be 9", "max_output_tokens"),
        ("the budget can't hold it; ask for less (max_tokens)", None,
         "the budget can't hold it; ask for less (max_output_tokens)", None),
        ("response_format.json_schema.schema: must be nested", "response_format.json_schema.schema",
         "text.format.schema: must be nested", "text.format.schema"),
        ("messages[2].tool_calls: at most 128", "messages[2].tool_calls", "input: at most 128", "input"),
        ("top_k: a tier of messages, and top_logprobs", "top_k", "top_k: a tier of messages, and top_logprobs", "top_k"),
        ("tier: 'batch' has no room for more interactive jobs", "tier",
         "service_tier: 'batch' has no room for more priority jobs", "service_tier"),
        ("top_k: wrong; messages: too many", "top_k", "top_k: wrong; input: too many", "top_k"),
    ],
)  # fmt: skip
def test_names_within_a_message(message: str, param: str | None, wanted: str, wanted_param: str | None) -> None:
    renamed = ResponseRequest.model_validate({"input": "a", "top_logprobs": 1}).renamed()
    assert in_callers_words(message, param, renamed) == (wanted, wanted_param)


def test_completions_call_all_but_the_tier_as_jobs_do() -> None:
    assert CompletionRequest.model_validate({"prompt": "a"}).renamed() == {"tier": "service_tier"}
