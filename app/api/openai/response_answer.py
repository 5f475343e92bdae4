"""What does a response look like? OpenAI's response object, from the request as it was sent and the job as it is."""

from collections.abc import Iterable
from typing import Any, cast
from uuid import UUID

from app.api.openai.calls import Arguments, CallBegun, CallEnded, Part, Said, reader_of
from app.api.openai.common_answer import RESPONSE, call_id, name_of, seconds
from app.api.openai.token_places import TokenPlaces
from app.jobs.notices import response_status
from app.jobs.read import JobView
from app.jobs.states import END_STATUSES, EndStatus
from app.openai.fields import REQUESTS_FAULT, SERVICE_TIER_OF
from app.openai.response_request import ResponseRequest


class OutputItems:
    """The items of an output as they grow; `added` and `ended` tell a stream what has just happened."""

    def __init__(self, job_id: UUID) -> None:
        self._job_id = job_id
        self.items: list[dict[str, Any]] = []

    @property
    def current(self) -> dict[str, Any] | None:
        """The item that is being written."""
        return self.items[-1] if self.items and self.items[-1]["status"] == "in_progress" else None

    def begin(self, part: Part) -> bool:
        """Open the item that a part belongs to; whether that is a new one. A text ends where a call begins: see to it before."""
        if isinstance(part, CallBegun):
            place = sum(item["type"] == "function_call" for item in self.items)
            self.items.append(
                {
                    "id": f"fc_{self._job_id.hex}_{len(self.items)}",
                    "type": "function_call",
                    "call_id": call_id(self._job_id, 0, place),
                    "name": part.name,
                    "arguments": "",
                    "status": "in_progress",
                }
            )
            return True
        if isinstance(part, Said) and (self.current is None or self.current["type"] != "message"):
            self.items.append(
                {
                    "id": f"msg_{self._job_id.hex}_{len(self.items)}",
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}],
                    "status": "in_progress",
                }
            )
            return True
        return False

    def write(self, part: Part) -> None:
        """Add a part to the item that is open."""
        item = self.items[-1]
        if isinstance(part, Said):
            item["content"][0]["text"] += part.text
        elif isinstance(part, Arguments):
            item["arguments"] += part.text

    def note(self, logprobs: Iterable[dict[str, Any]]) -> None:
        """Add those to the message that is open, if one is."""
        if self.current is not None and self.current["type"] == "message":
            self.current["content"][0]["logprobs"] += logprobs

    def end(self, *, is_whole: bool = True) -> dict[str, Any] | None:
        """Close the item that is open, if one is."""
        item = self.current
        if item is not None:
            item["status"] = "completed" if is_whole else "incomplete"
        return item


def output_of(job: JobView, request: ResponseRequest) -> list[dict[str, Any]]:
    """The items that the job has written; with an end from outside, what there was."""
    if not job.choices:
        return []
    choice = job.choices[0]
    reader, output, places = reader_of(request.calling()), OutputItems(job.id), TokenPlaces()
    places.push(choice["text"], (choice.get("logprobs") or {}).get("content", []))
    for part in (*reader.push(choice["text"]), *reader.close()):
        if isinstance(part, CallBegun):
            output.end()
        output.begin(part)
        output.write(part)
        output.note(shown for _, shown in logprobs_of(part, places))
        if isinstance(part, CallEnded):
            output.end()
    if not output.items:
        output.begin(Said(""))
    output.note(shown_logprob(each) for each in places.close())
    output.end(is_whole=choice["finish_reason"] == "stop")
    return output.items


def logprobs_of(part: Part, places: TokenPlaces) -> list[tuple[int, dict[str, Any]]]:
    """Log-probabilities of the tokens that begin in a text for the reader, with where they begin; a call's aren't shown."""
    if not isinstance(part, Said):
        return []
    found = places.within(part.begin, part.begin + len(part.text))
    return [(place, shown_logprob(entry)) for place, entry in found]


def shown_logprob(entry: dict[str, Any]) -> dict[str, Any]:
    """A log-probability as responses have it."""
    names = ("token", "bytes", "logprob")
    best = [{name: each[name] for name in names} for each in entry["top_logprobs"]]
    return {name: entry[name] for name in names} | {"top_logprobs": best}


def status_of(job: JobView) -> str:
    """OpenAI's word for what a job's state is."""
    going = {"queued": "queued", "running": "in_progress"}
    return going.get(job.status) or response_status(cast("EndStatus", job.status), job.choices)


def response_object(
    job: JobView, request: ResponseRequest, *, status: str | None = None, output: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The response. `status` and `output` are those of a moment of its stream; left out: as the job is."""
    shown = status or status_of(job)
    has_ended = job.status in END_STATUSES and status not in {"queued", "in_progress"}
    calling = request.calling()
    return {
        "id": name_of(RESPONSE, job.id),
        "object": "response",
        "created_at": seconds(job.created_at),
        "completed_at": seconds(job.finished_at) if shown == "completed" else None,
        "status": shown,
        "background": bool(request.background),
        "error": _error(job) if shown == "failed" else None,
        "incomplete_details": {"reason": "max_output_tokens"} if shown == "incomplete" else None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "model": job.model,
        "output": output_of(job, request) if output is None else output,
        "parallel_tool_calls": calling.is_parallel,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": SERVICE_TIER_OF[job.tier],
        "store": request.is_stored,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {"format": _format(request)},
        "tool_choice": _choice(request),
        "tools": [_tool(each.model_dump()) for each in request.tools or []],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": "disabled",
        "usage": _usage(job) if has_ended else None,
        "user": request.user,
        "metadata": request.metadata or {},
    }


def _usage(job: JobView) -> dict[str, Any]:
    return {
        "input_tokens": job.prompt_tokens,
        "input_tokens_details": {"cached_tokens": job.cached_tokens},
        "output_tokens": job.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": job.prompt_tokens + job.completion_tokens,
    }


def _error(job: JobView) -> dict[str, Any]:
    """OpenAI has few codes for this; ours stands in the message."""
    error = job.error or {}
    code = str(error.get("code") or job.status)
    message = str(error.get("message") or f"the job ended as {job.status}")
    return {"code": "invalid_prompt" if code in REQUESTS_FAULT else "server_error", "message": f"{code}: {message}"}


def _format(request: ResponseRequest) -> dict[str, Any]:
    if request.text is None or request.text.format is None:
        return {"type": "text"}
    return request.text.format.model_dump(by_alias=True, exclude_none=True)


def _choice(request: ResponseRequest) -> Any:
    choice = request.tool_choice
    if choice is None:
        return "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return tool | {"strict": bool(tool["strict"])}
