"""Who may have killed the engine? Those who were new in its last step; if none was, all who were in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.jobs.states import Lane
from app.queue.places import MAX_SOLO_SUSPECTS
from workers.engine.flight import FlightRecord
from workers.generation.hand import RunningJob

_MOST_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A dead engine's jobs, sorted. `lane` is where the suspects run next; bystanders stay where they were."""

    suspects: list[RunningJob]
    bystanders: list[RunningJob]
    lane: Lane


def sort_out(jobs: Sequence[RunningJob], flight: FlightRecord | None) -> Suspicion:
    """Sort what the engine had been given by the last thing that it recorded.

    A job that had brought tokens has passed its prompt; one that hadn't is likelier to be the cause. Of a step that ran
    others (a self-test, jobs that have ended) nobody here is a suspect; without any record, all are that it was given.
    """
    if flight is None or not flight.members:
        suspects = [job for job in jobs if job.is_handed_over]
    else:
        admitted, members = set(flight.admitted), set(flight.members)
        suspects = [job for job in jobs if job.request_id in admitted]
        suspects = suspects or [job for job in jobs if job.request_id in members]
    chosen = {job.request_id for job in suspects}
    bystanders = [job for job in jobs if job.request_id not in chosen]
    return Suspicion(suspects, bystanders, "solo" if len(suspects) <= MAX_SOLO_SUSPECTS else "bisect")


def shown(flight: FlightRecord | None) -> dict[str, Any] | None:
    """The record as evidence: attempts (job.attempt), at most 100 of each list."""
    if flight is None:
        return None
    return {
        "step": flight.step,
        "members": flight.members[:_MOST_SHOWN],
        "num_members": len(flight.members),
        "admitted": flight.admitted[:_MOST_SHOWN],
        "num_admitted": len(flight.admitted),
    }
