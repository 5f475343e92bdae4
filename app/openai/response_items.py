"""Which items may the input of a response hold? Messages, function calls and their outputs; turned into the turns of a conversation."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from app.jobs.structure import Words, storable_json
from app.openai.chat_request import PARTS_BETWEEN


class _Item(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputText(_Item):
    """A part of a message. What a response has written comes back as `output_text`, with more members."""

    type: Literal["input_text", "output_text", "text"]
    text: Words
    annotations: list[Any] | None = Field(None, max_length=0)
    logprobs: Annotated[list[Any], AfterValidator(storable_json)] | None = None


Content = Words | Annotated[list[InputText], Field(min_length=1, max_length=1024, fail_fast=True)]


class InputMessage(_Item):
    """One turn."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: Words | None = None
    status: Words | None = None
    phase: Words | None = None


class InputCall(_Item):
    """A function that an earlier response called."""

    type: Literal["function_call"]
    call_id: Annotated[Words, Field(min_length=1, max_length=128)]
    name: Annotated[Words, Field(min_length=1, max_length=128)]
    arguments: Words
    id: Words | None = None
    status: Words | None = None


class CallOutput(_Item):
    """What a called function gave."""

    type: Literal["function_call_output"]
    call_id: Annotated[Words, Field(min_length=1, max_length=128)]
    output: Content
    id: Words | None = None
    status: Words | None = None


def _kind(item: Any) -> str | None:
    if isinstance(item, BaseModel):
        return str(getattr(item, "type", None))
    if not isinstance(item, dict):
        return None
    kind = item.get("type", "message")
    return kind if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[CallOutput, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message="items are of the types message, function_call and function_call_output here",
    ),
]


def text_of(content: Content) -> str:
    """A content as one text."""
    return content if isinstance(content, str) else PARTS_BETWEEN.join(part.text for part in content)


def parts_of(role: str, content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A message's content in parts."""
    if not isinstance(content, str):
        return content
    if role == "assistant":
        return [{"type": "output_text", "text": content, "annotations": []}]
    return [{"type": "input_text", "text": content}]


def turns_of(items: list[InputItem]) -> list[dict[str, Any]]:
    """The turns that the items make; calls that follow each other, or a text of the assistant's, are one turn."""
    turns: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, InputMessage):
            role = "system" if item.role == "developer" else item.role
            turns.append({"role": role, "content": text_of(item.content)})
        elif isinstance(item, InputCall):
            if not turns or turns[-1]["role"] != "assistant":
                turns.append({"role": "assistant"})
            call = {"id": item.call_id, "type": "function"}
            turns[-1].setdefault("tool_calls", []).append(
                call | {"function": {"name": item.name, "arguments": item.arguments}}
            )
        else:
            turns.append({"role": "tool", "tool_call_id": item.call_id, "content": text_of(item.output)})
    return turns
