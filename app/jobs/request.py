"""What may a job ask for? Validated here, at the edge, into a type that can't be wrong."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from app.ids import MODEL_NAME
from app.jobs.states import OnBudget, Tier
from app.jobs.structure import (
    ResponseFormat,
    Schema,
    Structure,
    StructuredOutputs,
    Words,
    broken_limits,
    broken_tool,
    structure_of,
)
from app.settings import Settings
from app.webhooks.address import web_url

MAX_TOKENS_LIMIT = 1_000_000
MAX_TOKEN_ID = 2**31 - 1
MAX_SEED = 2**63 - 1


# Strict types: `"5"` isn't 5 and `true` isn't 1. Lone surrogates are refused by pydantic itself.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Integer = StrictInt
ModelName = Annotated[StrictStr, Field(pattern=MODEL_NAME)]


class CalledFunction(BaseModel):
    """Which function an assistant's turn called, and with what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[Words, Field(min_length=1, max_length=128)]
    arguments: Annotated[Words, Field(description="JSON, as a text.")]


class ToolCall(BaseModel):
    """A call that an assistant's turn made, as OpenAI writes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[Words, Field(max_length=128)]
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: Words | None = Field(None, description="May be left out where there are `tool_calls`.")
    name: Annotated[Words, Field(max_length=128)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=128)] | None = None
    tool_call_id: Annotated[Words, Field(max_length=128)] | None = Field(
        None, description="Of the call that a turn of the role `tool` answers."
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.tool_calls is None:
            raise ValueError("content: is required")
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("tool_calls: only an assistant's turn has them")
        return self


class FunctionDefinition(BaseModel):
    """A function that the model may call, as OpenAI writes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Words | None = None
    parameters: Schema | None = None
    strict: StrictBool | None = Field(None, description="Accepted; what a forced call is kept to doesn't depend on it.")


class Tool(BaseModel):
    """Something that the chat template tells the model of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["function"]
    function: FunctionDefinition


class WebhookTarget(BaseModel):
    """Where to tell what becomes of the job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[Words, Field(max_length=2048, description="https only."), AfterValidator(web_url)]
    events: Annotated[
        list[
            Literal[
                "job.started",
                "job.succeeded",
                "job.failed",
                "job.cancelled",
                "job.expired",
                "job.dead",
                "budget.threshold",
            ]
        ]
        | None,
        Field(min_length=1, max_length=7, description="Which events; all ends if left out."),
    ] = None


class JobRequest(BaseModel):
    """The body of POST /v1/jobs. Generation parameters bear OpenAI's names."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"prompt": "Once upon a time", "max_tokens": 64, "tier": "interactive"},
                {
                    "messages": [{"role": "user", "content": "Write a short story about a fox."}],
                    "max_tokens": 200,
                    "temperature": 0.8,
                    "seed": 7,
                    "tier": "batch",
                    "metadata": {"project": "demo"},
                },
            ]
        },
    )

    model: ModelName | None = Field(None, description="Name of a registered model; the default one if left out.")
    fallback_model: ModelName | None = Field(
        None,
        description="Runs the job where `model` takes no new ones: it fails too often, or too much waits for it; or, with "
        "`on_budget: fallback`, where a budget can't hold what `model` costs.",
    )
    # The first wrong item is enough: millions of them must not make millions of errors.
    prompt: (
        Words
        | Annotated[list[Annotated[Integer, Field(ge=0, le=MAX_TOKEN_ID)]], Field(min_length=1, fail_fast=True)]
        | None
    ) = Field(None, description="Text to continue, or token ids. Exactly one of `prompt` and `messages`.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)] | None = Field(
        None, description="A conversation, put through the model's chat template."
    )
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = Field(
        None, description="Functions that the chat template tells the model of; its calls are part of the text."
    )

    max_tokens: Annotated[Integer, Field(ge=1, le=MAX_TOKENS_LIMIT)] | None = Field(
        None, description="Most tokens of each choice."
    )
    min_tokens: Annotated[Integer, Field(ge=0, le=MAX_TOKENS_LIMIT)] = Field(
        0, description="No end of sequence before so many tokens."
    )
    temperature: Annotated[Number, Field(ge=0, le=2)] = Field(1.0, description="0 is greedy.")
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[Integer, Field(ge=0, le=MAX_TOKEN_ID)] = Field(0, description="0 is no limit.")
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] = 1.0
    logit_bias: dict[StrictStr, Annotated[Number, Field(ge=-100, le=100)]] | None = Field(
        None, description="Token id (as a string) -> bias; at most 1024 entries.", max_length=1024
    )
    n: Annotated[Integer, Field(ge=1, le=128)] = Field(1, description="How many choices.")
    seed: Annotated[Integer, Field(ge=0, le=MAX_SEED)] | None = Field(
        None, description="Same seed, same job: same tokens."
    )
    stop: Words | Annotated[list[Words], Field(fail_fast=True)] | None = Field(
        None, description="Text at which a choice ends; it isn't part of the result."
    )
    logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = Field(
        None, description="Log-probabilities of so many best tokens."
    )
    ignore_eos: StrictBool = Field(
        False, description="Go on until max_tokens whatever the model says (for load tests)."
    )
    response_format: ResponseFormat | None = Field(
        None, description="OpenAI's: text, any JSON object, or JSON that keeps to a schema."
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="Keep the output to a JSON schema, a regex, one of some texts, or a Lark grammar."
    )
    stop_repeating: Annotated[Integer, Field(ge=0, le=1000)] = Field(
        0, description="End with `stop` when the output repeats a pattern so many times; 0 is never, 1 isn't allowed."
    )
    speculate: StrictBool = Field(
        True, description="Let the engine guess ahead where its worker does so; the tokens are the same either way."
    )

    tier: Tier = "standard"
    on_budget: OnBudget = Field(
        "reject",
        description="Where a budget can't hold what the job may use at most: `reject` it, let it `wait` for the next window, "
        "`truncate` max_tokens to what is left, or run it on the `fallback` model.",
    )
    deadline_s: Annotated[Number, Field(gt=0, le=31_536_000)] | None = Field(
        None, description="Seconds from now after which nobody wants the result."
    )
    webhook: WebhookTarget | None = None
    metadata: dict[Words, Words] = Field(
        default_factory=dict, description="Yours: at most 16 pairs of 64 / 512 characters."
    )

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        return [] if self.stop is None else [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def logit_biases(self) -> dict[int, float]:
        """`logit_bias` by token id."""
        return {int(token): bias for token, bias in (self.logit_bias or {}).items()}

    @property
    def structure(self) -> Structure | None:
        """What the output must look like."""
        return structure_of(self.response_format, self.structured_outputs)

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        """A structured output ends where its grammar says, so that `stop` as a reason means that it is whole."""
        has_format = self.response_format is not None and self.response_format.type != "text"
        if has_format and self.structured_outputs is not None:
            raise ValueError("structured_outputs: give only one of response_format and structured_outputs")
        if self.stop_repeating == 1:
            raise ValueError("stop_repeating: must be 0 or at least 2")
        if has_format or self.structured_outputs is not None:
            for name in ("stop", "min_tokens", "ignore_eos", "stop_repeating"):
                if getattr(self, name):
                    raise ValueError(f"{name}: can't go with a structured output, which ends where its grammar says")
        return self

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        if self.prompt == "":
            raise ValueError("prompt: must not be empty")
        if self.tools is not None and self.messages is None:
            raise ValueError("tools: go with messages, whose template tells the model of them")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens: must not be more than max_tokens ({self.max_tokens})")
        for token in self.logit_bias or {}:
            if not re.fullmatch(r"[0-9]{1,9}", token):
                raise ValueError("logit_bias: keys are token ids")
        for key, value in self.metadata.items():
            if not 1 <= len(key) <= 64:
                raise ValueError("metadata: keys have 1 to 64 characters")
            if len(value) > 512:
                raise ValueError("metadata: values have at most 512 characters")
        return self

    def check_limits(self, settings: Settings) -> list[tuple[str, str]]:
        """Limits that are settings: (field, message) for each that is passed."""
        found: list[tuple[str, str]] = []
        if self.n > settings.max_n:
            found.append(("n", f"must be at most {settings.max_n}"))
        if len(self.stop_strings) > settings.max_stop:
            found.append(("stop", f"must be at most {settings.max_stop} strings"))
        if any(not 1 <= len(each) <= settings.max_stop_chars for each in self.stop_strings):
            found.append(("stop", f"each string must have 1 to {settings.max_stop_chars} characters"))
        if len(self.metadata) > settings.max_metadata_pairs:
            found.append(("metadata", f"must be at most {settings.max_metadata_pairs} pairs"))
        if self.structure is not None:
            found += broken_limits(self.structure, settings)
        for i, tool in enumerate(self.tools or []):
            found += broken_tool(tool.function.parameters, f"tools[{i}].function.parameters", settings)
        return found

    def canonical(self) -> dict[str, Any]:
        """What is stored: only what the caller said."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)
