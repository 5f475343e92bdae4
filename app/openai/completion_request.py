"""What does the body of a completion say? OpenAI's older face: a prompt, continued."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, StrictBool, model_validator

from app.jobs.request import MAX_TOKEN_ID, Integer, JobRequest
from app.jobs.structure import ResponseFormat, Words
from app.openai.fields import MaxTokens, Sampled, Unsupported

TokenIds = Annotated[list[Annotated[Integer, Field(ge=0, le=MAX_TOKEN_ID)]], Field(min_length=1, fail_fast=True)]

MAX_PROMPTS = 128  # of one request


class CompletionRequest(Sampled):
    """The body of POST /v1/completions."""

    unsupported: ClassVar[Mapping[str, Unsupported]] = {
        "best_of": Unsupported("ask for n and choose", (1,)),
        "echo": Unsupported("the prompt isn't repeated", (False,)),
        "suffix": Unsupported("texts are continued, not filled in", ("",)),
    }

    prompt: Words | TokenIds | Annotated[list[Words | TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    max_tokens: MaxTokens | None = None
    logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    # vLLM's, with its names: exact tokens for those who count by them.
    response_format: ResponseFormat | None = None
    return_token_ids: StrictBool | None = None

    @model_validator(mode="before")
    @classmethod
    def _prompts_by_themselves(cls, data: Any) -> Any:
        """What is wrong with one of several is told of that one, not of every way to read them all."""
        prompt = data.get("prompt") if isinstance(data, dict) else None
        if not isinstance(prompt, list):
            return data
        if _are_ids(prompt):
            _check_ids("prompt", prompt)
            return data
        if len(prompt) > MAX_PROMPTS:
            raise ValueError(f"prompt: at most {MAX_PROMPTS} prompts go into a request: send more as a batch")
        for place, each in enumerate(prompt):
            if not isinstance(each, str) and not (isinstance(each, list) and _are_ids(each)):
                raise ValueError(f"prompt[{place}]: must be a text or a list of token ids")
            if not each:
                raise ValueError(f"prompt[{place}]: must not be empty")
            if isinstance(each, list):
                _check_ids(f"prompt[{place}]", each)
        return data

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        prompts = self.prompts
        if prompts == [""]:
            raise ValueError("prompt: must not be empty")
        if len(prompts) > 1 and self.fallback_model is not None:
            raise ValueError("fallback_model: goes with one prompt, and these are several")
        if len(prompts) > 1 and self.on_budget not in {None, "reject", "wait"}:
            raise ValueError(f"on_budget: {self.on_budget} goes with one prompt, and these are several")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt

    def jobs(self) -> list[JobRequest]:
        """The jobs underneath, one a prompt. Raises pydantic's ValidationError where a job's own rules are broken."""
        return [self._job(each) for each in self.prompts]

    def _job(self, prompt: str | list[int]) -> JobRequest:
        fields = self.common() | {"prompt": prompt}
        for name in ("max_tokens", "logprobs"):
            if getattr(self, name) is not None:
                fields[name] = getattr(self, name)
        if self.response_format is not None:
            fields["response_format"] = self.response_format.model_dump(by_alias=True, exclude_none=True)
        return JobRequest.model_validate(fields)


def _check_ids(path: str, ids: list[int]) -> None:
    if ids and not 0 <= min(ids) <= max(ids) <= MAX_TOKEN_ID:
        place = next(place for place, each in enumerate(ids) if not 0 <= each <= MAX_TOKEN_ID)
        raise ValueError(f"{path}[{place}]: must be a token id, 0 to {MAX_TOKEN_ID}")


def _are_ids(prompt: list[Any]) -> bool:
    return all(type(each) is int for each in prompt)
