"""Does OpenAI's own client get what it expects?"""

import json
import re
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration.openai.conftest import BROOK, FAKE, Stack

ASK: list[Any] = [{"role": "user", "content": "Write a short story about a fox."}]


def test_chat(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=BROOK, messages=ASK, max_tokens=12, seed=1)
    (choice,) = done.choices
    assert done.id.startswith("chatcmpl-")
    assert done.object == "chat.completion"
    assert done.model == BROOK
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.tool_calls is None
    assert choice.finish_reason in {"stop", "length"}
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert 1 <= done.usage.completion_tokens <= 12
    assert abs(done.created - time.time()) < 60
    again = client.chat.completions.create(model=BROOK, messages=ASK, max_completion_tokens=12, seed=1)
    assert again.choices[0].message.content == choice.message.content


def test_a_stream_brings_the_same_text(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=BROOK, messages=ASK, max_tokens=24, seed=2, n=2)
    options = {"include_usage": True}
    texts, reasons, usages = ["", ""], [None, None], []
    with client.chat.completions.create(
        model=BROOK, messages=ASK, max_tokens=24, seed=2, n=2, stream=True, stream_options=options
    ) as stream:
        for chunk in stream:
            assert chunk.object == "chat.completion.chunk"
            for choice in chunk.choices:
                assert reasons[choice.index] is None, "nothing follows an end"
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] = choice.finish_reason
            usages.append(chunk.usage)
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert all(usage is None for usage in usages[:-1])
    assert usages[-1] is not None
    assert usages[-1].completion_tokens == whole.usage.completion_tokens


def test_log_probabilities(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": BROOK,
        "messages": ASK,
        "max_tokens": 6,
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 2,
    }
    done = client.chat.completions.create(**asked)
    content = done.choices[0].logprobs.content
    assert len(content) == done.usage.completion_tokens
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in content)
    told = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            told += choice.logprobs.content if choice.logprobs else []
    assert [entry.model_dump() for entry in told] == [entry.model_dump() for entry in content]


def test_json_of_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["heron", "fox"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 8}},
        "required": ["kind", "legs"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema, "strict": True}}
    done = client.chat.completions.create(model=BROOK, messages=ASK, max_tokens=60, response_format=form)
    found = json.loads(done.choices[0].message.content)
    assert found["kind"] in {"heron", "fox"}
    assert 0 <= found["legs"] <= 8


WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 7}},
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]


def valid(call: Any) -> dict[str, Any]:
    arguments = json.loads(call.arguments)
    if call.name == "now":
        assert arguments == {}
    else:
        assert call.name == "weather"
        assert arguments["city"] in {"Paris", "Rome"}
        assert 1 <= arguments["days"] <= 7
        assert set(arguments) == {"city", "days"}
    return arguments


@pytest.mark.parametrize("seed", [1, 2])
def test_a_forced_call_keeps_to_its_schema(client: openai.OpenAI, seed: int) -> None:
    named: Any = {"type": "function", "function": {"name": "weather"}}
    done = client.chat.completions.create(
        model=BROOK, messages=ASK, max_tokens=100, tools=TOOLS, tool_choice=named, seed=seed
    )
    (choice,) = done.choices
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    valid(call.function)
    assert choice.message.content is None
    assert choice.finish_reason == "tool_calls"
    single = client.chat.completions.create(
        model=BROOK,
        messages=ASK,
        max_tokens=100,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        seed=seed,
    )
    assert len(single.choices[0].message.tool_calls) == 1
    valid(single.choices[0].message.tool_calls[0].function)


def test_a_streamed_call_is_the_same(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": BROOK, "messages": ASK, "max_tokens": 120, "tools": TOOLS, "tool_choice": "required", "seed": 5, "temperature": 0.2,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0]
    calls: dict[int, dict[str, str]] = {}
    reason = None
    for chunk in client.chat.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        assert not choice.delta.content
        for part in choice.delta.tool_calls or []:
            if part.id:
                calls[part.index] = {"id": part.id, "name": part.function.name, "arguments": ""}
            calls[part.index]["arguments"] += part.function.arguments
        reason = choice.finish_reason or reason
    assert reason == whole.finish_reason
    assert [(calls[i]["name"], calls[i]["arguments"]) for i in sorted(calls)] == [
        (each.function.name, each.function.arguments) for each in whole.message.tool_calls
    ]
    assert len({call["id"] for call in calls.values()}) == len(calls)
    if whole.finish_reason == "tool_calls":
        for each in whole.message.tool_calls:
            valid(each.function)


def test_completions(client: openai.OpenAI) -> None:
    done = client.completions.create(model=BROOK, prompt="Once upon a time", max_tokens=8, seed=4, logprobs=2)
    (choice,) = done.choices
    assert done.id.startswith("cmpl-")
    assert done.usage.completion_tokens == len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
    assert "".join(choice.logprobs.tokens).startswith(choice.text)
    text = ""
    for chunk in client.completions.create(model=BROOK, prompt="Once upon a time", max_tokens=8, seed=4, stream=True):
        text += chunk.choices[0].text
    assert text == choice.text


def test_models(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {BROOK, FAKE}
    model = client.models.retrieve(BROOK)
    assert model.object == "model"
    assert abs(model.created - time.time()) < 600
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_responses(client: openai.OpenAI) -> None:
    done = client.responses.create(model=BROOK, input="Write a story.", max_output_tokens=400, instructions="Be short.")
    assert done.id.startswith("resp_")
    assert done.status in {"completed", "incomplete"}
    assert done.output_text
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
    again = client.responses.retrieve(done.id)
    assert again.model_dump() == done.model_dump()
    (item,) = client.responses.input_items.list(done.id)
    assert item.content[0].text == "Write a story."
    if done.status == "completed":
        following = client.responses.create(
            model=BROOK, input="Go on.", previous_response_id=done.id, max_output_tokens=5
        )
        assert following.previous_response_id == done.id
        assert following.usage.input_tokens > done.usage.output_tokens
    client.responses.delete(done.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(done.id)


def test_a_long_input_is_listed_page_by_page(client: openai.OpenAI) -> None:
    said = [str(number) for number in range(5)]
    turns = [{"role": "user", "content": each} for each in said]
    done = client.responses.create(model=BROOK, input=turns, max_output_tokens=2)  # type: ignore[arg-type]
    page = client.responses.input_items.list(done.id, limit=2, order="asc")
    assert (len(page.data), page.has_more) == (2, True)
    assert [item.content[0].text for item in page] == said, "the package asks for all pages"
    newest_first = client.responses.input_items.list(
        done.id, limit=2, include=["message.output_text.logprobs", "file_search_call.results"]
    )
    assert [item.content[0].text for item in newest_first] == said[::-1]
    assert client.responses.input_items.list(done.id, limit=5).has_more is False
    twice = [{"role": "user", "content": each, "id": "msg_1"} for each in said]
    again = client.responses.create(model=BROOK, input=twice, max_output_tokens=2)  # type: ignore[arg-type]
    page = client.responses.input_items.list(again.id, limit=1, order="asc")
    assert [item.content[0].text for item in page] == said, "ids that callers repeat make no page of them come again"
    for wrong in ({"limit": 0}, {"limit": 101}, {"after": "item_1"}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.input_items.list(done.id, **wrong)  # type: ignore[arg-type]
        assert refused.value.param in wrong


def test_a_streamed_response_can_be_resumed_at_every_event(client: openai.OpenAI) -> None:
    events = [*client.responses.create(model=BROOK, input="Write a story.", max_output_tokens=12, stream=True)]
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-3:-1] == ["response.content_part.done", "response.output_item.done"]
    last = events[-1].response
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == last.output_text
    for place, event in enumerate(events):
        rest = [*client.responses.retrieve(last.id, stream=True, starting_after=event.sequence_number)]
        told = "".join(
            each.delta for each in [*events[: place + 1], *rest] if each.type == "response.output_text.delta"
        )
        assert told == last.output_text
        assert [each.type for each in rest if "delta" not in each.type] == [
            kind for kind in kinds[place + 1 :] if "delta" not in kind
        ]


def test_a_background_response_is_retrieved_and_cancelled(client: openai.OpenAI) -> None:
    made = client.responses.create(model=BROOK, input="Write a story.", max_output_tokens=10, background=True)
    assert made.status in {"queued", "in_progress"}
    while made.status in {"queued", "in_progress"}:
        time.sleep(0.05)
        made = client.responses.retrieve(made.id)
    assert made.status in {"completed", "incomplete"}
    assert made.output_text
    long = client.responses.create(model=FAKE, input="a", max_output_tokens=4000, background=True)
    stream = client.responses.retrieve(long.id, stream=True)
    for event in stream:
        if event.type == "response.output_text.delta":
            break
    stream.close()
    assert client.responses.cancel(long.id).status == "cancelled"
    ended = [*client.responses.retrieve(long.id, stream=True, starting_after=event.sequence_number)][-1]
    assert ended.type == "response.failed"
    assert ended.response.status == "cancelled"
    assert client.responses.retrieve(long.id).status == "cancelled"


def test_a_response_calls_a_function_and_gets_its_output(client: openai.OpenAI) -> None:
    tools: list[Any] = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    choice: Any = {"type": "function", "name": "weather"}
    done = client.responses.create(
        model=BROOK, input="How is it?", tools=tools, tool_choice=choice, max_output_tokens=100
    )
    (item,) = done.output
    assert item.type == "function_call"
    valid(item)
    with client.responses.stream(
        model=BROOK, input="How is it?", tools=tools, tool_choice=choice, max_output_tokens=100
    ) as stream:
        for _ in stream:
            pass
        valid(stream.get_final_response().output[0])


def test_another_tenants_responses_are_not_found(client: openai.OpenAI, stack: Stack) -> None:
    made = client.responses.create(model=FAKE, input="a", max_output_tokens=2)
    with stack.client(token=stack.other.token) as other:
        for look in (other.responses.retrieve, other.responses.delete, other.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                look(made.id)
    assert client.responses.retrieve(made.id).id == made.id


def test_the_pages_snippet_runs(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "openai.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setenv("PENSTOCK_URL", stack.url)
    monkeypatch.setenv("PENSTOCK_API_KEY", stack.tenant.token)
    names: dict[str, Any] = {}
    exec(compile(snippet, "docs/openai.md", "exec"), names)
    names["client"].close()
    assert capsys.readouterr().out.strip()
