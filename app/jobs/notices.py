"""What is a job's owner told by webhook? What happened and where to read it, never prompts or texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from app.ids import job_name, response_name
from app.jobs.states import EndStatus
from app.webhooks.events import wants
from app.webhooks.outbox import Event


@dataclass(frozen=True, slots=True)
class Used:
    """Tokens that an attempt computed. `cached_tokens` are those of the prompt that the prefix cache gave."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


def job_event(
    row: Row[Any], event_type: str, at: datetime, used: Used | None = None, *, cost_micros: int | None = None
) -> Event:
    """That `event_type` came true for the job of this row at that time; `used` and `cost_micros` are what was billed. Shaped as the API's."""
    used = used or Used()
    data = {
        "id": job_name(row.id),
        "object": "job",
        "status": event_type.removeprefix("job.").replace("started", "running"),
        "model": row.model,
        "tier": row.tier,
        "error": getattr(row, "error", None),
        "metadata": row.metadata,
        "usage": {
            "prompt_tokens": used.prompt_tokens,
            "cached_tokens": used.cached_tokens,
            "completion_tokens": used.completion_tokens,
            "total_tokens": used.prompt_tokens + used.completion_tokens,
        },
        "cost_micros": cost_micros,
    }
    url = row.webhook["url"] if wants(row.webhook, event_type) else None
    return Event(
        row.tenant_id, event_type, at, data, job_id=row.id, url=url, reservation=row.reservation,
        traceparent=row.traceparent,
    )  # fmt: skip


def response_status(status: EndStatus, choices: Sequence[dict[str, Any]] | None) -> str:
    """OpenAI's word for how a job ended: completed, incomplete, cancelled or failed."""
    if status == "succeeded":
        is_cut = any(choice["finish_reason"] == "length" for choice in choices or ())
        return "incomplete" if is_cut else "completed"
    return "cancelled" if status == "cancelled" else "failed"


def response_event(row: Row[Any], choices: Sequence[dict[str, Any]] | None) -> Event:
    """That the background response which the job of this row is has ended, as OpenAI tells it."""
    event_type = f"response.{response_status(row.status, choices)}"
    data = {"id": response_name(row.id)}
    return Event(row.tenant_id, event_type, row.finished_at, data, job_id=row.id, reservation=row.reservation)
