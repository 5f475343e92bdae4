"""What does a completion look like, whole and in chunks?"""

from typing import Any

from app.api.openai.common_answer import COMPLETION, common_fields, older_logprobs, usage_of
from app.jobs.read import JobView


def completion(job: JobView) -> dict[str, Any]:
    """The answer that tells of a job which succeeded."""
    choices = [_choice(choice) for choice in job.choices or []]
    return common_fields(COMPLETION, "text_completion", job) | {"choices": choices, "usage": usage_of(job)}


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    logprobs = choice.get("logprobs")
    return {
        "index": choice["index"],
        "text": choice["text"],
        "logprobs": None if logprobs is None else older_logprobs(logprobs["content"]),
        "finish_reason": choice["finish_reason"] or "stop",
    }


class CompletionChunks:
    """Turns what is new of a job into chunks, which have the form of the whole."""

    def __init__(self, job: JobView, *, include_usage: bool, with_ids: bool = False) -> None:
        self._fields = common_fields(COMPLETION, "text_completion", job)
        self._include_usage = include_usage
        self._with_ids = with_ids
        self._offsets = [0] * job.n

    def push(
        self, index: int, text: str, logprobs: list[dict[str, Any]] | None, reason: str | None, token_ids: list[int]
    ) -> list[dict[str, Any]]:
        """The chunk that tells this of a choice; `reason`: it has ended."""
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
        if logprobs:
            choice["logprobs"] = older_logprobs(logprobs, self._offsets[index])
            self._offsets[index] += sum(len(each["token"]) for each in logprobs)
        if self._with_ids:
            choice["token_ids"] = token_ids
        return [self._fields | {"choices": [choice]} | ({"usage": None} if self._include_usage else {})]

    def usage(self, job: JobView) -> list[dict[str, Any]]:
        """The last chunk, where it was asked for."""
        return [self._fields | {"choices": [], "usage": usage_of(job)}] if self._include_usage else []
