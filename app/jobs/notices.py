"""What is a job's owner told by webhook? What happened and where to read it, never prompts or texts."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from app.ids import job_name
from app.webhooks.outbox import Notice


@dataclass(frozen=True, slots=True)
class Used:
    """Tokens that an attempt computed. `cached_tokens` are those of the prompt that the prefix cache gave."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


def job_notice(row: Row[Any], event_type: str, at: datetime, used: Used | None = None) -> Notice:
    """The notice that `event_type` came true for the job of this row at that time; `used` is what was billed."""
    used = used or Used()
    data = {
        "id": job_name(row.id),
        "object": "job",
        "status": event_type.removeprefix("job.").replace("started", "running"),
        "model": row.model,
        "tier": row.tier,
        "error": getattr(row, "error", None),
        "metadata": row.metadata,
        "usage": {"prompt_tokens": used.prompt_tokens, "completion_tokens": used.completion_tokens},
    }
    return Notice(row.tenant_id, row.id, event_type, row.webhook["url"], at.isoformat(), data, row.reservation)
