"""What does the body of a chat completion say? OpenAI's messages, tools and response_format, turned into a job."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from app.jobs.request import Integer, JobRequest, ToolCall
from app.jobs.structure import ResponseFormat, Words
from app.openai.fields import MaxTokens, Sampled, Unsupported
from app.openai.tools import Calling, NamedTool, Tools, ToolWord, calling

PARTS_BETWEEN = "\n"  # stands between the parts of a content that is a list


class TextPart(BaseModel):
    """A part of a content; other kinds than texts aren't supported."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    text: Words


class ChatMessage(BaseModel):
    """One turn of a conversation, as OpenAI has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Words | Annotated[list[TextPart], Field(min_length=1, max_length=1024, fail_fast=True)] | None = None
    name: Words | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Words | None = None
    # Clients send back what they got, as they got it.
    refusal: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("content: is required")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("tool_call_id: is required of a message with the role tool")
        return self

    def turn(self) -> dict[str, Any]:
        """The message as a job has it. What OpenAI calls developer, models know as system."""
        content = self.content
        if isinstance(content, list):
            content = PARTS_BETWEEN.join(part.text for part in content)
        found: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role}
        if content is not None:
            found["content"] = content
        if self.name is not None:
            found["name"] = self.name
        if self.tool_calls:
            found["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            found["tool_call_id"] = self.tool_call_id
        return found


class ChatRequest(Sampled):
    """The body of POST /v1/chat/completions."""

    unsupported: ClassVar[Mapping[str, Unsupported]] = {
        "audio": Unsupported("models here write text only"),
        "function_call": Unsupported("use tool_choice"),
        "functions": Unsupported("use tools"),
        "modalities": Unsupported("models here write text only", (["text"],)),
        "moderation": Unsupported("nothing is moderated here"),
        "prediction": Unsupported("the engine guesses ahead by itself"),
        "prompt_cache_options": Unsupported("prefixes are cached by themselves"),
        "prompt_cache_retention": Unsupported("prefixes are cached by themselves"),
        "reasoning_effort": Unsupported("say in the prompt how long to think", ("none",)),
        "verbosity": Unsupported("say in the prompt how long the answer shall be"),
        "web_search_options": Unsupported("nothing is searched here"),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolWord | NamedTool | None = None
    parallel_tool_calls: StrictBool | None = None
    store: StrictBool | None = Field(None, description="Keep it to be read again, and finish it if the caller leaves.")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: goes with logprobs: true")
        if None not in {self.max_tokens, self.max_completion_tokens} and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens: give only one of max_tokens and max_completion_tokens")
        return self

    def renamed(self) -> dict[str, str]:
        """As `Generation`. A call that is forced is a grammar of ours, which its caller has said by the tools."""
        found = super().renamed()
        if self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool):
            found["structured_outputs.grammar"] = "tools"
        if self.max_tokens is None:
            found["max_tokens"] = "max_completion_tokens"
        if self.top_logprobs is not None:
            found["logprobs"] = "top_logprobs"
        return found

    def calling(self) -> Calling:
        """How the tools are to be used. Raises InvalidRequest."""
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, NamedTool) else None
        functions = [tool.function for tool in self.tools or []]
        return calling(
            functions, choice if isinstance(choice, str) else None, named, is_parallel=self.parallel_tool_calls
        )

    def job(self) -> JobRequest:
        """The job underneath. Raises pydantic's ValidationError where the job's own rules are broken, InvalidRequest as `calling`."""
        fields = self.common() | {"messages": [message.turn() for message in self.messages]}
        most = self.max_completion_tokens or self.max_tokens
        if most is not None:
            fields["max_tokens"] = most
        if self.logprobs:
            fields["logprobs"] = self.top_logprobs or 0
        fields |= shape_of(self.calling(), self.response_format)
        return JobRequest.model_validate(fields)


def shape_of(calling: Calling, response_format: ResponseFormat | None) -> dict[str, Any]:
    """The job's fields that tell of the tools and of the form of its output. A call that is forced comes before a form that is asked for."""
    found: dict[str, Any] = {}
    if calling.shown is not None:
        found["tools"] = calling.shown
    grammar = calling.grammar()
    if grammar is not None:
        found["structured_outputs"] = {"grammar": grammar}
    elif response_format is not None:
        found["response_format"] = response_format.model_dump(by_alias=True, exclude_none=True)
    return found
