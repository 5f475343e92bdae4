"""What does a reader of a job's stream get? Events, with ids that count what was told: whoever says the last one gets the rest.

An id is `(run - 1) x 2^32 + 1 + u`. A run is the attempt that began with no token and those that went on from it; `u` counts its
tokens and its choices that have finished, up to and with this event. A job's `finished` has the last id of its last attempt.
"""

from typing import Any

import msgspec

from app.queue.events import TokenLogprob

RUN_BITS = 32


class Event(msgspec.Struct, frozen=True):
    """One event of one job, its fields in the order in which they are sent.

    `kind` is `started`, `restarted` (drop what came before: the text begins anew), `tokens` or `finished`; those two have a class each.
    """

    id: int
    kind: str


class Tokens(Event, frozen=True, omit_defaults=True):
    """Tokens of one choice, `index`, or its end. `offset` counts the choice's tokens before this event, `text_offset` its characters."""

    index: int
    offset: int
    text_offset: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    logprobs: list[TokenLogprob] | None = None


class Finished(Event, frozen=True):
    """The job's end: `status`, `usage` and `error` are those of the finished job."""

    status: str
    usage: dict[str, int]
    error: dict[str, Any] | None


def first_id(run: int) -> int:
    """The id of a run's beginning; with it nothing of the run has been told."""
    return ((run - 1) << RUN_BITS) + 1


def last_id(attempt: int) -> int:
    """The id of the end of a job whose last attempt this was, 0 where it never ran."""
    return (max(1, attempt) << RUN_BITS) - 1


def run_of(event_id: int) -> int:
    """The run that an id belongs to; 1 for 0, which is before everything."""
    return (event_id >> RUN_BITS) + 1


def units_of(event_id: int) -> int:
    """How many tokens and finishes of its run an id has behind it."""
    return max(0, event_id - first_id(run_of(event_id)))


_encode = msgspec.json.Encoder().encode


def wire(event: Event) -> bytes:
    """The event as a server-sent event: `id`, `event` and `data`, which is JSON."""
    if isinstance(event, Tokens):
        told = _with_names(event) if event.logprobs else event
        return b"id: %d\nevent: tokens\ndata: %b\n\n" % (event.id, _encode(told))
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.id, event.kind.encode(), _encode(event))


def _with_names(event: Tokens) -> Tokens:
    """To be sent: of each log-probability its numbers by name, which aren't told so in Redis."""
    logprobs = [
        {"logprob": each.chosen, "top_ids": each.top_ids, "top_logprobs": each.top_logprobs}
        for each in event.logprobs or ()
    ]
    return msgspec.structs.replace(event, logprobs=logprobs)
