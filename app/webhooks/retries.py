"""What follows from a try: was it delivered, when is it tried again, when is it given up?"""

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal

# Seconds to wait after the first, second, ... failed try. Source: Standard Webhooks, "deliverability and reliability".
DELAYS_S = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
MAX_TRIES = len(DELAYS_S) + 1
JITTER = 0.1  # a delay grows by up to this part, so that what failed together doesn't come back together
MAX_RETRY_AFTER_S = 86_400.0

Outcome = Literal["delivered", "again", "failed"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one try. `http_status` is None where no answer came; `error` says why a try failed, for its owner to read."""

    http_status: int | None
    error: str | None
    duration_ms: int
    retry_after_s: float | None = None
    excerpt: str | None = None  # the beginning of an answer that wasn't 2xx, for operators

    @property
    def is_gone(self) -> bool:
        """Whether the endpoint says that nobody will ever listen there again."""
        return self.http_status == 410


@dataclass(frozen=True, slots=True)
class Verdict:
    """`delay_s` counts from now and is there for `again` only."""

    outcome: Outcome
    delay_s: float = 0.0


def judge(answer: Answer, *, number: int, draw: float) -> Verdict:
    """What follows from try `number` (counted from 1); `draw` is uniform in [0, 1).

    2xx is delivered. 410 means that nobody will ever listen there again. All else, a redirect too, is tried again. A receiver may ask for
    more time by Retry-After, up to a day, never for less than the schedule's.
    """
    if answer.http_status is not None and 200 <= answer.http_status <= 299:
        return Verdict("delivered")
    if answer.is_gone or number >= MAX_TRIES:
        return Verdict("failed")
    wanted_s = min(answer.retry_after_s or 0.0, MAX_RETRY_AFTER_S)
    return Verdict("again", max(DELAYS_S[number - 1], wanted_s) * (1.0 + JITTER * draw))


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; None where it makes no sense. `now`: since the epoch."""
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        at = parsedate_to_datetime(value)
        return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError):
        return None
