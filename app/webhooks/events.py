"""Which events are there, and which of them does a filter let through?"""

from collections.abc import Sequence

JOB_EVENTS = ("job.started", "job.succeeded", "job.failed", "job.cancelled", "job.expired", "job.dead")
BATCH_EVENTS = (
    "batch.in_progress", "batch.finalizing", "batch.completed", "batch.failed", "batch.expired", "batch.cancelled",
)  # fmt: skip
RESPONSE_EVENTS = ("response.completed", "response.failed", "response.cancelled", "response.incomplete")
THRESHOLD_EVENT = "budget.threshold"
PING_EVENT = "webhook.ping"  # goes to the endpoint that was pinged, whatever its filter
EVENTS = (*JOB_EVENTS, *BATCH_EVENTS, *RESPONSE_EVENTS, THRESHOLD_EVENT)
FILTERS = (*EVENTS, "job.*", "batch.*", "response.*", "budget.*", "*")
UNASKED = "job.started"  # most don't want it: it is told to those who name it


def lets_through(filters: Sequence[str] | None, event_type: str) -> bool:
    """Whether this filter wants the event: by its type, by its kind (`job.*`), or all (`*`); without one, all but `job.started`."""
    if not filters:
        return event_type != UNASKED
    kind = event_type.partition(".")[0] + ".*"
    return event_type in filters or kind in filters or "*" in filters


def wants(webhook: dict[str, object] | None, event_type: str) -> bool:
    """Whether a job's own webhook asked for this event; without a list it gets all ends, not the start."""
    if not webhook:
        return False
    events = webhook.get("events")
    assert events is None or isinstance(events, list)
    return event_type in events if events else event_type in JOB_EVENTS and event_type != UNASKED
