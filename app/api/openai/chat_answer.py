"""What does a chat completion look like, whole and in chunks?"""

from typing import Any

from app.api.openai.calls import Arguments, CallBegun, CallEnded, Part, Said, reader_of
from app.api.openai.common_answer import CHAT, call_id, common_fields, usage_of
from app.jobs.read import JobView
from app.openai.tools import Calling


def chat_completion(job: JobView, calling: Calling) -> dict[str, Any]:
    """The answer that tells of a job which succeeded."""
    choices = [_choice(job, choice, calling) for choice in job.choices or []]
    return common_fields(CHAT, "chat.completion", job) | {"choices": choices, "usage": usage_of(job)}


def _choice(job: JobView, choice: dict[str, Any], calling: Calling) -> dict[str, Any]:
    reader = reader_of(calling)
    parts = [*reader.push(choice["text"]), *reader.close()]
    calls: list[dict[str, Any]] = []
    said = ""
    for part in parts:
        if isinstance(part, Said):
            said += part.text
        elif isinstance(part, CallBegun):
            calls.append(_call(job, choice["index"], len(calls), part.name))
        elif isinstance(part, Arguments):
            calls[-1]["function"]["arguments"] += part.text
    message: dict[str, Any] = {"role": "assistant", "content": said if said or not calls else None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    logprobs = choice.get("logprobs")
    return {
        "index": choice["index"],
        "message": message,
        "logprobs": None if logprobs is None else {"content": logprobs["content"], "refusal": None},
        "finish_reason": finish_reason(choice["finish_reason"], has_called=bool(calls)),
    }


def finish_reason(reason: str | None, *, has_called: bool) -> str:
    """OpenAI's word for why a choice ended."""
    if reason == "length":
        return "length"
    return "tool_calls" if has_called else "stop"


def _call(job: JobView, choice: int, place: int, name: str) -> dict[str, Any]:
    function = {"name": name, "arguments": ""}
    return {"id": call_id(job.id, choice, place), "type": "function", "function": function}


class ChatChunks:
    """Turns what is new of a job into chunks. With `include_usage` each chunk has a usage, null but in the last."""

    def __init__(self, job: JobView, calling: Calling, *, include_usage: bool) -> None:
        self._job = job
        self._fields = common_fields(CHAT, "chat.completion.chunk", job)
        self._readers = [reader_of(calling) for _ in range(job.n)]
        self._num_calls = [0] * job.n
        self._include_usage = include_usage

    def begin(self) -> list[dict[str, Any]]:
        """The first chunk of each choice: whose turn it is."""
        return [self._chunk(i, {"role": "assistant", "content": "", "refusal": None}) for i in range(self._job.n)]

    def push(
        self, index: int, text: str, logprobs: list[dict[str, Any]] | None, reason: str | None
    ) -> list[dict[str, Any]]:
        """The chunks that tell this of a choice; `reason`: it has ended."""
        reader = self._readers[index]
        parts = [*reader.push(text), *(reader.close() if reason is not None else ())]
        deltas = [delta for part in parts if (delta := self._delta(index, part)) is not None]
        if logprobs and not deltas:
            deltas = [{}]  # they belong to a text that is held back, or to half a character
        chunks = [self._chunk(index, delta) for delta in deltas]
        if logprobs:
            chunks[0]["choices"][0]["logprobs"] = {"content": logprobs, "refusal": None}
        if reason is not None:
            ended = finish_reason(reason, has_called=self._num_calls[index] > 0)
            chunks.append(self._chunk(index, {}, ended))
        return chunks

    def usage(self, job: JobView) -> list[dict[str, Any]]:
        """The last chunk, where it was asked for."""
        return [self._fields | {"choices": [], "usage": usage_of(job)}] if self._include_usage else []

    def _delta(self, index: int, part: Part) -> dict[str, Any] | None:
        if isinstance(part, Said):
            return {"content": part.text}
        if isinstance(part, CallEnded):
            return None
        if isinstance(part, CallBegun):
            place = self._num_calls[index]
            self._num_calls[index] += 1
            return {"tool_calls": [{"index": place} | _call(self._job, index, place, part.name)]}
        return {"tool_calls": [{"index": self._num_calls[index] - 1, "function": {"arguments": part.text}}]}

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._fields | {"choices": [choice]} | ({"usage": None} if self._include_usage else {})
