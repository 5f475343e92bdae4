"""How fast does this worker serve, and how fast could it? Decayed means over the tokens that its engine brought, by tier."""

import math
from dataclasses import dataclass, field

_MIN_SATURATED_S = 1.0  # less says nothing about what a full engine serves
# Few jobs are slower than their tier's mean pace by more: what a retransmission timer waits beyond the mean round trip (Jacobson,
# "Congestion Avoidance and Control", SIGCOMM 1988).
_DEVIATIONS = 4
_YIELD_DECAY = 0.98  # a job's weight in the mean yield falls to a third after 50 more


@dataclass(slots=True)
class _Decayed:
    """An exponentially weighted sum of events, by tier; `per_s` turns it into a rate that isn't too low at the beginning."""

    time_constant_s: float
    began_at: float
    at: float
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, tier: str, amount: float, now: float) -> None:
        self._decay(now)
        self.sums[tier] = self.sums.get(tier, 0.0) + amount

    def per_s(self, now: float) -> dict[str, float]:
        self._decay(now)
        window = self.time_constant_s * (1 - math.exp(-(now - self.began_at) / self.time_constant_s))
        return {tier: value / window for tier, value in self.sums.items()} if window > 0 else {}

    def _decay(self, now: float) -> None:
        factor = math.exp(-max(0.0, now - self.at) / self.time_constant_s)
        self.sums = {tier: value * factor for tier, value in self.sums.items()}
        self.at = max(self.at, now)


class Throughput:
    """Tokens served: prompts that were computed, and output. Time is passed in, monotonic seconds.

    What it could serve (`capacity`) is measured only while the engine is full: an idle engine's rate says how little is asked
    for. Idle time takes nothing from it.
    """

    def __init__(self, now: float, *, time_constant_s: float = 10.0) -> None:
        self._time_constant_s = time_constant_s
        self._served = _Decayed(time_constant_s, now, now)
        self._stepped_at = now
        self._was_saturated = False
        self._in_step = 0.0
        self._saturated_tokens = 0.0
        self._saturated_s = 0.0
        self._real = 0.0
        self._reserved = 0.0
        self._residence_s: dict[str, float] = {}
        self._lengths: dict[str, float] = {}
        self._deviation_s: dict[str, float] = {}

    def take(self, tier: str, tokens: int, now: float) -> None:
        """Tokens that the engine has brought just now."""
        self._served.add(tier, tokens, now)
        self._in_step += tokens

    def step(self, now: float, *, is_saturated: bool) -> None:
        """A step has ended, which brought what was taken since the last one. `is_saturated`: more work was there than fits."""
        if is_saturated and self._was_saturated:
            passed = max(0.0, now - self._stepped_at)
            factor = math.exp(-passed / self._time_constant_s)
            self._saturated_tokens = self._saturated_tokens * factor + self._in_step
            self._saturated_s = self._saturated_s * factor + passed
        self._in_step = 0.0
        self._stepped_at, self._was_saturated = now, is_saturated

    def end(self, tier: str, *, reserved: int, real: int, residence_s: float, length: int) -> None:
        """A job has succeeded here that was charged with `reserved` tokens, cost `real` ones and wrote `length` a choice."""
        self._real = self._real * _YIELD_DECAY + real
        self._reserved = self._reserved * _YIELD_DECAY + reserved
        self._residence_s[tier] = self._residence_s.get(tier, 0.0) * _YIELD_DECAY + residence_s
        self._lengths[tier] = self._lengths.get(tier, 0.0) * _YIELD_DECAY + max(1, length)
        deviation_s = abs(residence_s - self.paces[tier] * max(1, length))
        self._deviation_s[tier] = self._deviation_s.get(tier, 0.0) * _YIELD_DECAY + deviation_s

    @property
    def capacity(self) -> float | None:
        """Tokens a second of a full engine; None until it has been full for a second."""
        if self._saturated_s < _MIN_SATURATED_S or self._saturated_tokens <= 0:
            return None
        return self._saturated_tokens / self._saturated_s

    @property
    def token_yield(self) -> float:
        """What jobs really cost, as a share of what they were charged at their claim: (0, 1]."""
        return min(1.0, max(0.01, self._real / self._reserved)) if self._reserved else 1.0

    @property
    def seconds_per_token(self) -> float | None:
        """How long a job is here for each token of its longest choice, its prompt's time included; None before the first end."""
        lengths = sum(self._lengths.values())
        return sum(self._residence_s.values()) / lengths if lengths else None

    @property
    def paces(self) -> dict[str, float]:
        """The same by tier: where higher tiers preempt, lower ones take longer."""
        return {tier: self._residence_s[tier] / length for tier, length in self._lengths.items()}

    @property
    def slow_paces(self) -> dict[str, float]:
        """By tier, what few jobs are slower than: the mean and four times the mean deviation from it."""
        return {
            tier: pace + _DEVIATIONS * self._deviation_s[tier] / self._lengths[tier]
            for tier, pace in self.paces.items()
        }

    def stats(self, now: float) -> dict[str, object]:
        """For the lease. `drain_tokens_per_s` is in what the queue counts in: prompt + n x max_tokens."""
        by_tier = self._served.per_s(now)
        capacity, seconds_per_token = self.capacity, self.seconds_per_token
        return {
            "served_tokens_per_s": round(sum(by_tier.values()), 3),
            "served_by_tier": {tier: round(rate, 3) for tier, rate in sorted(by_tier.items())},
            "capacity_tokens_per_s": None if capacity is None else round(capacity, 3),
            "drain_tokens_per_s": None if capacity is None else round(capacity / self.token_yield, 3),
            "token_yield": round(self.token_yield, 4),
            "paces": {tier: round(pace, 6) for tier, pace in sorted(self.paces.items())},
            "slow_paces": {tier: round(pace, 6) for tier, pace in sorted(self.slow_paces.items())},
            "seconds_per_token": None if seconds_per_token is None else round(seconds_per_token, 6),
        }
