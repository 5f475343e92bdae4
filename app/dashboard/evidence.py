"""What did each attempt of a dead letter leave behind? Its stored evidence, which may be of any age and shape, as rows for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.dashboard.listing import moment_of
from app.dashboard.timeline import GIVEN_BACK
from app.dashboard.words import pretty

MOST_S = 1e10  # centuries
LOG_FOLLOWS = "; the end of its log:"  # as it stands before a log that is shown in its own place
# Of what an attempt left, these have a place of their own; whatever else there is stands under `others`.
_NAMED = {"reason", "message", "code", "log_tail", "flight", "preempted"}


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """Who ran it. None: not known."""

    incarnation: str | None
    host: str | None
    pid: str | None
    device: str | None
    model_hash: str | None


@dataclass(frozen=True, slots=True)
class FlightFacts:
    """The engine's last step: which, of how many attempts, how many of them new; whether this one was in it, and new. None: not known."""

    step: int | None
    members: int | None
    new: int | None
    was_in_it: bool
    was_new: bool


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """One attempt. None, or an empty text: it wasn't kept."""

    number: int | None
    outcome: str
    meaning: str  # of the outcome, in words
    ended_at: datetime | None
    queued_s: float | None
    prefill_s: float | None
    decode_s: float | None
    worker: WorkerFacts | None
    error: str
    code: str
    flight: FlightFacts | None
    preemptions: int
    others: Mapping[str, str]
    log: str  # the end of the engine's


@dataclass(frozen=True, slots=True)
class EvidenceFacts:
    """All of it. `left_out` older attempts aren't kept; `is_too_large`: nor is what the last ones left."""

    message: str
    code: str
    attempts: Sequence[AttemptFacts]  # newest first
    left_out: int
    is_too_large: bool


def facts_of(job: str, evidence: Mapping[str, Any]) -> EvidenceFacts:
    """Read whatever was stored; what isn't of the kind that it should be counts as not known.

    Args:
        job: the job's id in hex, by which the engine called its attempts.
        evidence: as `app.jobs.dead.evidence` makes it.
    """
    attempts = evidence.get("attempts")
    rows = [_attempt(job, each) for each in attempts if isinstance(each, dict)] if isinstance(attempts, list) else []
    error = _object(evidence.get("error"))
    return EvidenceFacts(
        _text(error.get("message")), _text(error.get("code")), rows[::-1], _whole(evidence.get("attempts_left_out")) or 0,
        evidence.get("too_large") is True,
    )  # fmt: skip


def _attempt(job: str, attempt: Mapping[str, Any]) -> AttemptFacts:
    detail = _object(attempt.get("detail"))
    outcome, number, moved = _text(attempt.get("outcome")), _whole(attempt.get("attempt")), detail.get("preempted")
    return AttemptFacts(
        number=number,
        outcome=outcome,
        meaning=GIVEN_BACK.get(outcome, ""),
        ended_at=moment_of(_text(attempt.get("ended_at"))),
        queued_s=_seconds(attempt.get("queued_s")),
        prefill_s=_seconds(attempt.get("prefill_s")),
        decode_s=_seconds(attempt.get("decode_s")),
        worker=_worker(attempt.get("worker")),
        error=_text(detail.get("reason") or detail.get("message")).removesuffix(LOG_FOLLOWS),
        code=_text(detail.get("code")),
        flight=_flight(f"{job}.{number}", detail.get("flight")),
        preemptions=len(_list(moved)),
        others={name: pretty(value) for name, value in detail.items() if name not in _NAMED and value is not None},
        log=_text(detail.get("log_tail")).strip("\n"),
    )


def _worker(value: object) -> WorkerFacts | None:
    worker = _object(value)
    if not worker:
        return None
    incarnation, host, pid, device, model_hash = (
        _text(worker.get(name)) or None for name in ("incarnation", "host", "pid", "device", "model_hash")
    )
    return WorkerFacts(incarnation, host, pid, device, model_hash)


def _flight(name: str, value: object) -> FlightFacts | None:
    flight = _object(value)
    if not flight:
        return None
    members, admitted = _list(flight.get("members")), _list(flight.get("admitted"))
    return FlightFacts(
        _whole(flight.get("step")), _whole(flight.get("num_members")) or None, _whole(flight.get("num_admitted")),
        was_in_it=name in members, was_new=name in admitted,
    )  # fmt: skip


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else pretty(value)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _seconds(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return value if 0 <= value < MOST_S else None
