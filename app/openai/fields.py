"""What do the face's requests have in common? Names, types and limits are OpenAI's; beyond them stand ours, with our names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, model_validator

from app.jobs.request import MAX_SEED, MAX_TOKENS_LIMIT, Integer, ModelName, Number, WebhookTarget
from app.jobs.states import OnBudget, Tier
from app.jobs.structure import StructuredOutputs, Words

TIER_OF: dict[str | None, Tier] = {
    None: "standard", "auto": "standard", "default": "standard", "priority": "interactive", "flex": "batch",
}  # fmt: skip
SERVICE_TIER_OF: dict[str, str] = {"standard": "default", "interactive": "priority", "batch": "flex"}

# Codes of jobs that failed by their own request's fault; all other ends without success are ours, or the clock's.
REQUESTS_FAULT = frozenset({"grammar_invalid", "grammar_too_complex", "prompt_too_long", "invalid_request"})

ServiceTier = Literal["auto", "default", "priority", "flex"]
MaxTokens = Annotated[Integer, Field(ge=1, le=MAX_TOKENS_LIMIT)]


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A parameter of OpenAI's that we know and don't have. `neutral`: values that ask for nothing, and are let through."""

    why: str
    neutral: tuple[Any, ...] = ()

    def allows(self, value: Any) -> bool:
        """Whether the value asks for nothing that we don't have."""
        return value is None or any(type(value) is type(each) and value == each for each in self.neutral)


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = Field(None, description="Accepted; nothing is padded.")


class Generation(BaseModel):
    """What chat, completions and responses all take. null is as good as left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    unsupported: ClassVar[Mapping[str, Unsupported]] = {}
    same: ClassVar[tuple[str, ...]] = (
        "model", "temperature", "top_p", "metadata", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos",
        "stop_repeating", "speculate", "structured_outputs", "deadline_s", "on_budget", "fallback_model", "webhook",
    )  # fmt: skip

    model: ModelName | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    service_tier: ServiceTier | None = None
    metadata: dict[Words, Words] | None = None
    # Accepted and kept to: none of them changes what is computed here.
    user: Words | None = None
    safety_identifier: Words | None = None
    prompt_cache_key: Words | None = None

    top_k: Integer | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    min_tokens: Integer | None = None
    ignore_eos: StrictBool | None = None
    stop_repeating: Integer | None = None
    speculate: StrictBool | None = None
    structured_outputs: StructuredOutputs | None = None
    deadline_s: Number | None = None
    on_budget: OnBudget | None = None
    fallback_model: ModelName | None = None
    webhook: WebhookTarget | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict) or cls.unsupported.keys().isdisjoint(data):
            return data
        for name, rule in cls.unsupported.items():
            if name in data and not rule.allows(data[name]):
                raise ValueError(f"{name}: isn't supported here: {rule.why}")
        return {name: value for name, value in data.items() if name not in cls.unsupported}

    @model_validator(mode="after")
    def _options_of_streams(self) -> "Generation":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: goes with stream: true")
        return self

    def renamed(self) -> dict[str, str]:
        """Fields of the job underneath that this caller knows by another name: its refusals speak of that one."""
        return {"tier": "service_tier"}

    def common(self) -> dict[str, Any]:
        """The job's fields that follow from these, as its caller said them."""
        said = self.model_fields_set
        found = {
            name: _plain(value) for name in self.same if name in said and (value := getattr(self, name)) is not None
        }
        if self.service_tier is not None:
            found["tier"] = TIER_OF[self.service_tier]
        return found


class Sampled(Generation):
    """What chat and completions take besides."""

    same: ClassVar[tuple[str, ...]] = (
        *Generation.same, "n", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias",
    )  # fmt: skip

    n: Annotated[Integer, Field(ge=1, le=128)] | None = None
    seed: Annotated[Integer, Field(ge=0, le=MAX_SEED)] | None = None
    stop: Words | Annotated[list[Words], Field(fail_fast=True)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[StrictStr, Annotated[Number, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)


# Fields of the job that are plain words, too: in a message they are meant as fields only where it begins with them.
_PLAIN_WORDS = frozenset({"messages", "tier", "jobs"})


def in_callers_words(message: str, param: str | None, renamed: Mapping[str, str]) -> tuple[str, str | None]:
    """A refusal of the job underneath, speaking of its fields as their caller has called them: the message, and its param."""
    for ours in sorted(renamed, key=len, reverse=True):
        # What lies below the job's field lies elsewhere in the caller's body: the field itself is as near as can be told.
        path = rf"{re.escape(ours)}(?:\[\d+\]|\.\w+)*"
        place, end = (r"(?:(?<=^)|(?<=; ))", "(?=:)") if ours in _PLAIN_WORDS else (r"(?<![\w.])", r"(?!\w)")
        message = re.sub(f"{place}{path}{end}", renamed[ours], message)
        if param is not None and re.fullmatch(path, param):
            return _tiers_too(message, ours), renamed[ours]
    return message, param


def _tiers_too(message: str, ours: str) -> str:
    """A message on the tier names tiers, and the caller knows them as service tiers. What stands in quotes is a model's name."""
    if ours != "tier":
        return message
    return re.sub(r"(?<!')\b(interactive|standard|batch)\b(?!')", lambda found: SERVICE_TIER_OF[found[0]], message)


def _plain(value: Any) -> Any:
    return value.model_dump(by_alias=True, exclude_none=True) if isinstance(value, BaseModel) else value
