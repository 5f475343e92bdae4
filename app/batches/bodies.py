"""How does a line's answer look? A job's result as the OpenAI body of the line's endpoint, in a line of JSON."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from app.ids import job_name
from app.openai.fields import REQUESTS_FAULT
from app.openai.refusals import Refusal

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class EndedJob:
    """What a line's job has come to. Tokens are those that were billed."""

    id: UUID
    status: str
    model: str
    created: int  # seconds since 1970
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    choices: list[dict[str, Any]] | None
    error: dict[str, Any] | None


def answered_line(custom_id: str, endpoint: str, job: EndedJob) -> bytes:
    """The line of the output file for a job that succeeded."""
    return _line(
        custom_id, job.id, {"status_code": 200, "request_id": job_name(job.id), "body": _BODIES[endpoint](job)}, None
    )


def refused_line(custom_id: str, job: EndedJob) -> bytes:
    """The line of the error file for a job that ended in another way by itself."""
    error = job.error or {}
    code = str(error.get("code") or job.status)
    message = str(error.get("message") or error.get("detail") or f"the job is {job.status}")
    if job.status not in {"failed", "dead"}:
        return lost_line(custom_id, job.id, code, message)
    status = 400 if job.status == "failed" and code in REQUESTS_FAULT else 500
    kind = "invalid_request_error" if status == 400 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": error.get("param"), "code": code}}
    return _line(custom_id, job.id, {"status_code": status, "request_id": job_name(job.id), "body": body}, None)


def unfit_line(custom_id: str, line_id: UUID, refused: Refusal) -> bytes:
    """The line of the error file for a request that no job could be made of."""
    response = {"status_code": refused.status, "request_id": line_id.hex, "body": {"error": refused.body}}
    return _line(custom_id, line_id, response, None)


def lost_line(custom_id: str, line_id: UUID, code: str, message: str) -> bytes:
    """The line of the error file for a request that got no answer: `batch_expired`, `batch_cancelled`."""
    return _line(custom_id, line_id, None, {"code": code, "message": message})


def _line(custom_id: str, line_id: UUID, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    line = {"id": f"batch_req_{line_id.hex}", "custom_id": custom_id, "response": response, "error": error}
    return _encode(line) + b"\n"


def _chat(job: EndedJob) -> dict[str, Any]:
    choices = [
        {
            "index": each["index"],
            "message": {"role": "assistant", "content": each["text"], "refusal": None},
            "logprobs": each.get("logprobs"),
            "finish_reason": each["finish_reason"],
        }
        for each in job.choices or []
    ]
    return {
        "id": f"chatcmpl-{job.id.hex}", "object": "chat.completion", "created": job.created, "model": job.model,
        "choices": choices, "usage": _usage(job),
    }  # fmt: skip


def _completion(job: EndedJob) -> dict[str, Any]:
    choices = [
        {
            "index": each["index"],
            "text": each["text"],
            "logprobs": _legacy_logprobs(each.get("logprobs")),
            "finish_reason": each["finish_reason"],
        }
        for each in job.choices or []
    ]
    return {
        "id": f"cmpl-{job.id.hex}", "object": "text_completion", "created": job.created, "model": job.model,
        "choices": choices, "usage": _usage(job),
    }  # fmt: skip


def _response(job: EndedJob) -> dict[str, Any]:
    first = (job.choices or [{"text": ""}])[0]
    is_whole = first.get("finish_reason") == "stop"
    logprobs = (first.get("logprobs") or {}).get("content", [])
    content = [{"type": "output_text", "text": first["text"], "annotations": [], "logprobs": logprobs}]
    status = "completed" if is_whole else "incomplete"
    message = {
        "id": f"msg_{job.id.hex}", "type": "message", "role": "assistant", "status": status, "content": content,
    }  # fmt: skip
    return {
        "id": f"resp_{job.id.hex}", "object": "response", "created_at": job.created, "model": job.model,
        "status": status, "error": None, "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
        "output": [message], "parallel_tool_calls": False, "tool_choice": "none", "tools": [],
        "usage": {
            "input_tokens": job.prompt_tokens, "input_tokens_details": {"cached_tokens": job.cached_tokens},
            "output_tokens": job.completion_tokens, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": job.prompt_tokens + job.completion_tokens,
        },
    }  # fmt: skip


_BODIES: dict[str, Callable[[EndedJob], dict[str, Any]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
}


def _usage(job: EndedJob) -> dict[str, Any]:
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.completion_tokens,
        "total_tokens": job.prompt_tokens + job.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": job.cached_tokens},
    }


def _legacy_logprobs(logprobs: dict[str, Any] | None) -> dict[str, Any] | None:
    """The four lists that /v1/completions has, of the entries that chat has."""
    if not logprobs:
        return None
    entries, offsets, length = logprobs.get("content") or [], [], 0
    for each in entries:
        offsets.append(length)
        length += len(each["token"])
    return {
        "tokens": [each["token"] for each in entries],
        "token_logprobs": [each["logprob"] for each in entries],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in each.get("top_logprobs") or []} for each in entries
        ],
        "text_offset": offsets,
    }  # fmt: skip
