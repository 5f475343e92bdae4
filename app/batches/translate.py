"""What job does a line ask for? OpenAI's body of an endpoint, read as a call of that endpoint reads it."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from app.errors import InvalidRequest
from app.jobs.refusals import refusal, refuse_wide_objects
from app.jobs.request import JobRequest
from app.openai.chat_request import ChatRequest
from app.openai.completion_request import CompletionRequest
from app.openai.fields import in_callers_words
from app.openai.response_request import ResponseRequest

Body = dict[str, Any]
Call = ChatRequest | CompletionRequest | ResponseRequest

ENDPOINTS: dict[str, type[Call]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
}
# What a call may ask for and a line can't, with what to do instead.
NOT_IN_A_LINE = {
    "stream": "must be false or left out: a batch's results are read from its files",
    "background": "must be false or left out: a batch runs in the background",
    "tools": "must be left out in a line of a batch: send a call of its own",
    "previous_response_id": "must be left out in a line of a batch: send the whole conversation as input",
    "webhook": "must be left out in a line of a batch: an endpoint is told of the batch, and of its jobs",
    "deadline_s": "must be left out in a line of a batch: the batch has one, completion_window",
    "on_budget": "must be left out in a line of a batch: a batch waits for its budgets by itself",
    "fallback_model": "must be left out in a line of a batch: name the model that shall run it",
}
_ASKS_NOTHING: tuple[Any, ...] = (None, False, [])


def to_request(endpoint: str, body: Body) -> JobRequest:
    """The native request of a body of this endpoint: the same that a call makes of it.

    Raises:
        InvalidRequest: a rule is broken, as a call would tell it, or it asks for something that batches don't do; `param` names the field.
    """
    model = ENDPOINTS[endpoint]
    for name, why in NOT_IN_A_LINE.items():
        if body.get(name) not in _ASKS_NOTHING:
            raise InvalidRequest(f"{name}: {why}", param=name)
    refuse_wide_objects(body)
    try:
        asked = model.model_validate(body)
    except ValidationError as error:
        raise refusal(error) from None
    try:
        return _job(asked)
    except (ValidationError, InvalidRequest) as error:
        refused = refusal(error) if isinstance(error, ValidationError) else error
        message, param = in_callers_words(refused.detail, refused.extra.get("param"), asked.renamed())
        raise type(refused)(message, **(refused.extra | {"param": param})) from None


def names_in(endpoint: str, body: Body) -> Mapping[str, str]:
    """Fields of the job underneath that this body knows by other names; none where it can't be read."""
    try:
        return ENDPOINTS[endpoint].model_validate(body).renamed()
    except ValidationError:
        return {}


def _job(asked: Call) -> JobRequest:
    if not isinstance(asked, CompletionRequest):
        return asked.job()
    jobs = asked.jobs()
    if len(jobs) > 1:
        raise InvalidRequest(
            "prompt: must be one prompt in a line of a batch: give each a line of its own", param="prompt"
        )
    return jobs[0]
