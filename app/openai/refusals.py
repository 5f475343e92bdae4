"""What does OpenAI call a refusal of ours? Status, type, code, and the caller's own names of fields: for calls, and for lines of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import BudgetExhausted, PenstockError, PromptTooLong, Unauthenticated, UnknownModel
from app.openai.fields import in_callers_words
from app.quotas.rates import RateLimited

# What OpenAI calls what we call otherwise: (type, code).
NAMES: dict[type[PenstockError], tuple[str, str]] = {
    BudgetExhausted: ("insufficient_quota", "insufficient_quota"),
    RateLimited: ("rate_limit_error", "rate_limit_exceeded"),
    Unauthenticated: ("invalid_request_error", "invalid_api_key"),
    UnknownModel: ("invalid_request_error", "model_not_found"),
    PromptTooLong: ("invalid_request_error", "context_length_exceeded"),
}
_TYPES = {401: "invalid_request_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal as OpenAI's clients read it."""

    status: int
    message: str
    type: str
    param: str | None
    code: str | None

    @property
    def body(self) -> dict[str, Any]:
        """The error object; `error` in an answer's body or an event's data."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


def type_of(status: int) -> str:
    """OpenAI's word for what an error of this status is."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def in_openais_words(error: PenstockError, renamed: Mapping[str, str]) -> Refusal:
    """Our error in OpenAI's words; `renamed`: fields that the caller knows by another name."""
    status = 400 if error.status == 422 else error.status
    kind, code = type_of(status), error.code
    for cls, names in NAMES.items():
        if isinstance(error, cls):
            kind, code = names
    message, param = in_callers_words(error.detail, error.extra.get("param"), renamed)
    return Refusal(status, message, kind, param, code)
