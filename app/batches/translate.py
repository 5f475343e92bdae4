"""What job does a line ask for? OpenAI's body of an endpoint, as the native request that it is underneath."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from app.errors import InvalidRequest
from app.jobs.request import JobRequest

Body = dict[str, Any]

# Said in other words below, or of no meaning for a line of a batch.
_IGNORED = frozenset(
    {"user", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
_SAME = frozenset({
    "model", "temperature", "top_p", "n", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias",
    "response_format", "structured_outputs", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos",
    "stop_repeating", "metadata",
})  # fmt: skip
_BY_MESSAGE = 3  # errors that one message tells


def to_request(endpoint: str, body: Body) -> JobRequest:
    """The native request of a body of this endpoint.

    Raises:
        InvalidRequest: a rule is broken, or it asks for something that batches don't do; `param` names the field.
    """
    given = {name: value for name, value in body.items() if value is not None}
    if given.pop("stream", False):
        raise InvalidRequest(
            "stream: must be false or left out: a batch's results are read from its files", param="stream"
        )
    given.pop("stream_options", None)
    if not isinstance(given.get("model", ""), str):
        raise InvalidRequest("model: must be a text", param="model")
    request = ENDPOINTS[endpoint]({name: value for name, value in given.items() if name not in _IGNORED})
    try:
        return JobRequest.model_validate(request)
    except ValidationError as error:
        raise _refusal(error) from None


def _chat(body: Body) -> Body:
    request = _common(body)
    request["messages"] = _messages(body.pop("messages", None), "messages")
    if "max_completion_tokens" in body:
        body.pop("max_tokens", None)
    _rename(body, request, max_completion_tokens="max_tokens", max_tokens="max_tokens")
    wants, top = body.pop("logprobs", False), body.pop("top_logprobs", None)
    if not isinstance(wants, bool):
        raise InvalidRequest("logprobs: must be true or false", param="logprobs")
    if wants:
        request["logprobs"] = top or 0
    elif top:
        raise InvalidRequest("top_logprobs: needs logprobs to be true", param="top_logprobs")
    return _whole(body, request)


def _completion(body: Body) -> Body:
    request = _common(body)
    prompt = body.pop("prompt", None)
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    elif isinstance(prompt, list) and any(isinstance(each, str | list) for each in prompt):
        raise InvalidRequest(
            "prompt: must be one prompt in a line of a batch: give each a line of its own", param="prompt"
        )
    if prompt is None:
        raise InvalidRequest("prompt: is required", param="prompt")
    request["prompt"] = prompt
    request["max_tokens"] = body.pop("max_tokens", 16)  # OpenAI's default
    _rename(body, request, logprobs="logprobs")
    return _whole(body, request)


def _response(body: Body) -> Body:
    request = _common(body)
    instructions, wanted = body.pop("instructions", None), body.pop("input", None)
    if wanted is None:
        raise InvalidRequest("input: is required", param="input")
    turns = [{"role": "user", "content": wanted}] if isinstance(wanted, str) else _messages(wanted, "input")
    request["messages"] = ([{"role": "system", "content": instructions}] if instructions is not None else []) + turns
    _rename(body, request, max_output_tokens="max_tokens")
    if body.pop("background", False):
        raise InvalidRequest("background: must be left out: a batch runs in the background", param="background")
    return _whole(body, request)


ENDPOINTS: dict[str, Callable[[Body], Body]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
}


def _common(body: Body) -> Body:
    return {name: body.pop(name) for name in _SAME & body.keys()}


def _rename(body: Body, request: Body, **names: str) -> None:
    for theirs, ours in names.items():
        if theirs in body:
            request[ours] = body.pop(theirs)


def _whole(body: Body, request: Body) -> Body:
    """Whatever is left over isn't understood: better said than left out."""
    if body:
        name = min(body)[:64]
        raise InvalidRequest(f"{name}: isn't supported in a line of a batch", param=name)
    return request


def _messages(given: Any, field: str) -> list[Any]:
    if not isinstance(given, list) or not given:
        raise InvalidRequest(f"{field}: must be a list of at least one message", param=field)
    return [_message(each, f"{field}[{place}]") for place, each in enumerate(given)]


def _message(given: Any, path: str) -> Any:
    if not isinstance(given, dict):
        raise InvalidRequest(f"{path}: must be an object", param=path)
    message = {name: value for name, value in given.items() if value is not None and name != "name"}
    if message.get("type") == "message":
        del message["type"]  # an item of /v1/responses says what it is
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(_text(part, f"{path}.content[{place}]") for place, part in enumerate(content))
    return message


def _text(part: Any, path: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in {"text", "input_text", "output_text"} or not isinstance(part.get("text"), str):
        raise InvalidRequest(f"{path}: only parts of text are read here", param=path)
    text: str = part["text"]
    return text


def _refusal(error: ValidationError) -> InvalidRequest:
    told = []
    details = error.errors(include_url=False, include_input=False)
    for each in details[:_BY_MESSAGE]:
        field = ".".join(str(part)[:64] for part in each["loc"])
        message = str((each.get("ctx") or {}).get("error", each["msg"]))
        told.append(f"{field}: {message}" if field else message)
    first = details[0]["loc"]
    return InvalidRequest("; ".join(told), param=str(first[0])[:64] if first else None)
