"""Can this model run this request? Its tokens are counted, every limit is checked, the seed is drawn: what comes out can't be wrong any more."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from app.errors import InvalidRequest, PromptTooLong
from app.ids import new_id
from app.jobs.models import Model
from app.jobs.request import MAX_SEED, JobRequest
from app.jobs.sharing import work_key
from app.jobs.tokenizing import PromptEncoder, texts_in
from app.settings import Settings

MAX_CHARS_PER_TOKEN = 64  # no text has that many on average: 3 to 5 are usual


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """A request that was checked against its model: nothing but a budget or a race can refuse it now."""

    id: UUID
    request: JobRequest
    model: Model
    prompt_ids: list[int]
    max_tokens: int
    sampling: dict[str, Any]
    requested_model: str | None = None  # where another one runs it than its owner asked for
    changes: dict[str, Any] | None = None  # what it runs with that its owner asked differently, and why

    @property
    def cost(self) -> int:
        """Most tokens that it can need: prompt and all choices' output."""
        return len(self.prompt_ids) + self.request.n * self.max_tokens

    @property
    def is_deterministic(self) -> bool:
        """Whether the same request gives the same output."""
        return self.request.temperature == 0 or self.request.seed is not None

    @property
    def work_key(self) -> bytes | None:
        """What its output follows from; None where chance has a part in it."""
        model, form = self.model, "prompt" if self.request.messages is None else "messages"
        return work_key(
            (model.name, model.model_hash, model.tokenizer_hash, form), self.prompt_ids, self.request.n, self.sampling,
            has_own_seed=self.request.seed is not None,
        )  # fmt: skip


def prepare(request: JobRequest, model: Model, encoder: PromptEncoder, settings: Settings) -> PreparedJob:
    """Count the tokens and check all that the model limits. Runs for long on long prompts: call it in a thread.

    Raises:
        InvalidRequest: a limit is passed; `param` names the field.
        PromptTooLong: prompt and output don't fit into the model's context.
    """
    for field, message in request.check_limits(settings):
        raise InvalidRequest(f"{field}: {message}", param=field)
    _refuse_hopeless(request, model)
    ids = _encode(request, encoder)
    said_in = "messages" if request.messages is not None else "prompt"
    if not ids:
        raise InvalidRequest(f"{said_in}: holds no token", param=said_in)
    for field, tokens in (("prompt", ids), ("logit_bias", list(request.logit_biases))):
        if tokens and max(tokens) >= model.vocab_size:
            raise InvalidRequest(
                f"{field}: token ids must be below {model.vocab_size}, the model's vocabulary", param=field
            )
    room = model.max_model_len - len(ids)
    if room < 1:
        raise PromptTooLong(
            f"{said_in}: {len(ids)} tokens leave no room for output: the model's context is {model.max_model_len} tokens",
            param=said_in,
            limit=model.max_model_len,
        )
    if request.max_tokens is not None and request.max_tokens > room:
        raise PromptTooLong(
            f"max_tokens: must be at most {room}: the prompt has {len(ids)} of the model's {model.max_model_len} tokens",
            param="max_tokens",
            limit=room,
        )
    max_tokens = request.max_tokens or min(settings.default_max_tokens, room)
    if request.min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens: must not be more than max_tokens ({max_tokens})", param="min_tokens")
    if request.logprobs is not None and request.n * max_tokens * (request.logprobs + 1) > settings.max_logprobs:
        raise InvalidRequest(
            f"logprobs: {'n x ' if request.n > 1 else ''}max_tokens x (logprobs + 1) must be at most {settings.max_logprobs}: "
            "ask for fewer of one of them",
            param="logprobs",
            limit=settings.max_logprobs,
        )
    return PreparedJob(new_id(), request, model, ids, max_tokens, _sampling(request, max_tokens))


def prepare_fallback(
    request: JobRequest, wanted: Model, fallback: Model, encoder: PromptEncoder, settings: Settings
) -> PreparedJob:
    """The same request for the model that stands in, held to all of that one's limits. In a thread, as `prepare`.

    Raises:
        InvalidRequest: as `prepare`; or the request speaks in token ids that mean others there.
    """
    assert fallback.name != wanted.name
    if fallback.tokenizer_hash != wanted.tokenizer_hash:
        for field, has_ids in (("prompt", isinstance(request.prompt, list)), ("logit_bias", request.logit_bias)):
            if has_ids:
                raise InvalidRequest(
                    f"fallback_model: {field} holds token ids of {wanted.name!r}, and {fallback.name!r} has another "
                    "tokenizer: send text, leave logit_bias out, or name a model with the same tokenizer",
                    param="fallback_model",
                )
    try:
        prepared = prepare(request, fallback, encoder, settings)
    except InvalidRequest as error:
        raise type(error)(f"{error.detail} (fallback_model {fallback.name!r})", **error.extra) from error
    return replace(prepared, requested_model=wanted.name)


def _refuse_hopeless(request: JobRequest, model: Model) -> None:
    """A text far beyond the context is refused by its length: counting its tokens could keep a thread busy for a minute."""
    num_chars = sum(map(len, _texts(request)))
    most = model.max_model_len * MAX_CHARS_PER_TOKEN
    if num_chars > most:
        field = "messages" if request.messages is not None else "prompt"
        raise PromptTooLong(
            f"{field}: {num_chars} characters can't fit into the model's context of {model.max_model_len} tokens",
            param=field,
            limit=model.max_model_len,
        )


def _texts(request: JobRequest) -> Iterator[str]:
    """What becomes tokens, but for what the template adds."""
    if isinstance(request.prompt, str):
        yield request.prompt
    for message in request.messages or []:
        yield message.content or ""
        if message.tool_calls:
            yield from texts_in([call.model_dump() for call in message.tool_calls])
    for tool in request.tools or []:
        yield from texts_in(tool.model_dump())


def _encode(request: JobRequest, encoder: PromptEncoder) -> list[int]:
    if request.messages is not None:
        tools = request.tools
        return encoder.encode_messages(
            [message.model_dump(exclude_none=True) for message in request.messages],
            None if tools is None else [tool.model_dump(exclude_none=True) for tool in tools],
        )
    return encoder.encode_text(request.prompt) if isinstance(request.prompt, str) else list(request.prompt or [])


def _sampling(request: JobRequest, max_tokens: int) -> dict[str, Any]:
    """The parameters as the engine takes them, all of them, with the seed drawn: a retry repeats the same tokens."""
    same = (
        "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "logprobs", "ignore_eos", "stop_repeating", "speculate",
    )  # fmt: skip
    structure = request.structure
    return {
        **{name: getattr(request, name) for name in same},
        "max_tokens": max_tokens,
        "seed": request.seed if request.seed is not None else secrets.randbits(MAX_SEED.bit_length()),
        "logit_bias": {str(token): bias for token, bias in request.logit_biases.items()},
        "stop": request.stop_strings,
        "grammar": None if structure is None else {"kind": structure.kind, "text": structure.text},
    }
