"""How long did a job wait, and where did its time go? Measured by the worker that ended it; the rest follows from the row's times."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Timing:
    """One attempt, in seconds: `queued_s` from when it could run until a worker started it, `prefill_s` until its first token, `decode_s` until
    its last. An attempt without a token has all its time under `prefill_s`.
    """

    queued_s: float
    prefill_s: float
    decode_s: float

    def columns(self) -> dict[str, float]:
        """As the columns of `attempts`."""
        return {"queued_s": self.queued_s, "prefill_s": self.prefill_s, "decode_s": self.decode_s}


NOT_MEASURED: dict[str, float | None] = {"queued_s": None, "prefill_s": None, "decode_s": None}


def columns_of(timing: Timing | None) -> dict[str, Any]:
    """As the columns of `attempts`, NULL where nothing was measured: its worker was lost, or it never ran."""
    return dict(NOT_MEASURED) if timing is None else timing.columns()


@dataclass(frozen=True, slots=True)
class Breakdown:
    """All of an ended job's time, in seconds; the parts add up to `total_s`.

    `held_s`: before it could run the last time: waiting for a budget or a retry, and in earlier attempts. `persisted_s`: from its last token
    until its end was written.
    """

    held_s: float
    queued_s: float
    prefill_s: float
    decode_s: float
    persisted_s: float
    total_s: float


def breakdown(created_at: datetime, eligible_at: datetime, finished_at: datetime, timing: Timing | None) -> Breakdown:
    """Of a job with these times, all by Postgres' clock, whose last attempt took `timing`; None: it ended without running."""
    total_s = _seconds(created_at, finished_at)
    held_s = min(total_s, _seconds(created_at, eligible_at))
    left_s = total_s - held_s
    if timing is None:
        return Breakdown(held_s, left_s, 0.0, 0.0, 0.0, total_s)
    parts = []
    for wanted in (
        timing.queued_s,
        timing.prefill_s,
        timing.decode_s,
    ):  # two clocks: what one says may not fit into the other's
        parts.append(min(left_s, max(0.0, wanted)))
        left_s -= parts[-1]
    queued_s, prefill_s, decode_s = parts
    return Breakdown(held_s, queued_s, prefill_s, decode_s, left_s, total_s)


def _seconds(start: datetime, end: datetime) -> float:
    return max(0.0, (end - start).total_seconds())
