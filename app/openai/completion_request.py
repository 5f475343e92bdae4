"""What does the body of a completion say? OpenAI's older face: a prompt, continued."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, StrictBool, model_validator

from app.jobs.request import MAX_TOKEN_ID, Integer, JobRequest
from app.jobs.structure import ResponseFormat, Words
from app.openai.fields import MaxTokens, Sampled, Unsupported

TokenIds = Annotated[list[Annotated[Integer, Field(ge=0, le=MAX_TOKEN_ID)]], Field(min_length=1, fail_fast=True)]


class CompletionRequest(Sampled):
    """The body of POST /v1/completions."""

    unsupported: ClassVar[Mapping[str, Unsupported]] = {
        "best_of": Unsupported("ask for n and choose", (1,)),
        "echo": Unsupported("the prompt isn't repeated", (False,)),
        "suffix": Unsupported("texts are continued, not filled in", ("",)),
    }

    prompt: Words | TokenIds | Annotated[list[Words | TokenIds], Field(min_length=1, max_length=1)]
    max_tokens: MaxTokens | None = None
    logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    # vLLM's, with its names: exact tokens for those who count by them.
    response_format: ResponseFormat | None = None
    return_token_ids: StrictBool | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_prompt(cls, data: Any) -> Any:
        prompt = data.get("prompt") if isinstance(data, dict) else None
        if isinstance(prompt, list) and len(prompt) > 1 and not all(type(each) is int for each in prompt):
            raise ValueError("prompt: send one prompt a request, or many as a batch")
        return data

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.prompt in {"", ("",)} if isinstance(self.prompt, str) else self.prompt == [""]:
            raise ValueError("prompt: must not be empty")
        return self

    def job(self) -> JobRequest:
        """The job underneath. Raises pydantic's ValidationError where the job's own rules are broken."""
        prompt: Any = self.prompt
        if isinstance(prompt, list) and not isinstance(prompt[0], int):
            prompt = prompt[0]
        fields = self.common() | {"prompt": prompt}
        for name in ("max_tokens", "logprobs"):
            if getattr(self, name) is not None:
                fields[name] = getattr(self, name)
        if self.response_format is not None:
            fields["response_format"] = self.response_format.model_dump(by_alias=True, exclude_none=True)
        return JobRequest.model_validate(fields)

    def jobs(self) -> list[JobRequest]:
        """The jobs underneath, one a prompt."""
        return [self.job()]
