"""What happened to a job, and when? One list of moments, from its row, its attempts, its letters and what was delivered of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from app.dashboard.queries.job import AttemptRow, JobStory, NoticeRow
from app.queue.events import StoredEvent

Kind = Literal["plain", "busy", "good", "warn", "bad"]

# What an attempt that ended without a result means for the job.
GIVEN_BACK = {
    "drained": "taken off its worker, which was drained",
    "bystander": "broken off: its engine died by another job",
    "engine_unfit": "broken off: its engine was taken out",
    "upstream_away": "broken off: the upstream server didn't answer",
    "worker_lost": "broken off: its worker was lost",
    "engine_crash": "broken off: its engine died, and it is a suspect",
    "transient_error": "broken off by an error that may pass",
}
_KINDS: dict[str, Kind] = {"succeeded": "good", "failed": "bad", "dead": "bad", "cancelled": "warn", "expired": "warn"}


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened. `since_s`: seconds since the moment before; None for the first. `note` says more."""

    at: datetime
    name: str
    text: str
    kind: Kind = "plain"
    note: str = ""
    since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """How an attempt after the first began: with so many tokens of the one before, or from the beginning."""

    tokens: int
    is_anew: bool


def how_begun(events: Iterable[StoredEvent]) -> dict[int, Begun]:
    """By attempt, as the job's readers were told."""
    found = {}
    for each in events:
        if each.event.kind in {"started", "restarted"}:
            found[each.place.attempt] = Begun(each.seq, each.event.kind == "restarted")
    return found


def timeline(job: JobStory, begun: Mapping[int, Begun]) -> Sequence[Moment]:
    """Oldest first. What was measured by a worker's clock is put between what Postgres' clock says."""
    moments = [_queued(job)]
    moments += [
        Moment(each.at, "queued", f"put into {each.after} by {each.actor}", note=f"it was in {each.before}")
        for each in job.retierings
    ]
    for place, attempt in enumerate(job.attempts):
        before = job.attempts[place - 1].ended_at if place else None
        moments += _attempt(job, attempt, before, begun.get(attempt.attempt))
    moments += _now_running(job, begun)
    moments += [
        Moment(each.resolved_at, each.resolution or "", f"dead letter {each.resolution} by {each.resolved_by}",
               note=each.resolution_reason or "")
        for each in job.letters if each.resolved_at is not None
    ]  # fmt: skip
    if job.cancel_requested_at is not None:
        moments.append(Moment(job.cancel_requested_at, "cancelling", "its worker was asked to stop it", "warn"))
    if job.finished_at is not None:
        code = f": {job.error['code']}" if job.error and "code" in job.error else ""
        moments.append(Moment(job.finished_at, "finished", f"{job.status}{code}", _KINDS.get(job.status, "plain")))
    moments += [_delivered(each) for each in job.notices if each.ended_at is not None]
    return _in_order(moments)


def _queued(job: JobStory) -> Moment:
    """In the tier that it came into: the row has only the one of now."""
    asked = str(job.asked.get("tier") or job.tier)
    first, last = (job.retierings[0].before, job.retierings[-1].after) if job.retierings else (asked, asked)
    moved = "" if last == job.tier else f"; in {job.tier} since its batch changed"
    return Moment(job.created_at, "queued", f"queued in {first}", note=f"{job.prompt_tokens:,} prompt tokens{moved}")


def _attempt(job: JobStory, attempt: AttemptRow, before: datetime | None, begun: Begun | None) -> list[Moment]:
    started_at = _started_at(job, attempt, before)
    where = f"{attempt.host}, {attempt.device}" if attempt.host else ""
    found = []
    if started_at is not None:
        found.append(Moment(started_at, "claimed", f"claimed by a worker, attempt {attempt.attempt}", "busy", where))
        found += _resumed(started_at, attempt.attempt, begun)
        found += _measured(started_at, attempt)
        found += _preempted(started_at, attempt)
    if attempt.outcome in GIVEN_BACK:
        found.append(Moment(attempt.ended_at, "preempted", GIVEN_BACK[attempt.outcome], "warn"))
        if job.attempt > attempt.attempt or job.status == "queued":
            found.append(Moment(attempt.ended_at, "queued", "queued again", "plain"))
    elif attempt.outcome == "shared":
        found.append(Moment(attempt.ended_at, "shared", "took the result of identical work", "good"))
    return found


def _started_at(job: JobStory, attempt: AttemptRow, before: datetime | None) -> datetime | None:
    """The row knows when the first attempt was started; of later ones, how long they had waited since they could run."""
    if attempt.attempt == 1:
        return job.started_at
    if attempt.queued_s is None:
        return None
    eligible_at = job.eligible_at if attempt.attempt == job.attempt else before
    return None if eligible_at is None else eligible_at + timedelta(seconds=attempt.queued_s)


def _measured(started_at: datetime, attempt: AttemptRow) -> list[Moment]:
    if attempt.prefill_s is None or not attempt.decode_s:
        return []
    first = started_at + timedelta(seconds=attempt.prefill_s)
    last = first + timedelta(seconds=attempt.decode_s)
    return [
        Moment(first, "prefill", "first token: the prompt is worked off", "busy"),
        Moment(min(last, attempt.ended_at), "decode", "last token", "busy"),
    ]


def _preempted(started_at: datetime, attempt: AttemptRow) -> list[Moment]:
    """When its choices lost their KV pages to others within this attempt, and when they had some again."""
    found = []
    for each in (attempt.detail or {}).get("preempted", []):
        choice = f"choice {each['choice']}"
        out = started_at + timedelta(seconds=each["out_s"])
        found.append(Moment(out, "preempted", "preempted: others needed its KV pages", "warn", choice))
        if each["back_s"] is not None:
            back = started_at + timedelta(seconds=each["back_s"])
            found.append(Moment(back, "resumed", "resumed from the tokens that it had", "busy", choice))
    return found


def _resumed(at: datetime, attempt: int, begun: Begun | None) -> list[Moment]:
    if attempt == 1 or begun is None:
        return []
    if begun.is_anew:
        return [Moment(at, "resumed", "began anew: its tokens so far couldn't be gone on from", "warn")]
    return [Moment(at, "resumed", f"went on after {begun.tokens:,} tokens of the attempt before", "busy")]


def _now_running(job: JobStory, begun: Mapping[int, Begun]) -> list[Moment]:
    """The attempt that runs has no row yet."""
    if job.status != "running" or job.started_at is None:
        return []
    if job.attempt == 1:
        return [Moment(job.started_at, "claimed", "claimed by a worker, attempt 1", "busy")]
    return _resumed(job.eligible_at, job.attempt, begun.get(job.attempt))


def _delivered(notice: NoticeRow) -> Moment:
    assert notice.ended_at is not None
    if notice.status == "delivered":
        return Moment(notice.ended_at, "delivered", f"{notice.event_type} delivered", "good", _tries(notice.tries))
    return Moment(notice.ended_at, "undelivered", f"{notice.event_type} given up", "bad", _tries(notice.tries))


def _tries(count: int) -> str:
    return "at the first try" if count == 1 else f"after {count} tries"


def _in_order(moments: Iterable[Moment]) -> list[Moment]:
    """By time; what happened at one instant stays as it was told."""
    found: list[Moment] = []
    for each in sorted(moments, key=lambda moment: moment.at):
        since_s = max(0.0, (each.at - found[-1].at).total_seconds()) if found else None
        found.append(Moment(each.at, each.name, each.text, each.kind, each.note, since_s))
    return found
