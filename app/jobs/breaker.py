"""When is a model given a rest? A circuit breaker's rules as one function of what is known: no database, no clock."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from app.settings import Settings

State = Literal["closed", "open", "half_open"]
Mode = Literal["auto", "open", "closed"]


@dataclass(frozen=True, slots=True)
class Rules:
    """From which error rate on a model is given a rest, for how long, and what it has to show afterwards."""

    window_s: float
    min_attempts: int
    error_rate: float
    open_s: float
    probes: int

    @classmethod
    def of(cls, settings: Settings) -> "Rules":
        """As they are configured."""
        return cls(
            settings.breaker_window_s, settings.breaker_min_attempts, settings.breaker_error_rate,
            settings.breaker_open_s, settings.breaker_probes,
        )  # fmt: skip

    def enough(self, bad: int) -> int:
        """So many good attempts decide as more would: nobody needs to count further."""
        return max(math.ceil(2 * bad / self.error_rate), self.min_attempts, self.probes) + 1


@dataclass(frozen=True, slots=True)
class Breaker:
    """A model's row. `since` is when the evidence begins that counts now; `version` grows with each change."""

    model: str
    state: State
    version: int
    since: datetime
    retry_at: datetime | None  # open: when probes are let in; half-open: when more of them are
    probes_left: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What became of the model's attempts since the breaker's `since` and within the window."""

    bad: int  # events: an engine's death counts once, however many jobs it had
    good: int  # attempts that succeeded, counted up to `Rules.enough`
    has_worker: bool  # whether any worker of the model has lived within the window

    @property
    def rate(self) -> float:
        """Share of the bad ones, 0 where there is nothing."""
        return self.bad / (self.bad + self.good) if self.bad else 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """What the row becomes. `since` None leaves it as it is."""

    state: State
    since: datetime | None
    retry_at: datetime | None
    probes_left: int


def judge(breaker: Breaker | None, evidence: Evidence, rules: Rules, now: datetime) -> Change | None:
    """What has to change now, if anything. None as the breaker is one that never opened: closed.

    It opens at `error_rate` of at least `min_attempts`. After `open_s` it closes at once if the jobs that waited have
    shown that the model works, opens anew if they have shown the contrary, and lets probes in if they have shown
    nothing. It closes only under half of the rate at which it opens, so that it doesn't flutter.
    """
    again_at = now + timedelta(seconds=rules.open_s)
    if breaker is None or breaker.state == "closed":
        is_dying = evidence.bad + evidence.good >= rules.min_attempts and _is_bad(evidence, rules)
        return Change("open", now, again_at, 0) if is_dying else None
    is_due = breaker.retry_at is None or breaker.retry_at <= now
    if breaker.state == "open" and not is_due:
        return None
    if not evidence.has_worker and breaker.state == "half_open":
        return Change("closed", now, None, 0)  # nobody left to judge: its jobs wait as any model's without workers
    if _is_bad(evidence, rules):
        return Change("open", now, again_at, 0)
    if evidence.good >= rules.probes and evidence.rate < rules.error_rate / 2:
        return Change("closed", now, None, 0)
    if breaker.state == "open":
        return Change("half_open", None, again_at, rules.probes)
    if is_due and breaker.probes_left == 0:
        # The last ones brought no verdict: they still wait or run, or their owners took them back.
        return Change("half_open", None, again_at, rules.probes)
    return None


def _is_bad(evidence: Evidence, rules: Rules) -> bool:
    return evidence.bad > 0 and evidence.rate >= rules.error_rate
