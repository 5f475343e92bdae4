"""What does a reader of a job's stream get? Events, with ids that count what was told: whoever says the last one gets the rest.

An id is `(run - 1) x 2^32 + 1 + u`. A run is the attempt that began with no token and those that went on from it; `u` counts its
tokens and its choices that have finished, up to and with this event. A job's `finished` has the last id of its last attempt.
"""

from typing import Any

import msgspec

from app.queue.events import TokenLogprob

RUN_BITS = 32


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event of one job.

    `kind` is `started`, `restarted` (drop what came before: the text begins anew), `tokens` (of one choice, `index`) or `finished`.
    `offset` counts the choice's tokens before this event, `text_offset` its characters. `status`, `usage` and `error` are those of
    the finished job.
    """

    id: int
    kind: str
    index: int = 0
    offset: int = 0
    text_offset: int = 0
    text: str = ""
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    status: str | None = None
    usage: dict[str, int] | None = None
    error: dict[str, Any] | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.kind == "finished"


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


class _Start(msgspec.Struct):
    id: int
    kind: str


class _Tokens(msgspec.Struct, omit_defaults=True):
    id: int
    kind: str
    index: int
    offset: int
    text_offset: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    logprobs: list[dict[str, Any]] | None = None


class _Finish(msgspec.Struct):
    id: int
    kind: str
    status: str | None
    usage: dict[str, int] | None
    error: dict[str, Any] | None


_encode = msgspec.json.Encoder().encode


def wire(event: Event) -> bytes:
    """The event as a server-sent event: `id`, `event` and `data`, which is JSON."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.id, event.kind.encode(), _encode(_shown(event)))


def _shown(event: Event) -> msgspec.Struct:
    if event.kind == "tokens":
        logprobs = None
        if event.logprobs:
            logprobs = [
                {"logprob": each.chosen, "top_ids": each.top_ids, "top_logprobs": each.top_logprobs}
                for each in event.logprobs
            ]
        return _Tokens(
            event.id, event.kind, event.index, event.offset, event.text_offset, event.text, event.token_ids,
            event.finish_reason, logprobs,
        )  # fmt: skip
    if event.is_last:
        return _Finish(event.id, event.kind, event.status, event.usage, event.error)
    return _Start(event.id, event.kind)
