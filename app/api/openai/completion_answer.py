"""What does a completion look like, whole and in chunks?"""

from collections.abc import Sequence
from typing import Any

from app.api.openai.common_answer import COMPLETION, common_fields, older_logprobs, usage_of
from app.api.openai.deltas import Delta
from app.jobs.read import JobView


def completion(jobs: Sequence[JobView]) -> dict[str, Any]:
    """The answer that tells of jobs which succeeded, one for each prompt; it has the name of the first."""
    choices = [_choice(place * job.n, choice) for place, job in enumerate(jobs) for choice in job.choices or []]
    return common_fields(COMPLETION, "text_completion", jobs[0]) | {"choices": choices, "usage": usage_of(*jobs)}


def _choice(first: int, choice: dict[str, Any]) -> dict[str, Any]:
    logprobs = choice.get("logprobs")
    return {
        "index": first + choice["index"],
        "text": choice["text"],
        "logprobs": None if logprobs is None else older_logprobs(logprobs["content"]),
        "finish_reason": choice["finish_reason"] or "stop",
    }


class CompletionChunks:
    """Turns what is new of jobs, one for each prompt, into chunks, which have the form of the whole."""

    def __init__(self, jobs: Sequence[JobView], *, include_usage: bool, with_ids: bool = False) -> None:
        self._fields = common_fields(COMPLETION, "text_completion", jobs[0])
        self._n = jobs[0].n
        self._include_usage = include_usage
        self._with_ids = with_ids
        self._offsets = [0] * (self._n * len(jobs))

    def push(self, prompt: int, delta: Delta) -> list[dict[str, Any]]:
        """The chunk that tells this of a choice of the prompt at this place."""
        index = prompt * self._n + delta.index
        choice: dict[str, Any] = {"index": index, "text": delta.text, "logprobs": None, "finish_reason": delta.reason}
        if delta.logprobs:
            choice["logprobs"] = older_logprobs(delta.logprobs, self._offsets[index])
            self._offsets[index] += sum(len(each["token"]) for each in delta.logprobs)
        if self._with_ids:
            choice["token_ids"] = delta.token_ids
        return [self._fields | {"choices": [choice]} | ({"usage": None} if self._include_usage else {})]

    def usage(self, jobs: Sequence[JobView]) -> list[dict[str, Any]]:
        """The last chunk, where it was asked for."""
        return [self._fields | {"choices": [], "usage": usage_of(*jobs)}] if self._include_usage else []
