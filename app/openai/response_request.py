"""What does the body of a response say? OpenAI's newer face: input items, instructions, tools; turned into a job."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, model_validator

from app.jobs.request import FunctionDefinition, Integer, JobRequest
from app.jobs.structure import ResponseFormat, Schema, SchemaName, Words
from app.openai.chat_request import shape_of
from app.openai.fields import Generation, MaxTokens, Unsupported
from app.openai.response_items import InputItem, parts_of, turns_of
from app.openai.tools import Calling, FunctionName, ToolWord, calling

LOGPROBS = "message.output_text.logprobs"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextFormat(_Part):
    """`text.format`: chat's response_format, but flat."""

    type: Literal["text", "json_object", "json_schema"]
    name: SchemaName | None = None
    description: Words | None = None
    schema_: Schema | None = Field(None, alias="schema")
    strict: StrictBool | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        given = {"name": self.name, "schema": self.schema_, "description": self.description, "strict": self.strict}
        for name, value in given.items():
            if self.type != "json_schema" and value is not None:
                raise ValueError(f"{name}: goes with the type json_schema only")
            if self.type == "json_schema" and value is None and name in {"name", "schema"}:
                raise ValueError(f"{name}: is required of the type json_schema")
        return self

    def response_format(self) -> ResponseFormat:
        """The same as the job has it."""
        said = self.model_dump(by_alias=True, exclude_none=True)
        kind = said.pop("type")
        return ResponseFormat.model_validate({"type": kind} | ({"json_schema": said} if said else {}))


class TextOptions(_Part):
    """`text`."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = Field(None, description="Only what is asked by leaving it out.")


class FunctionTool(FunctionDefinition):
    """A function, as responses have it: flat."""

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def _only_functions(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("type") != "function":
            raise ValueError("type: must be 'function': no other tools are run here")
        return data


class NamedFunction(FunctionName):
    """`tool_choice` for one function, as responses have it: flat."""

    type: Literal["function"]


class ResponseRequest(Generation):
    """The body of POST /v1/responses."""

    unsupported: ClassVar[Mapping[str, Unsupported]] = {
        "access_programs": Unsupported("there are none"),
        "background_options": Unsupported("service_tier says how urgent it is"),
        "context_management": Unsupported("the context is what you send"),
        "conversation": Unsupported("use previous_response_id"),
        "image": Unsupported("models here write text only"),
        "max_tool_calls": Unsupported("no tools are run here: your own program runs the functions"),
        "moderation": Unsupported("nothing is moderated here"),
        "prompt": Unsupported("send the prompt itself as input"),
        "prompt_cache_options": Unsupported("prefixes are cached by themselves"),
        "prompt_cache_retention": Unsupported("prefixes are cached by themselves"),
        "reasoning": Unsupported("say in the input how long to think", ({}, {"effort": "none"})),
        "truncation": Unsupported("nothing is cut off behind your back", ("disabled",)),
    }

    input: Annotated[Words, Field(min_length=1)] | Annotated[list[InputItem], Field(min_length=1, max_length=1024)]
    instructions: Words | None = None
    previous_response_id: StrictStr | None = None
    max_output_tokens: MaxTokens | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: ToolWord | NamedFunction | None = None
    parallel_tool_calls: StrictBool | None = None
    store: StrictBool | None = None
    background: StrictBool | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.background and not self.is_stored:
            raise ValueError("background: goes with store: true, or nobody could read it")
        return self

    @property
    def has_logprobs(self) -> bool:
        """Whether log-probabilities are wanted."""
        return self.top_logprobs is not None or LOGPROBS in (self.include or ())

    @property
    def is_stored(self) -> bool:
        """Whether it can be read again; true unless it is said otherwise, as OpenAI has it."""
        return self.store is not False

    @property
    def items(self) -> list[dict[str, Any]]:
        """The input as items, in the caller's words; a message's content is always in parts, as clients expect it."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": parts_of("user", self.input)}]
        items = [item.model_dump(exclude_none=True) for item in self.input]
        return [
            item | {"content": parts_of(item["role"], item["content"])} if item["type"] == "message" else item
            for item in items
        ]

    def renamed(self) -> dict[str, str]:
        """As `ChatRequest`."""
        found = super().renamed() | {
            "logprobs": "include" if self.top_logprobs is None else "top_logprobs",
            "max_tokens": "max_output_tokens",
            "messages": "input",
            "response_format.json_schema.schema": "text.format.schema",
            "response_format": "text.format",
        }
        if self.tool_choice == "required" or isinstance(self.tool_choice, NamedFunction):
            found["structured_outputs.grammar"] = "tools"
        return found

    def calling(self) -> Calling:
        """How the tools are to be used. Raises InvalidRequest."""
        choice = self.tool_choice
        named = choice.name if isinstance(choice, NamedFunction) else None
        functions = [FunctionDefinition(**tool.model_dump(exclude={"type"})) for tool in self.tools or []]
        return calling(
            functions,
            choice if isinstance(choice, str) else None,
            named,
            is_parallel=self.parallel_tool_calls,
            path="tools[{}]",
        )

    def turns(self) -> list[dict[str, Any]]:
        """What the input adds to the conversation."""
        return [{"role": "user", "content": self.input}] if isinstance(self.input, str) else turns_of(self.input)

    def job(self, before: Sequence[dict[str, Any]] = ()) -> JobRequest:
        """The job underneath; `before`: the turns up to the previous response. Raises as `ChatRequest.job`."""
        instructions = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        fields = self.common() | {"messages": [*instructions, *before, *self.turns()]}
        if self.max_output_tokens is not None:
            fields["max_tokens"] = self.max_output_tokens
        if self.has_logprobs:
            fields["logprobs"] = self.top_logprobs or 0
        form = self.text.format.response_format() if self.text and self.text.format else None
        fields |= shape_of(self.calling(), form)
        return JobRequest.model_validate(fields)
