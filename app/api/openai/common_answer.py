"""What do the face's answers have in common? Names that follow from the job's id, times, usage, log-probabilities."""

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from app.ids import JOB_PREFIX, RESPONSE_PREFIX, parse_job_name
from app.jobs.read import JobView
from app.openai.fields import SERVICE_TIER_OF

CHAT, COMPLETION, RESPONSE = "chatcmpl-", "cmpl-", RESPONSE_PREFIX


def name_of(prefix: str, job_id: UUID) -> str:
    """The id under which the face shows a job."""
    return prefix + job_id.hex


def job_id_of(prefix: str, name: str) -> UUID | None:
    """The job behind a name of the face's; None where it can't be one."""
    return parse_job_name(JOB_PREFIX + name.removeprefix(prefix)) if name.startswith(prefix) else None


def call_id(job_id: UUID, choice: int, place: int) -> str:
    """The id of a function call: the same in a stream and whenever the result is read."""
    return "call_" + hashlib.sha256(f"{job_id.hex}.{choice}.{place}".encode()).hexdigest()[:24]


def seconds(at: datetime | None) -> int | None:
    """A time as OpenAI writes it: whole seconds since the epoch."""
    return None if at is None else int(at.timestamp())


def common_fields(prefix: str, kind: str, job: JobView) -> dict[str, Any]:
    """The members that a completion, a chat completion and their chunks share."""
    return {
        "id": name_of(prefix, job.id),
        "object": kind,
        "created": seconds(job.created_at),
        "model": job.model,
        "service_tier": SERVICE_TIER_OF[job.tier],
        "system_fingerprint": None,
    }


def usage_of(*jobs: JobView) -> dict[str, Any]:
    """OpenAI's usage of chat completions and completions, of all these jobs together."""
    prompt_tokens = sum(job.prompt_tokens for job in jobs)
    completion_tokens = sum(job.completion_tokens for job in jobs)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(job.cached_tokens for job in jobs), "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def older_logprobs(content: Iterable[dict[str, Any]], offset: int = 0) -> dict[str, Any]:
    """Log-probabilities as completions have them, from those of chat completions; `offset`: where the first token's text begins."""
    shown: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for entry in content:
        shown["tokens"].append(entry["token"])
        shown["token_logprobs"].append(entry["logprob"])
        shown["top_logprobs"].append({each["token"]: each["logprob"] for each in entry["top_logprobs"]})
        shown["text_offset"].append(offset)
        offset += len(entry["token"])
    return shown
