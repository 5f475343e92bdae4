"""Would we be lying if we said yes? How long a job would wait, by what is queued and how fast it drains. Pure arithmetic."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Reason = Literal["tier_wait", "tier_tokens", "pool_tokens", "share", "deadline", "booked"]
REASONS: tuple[Reason, ...] = ("tier_wait", "tier_tokens", "pool_tokens", "share", "deadline", "booked")

_LEAST_RATE = 1e-6  # tokens a second; less is no measurement
# How far a wait may pass its prediction: rates are means of the last seconds, and other tenants' later jobs may come first.
SPREAD = 1.5
_HELD = 1.125  # jobs that a worker holds where it is full, in parts of those that it runs: an eighth more waits in its engine
# Of the pool's ceiling, how much each tier may use: the lowest is shed first.
POOL_PARTS = {"interactive": 1.0, "standard": 0.9, "batch": 0.8}


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in one tier of a pool. `tokens` as the queue counts them: prompt + n x max_tokens."""

    jobs: int = 0
    tokens: int = 0
    tenants: int = 0  # those who have something waiting
    weight: float = 0.0  # theirs together; 0: 1 each

    @property
    def total_weight(self) -> float:
        """Of the tenants who have something waiting."""
        return self.weight or float(self.tenants)

    @property
    def mean_tokens(self) -> float:
        """Of a waiting job; 0 where none waits."""
        return self.tokens / self.jobs if self.jobs else 0.0


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """A pool as it was a moment ago."""

    tiers: Mapping[str, Backlog]
    weights: Mapping[str, float]  # what the tiers that have work share by, the highest first
    num_workers: int = 0  # that take jobs
    drain_per_s: float | None = (
        None  # tokens of backlog that all of them take in a second at full load; None: not measured yet
    )
    seconds_per_token: float | None = None  # how long a running job takes for each token of its longest choice
    paces: Mapping[str, float] = field(
        default_factory=dict
    )  # the same by tier, where it was measured: lower ones are preempted
    slow_paces: Mapping[str, float] = field(default_factory=dict)  # what few of the tier's jobs are slower than
    busy: frozenset[str] = frozenset()  # tiers that had work lately, though they may have none just now
    owed: Mapping[str, float] = field(
        default_factory=dict
    )  # by tier, tokens of other tiers that are claimed before its next turn: it was served ahead of them

    @property
    def tokens(self) -> int:
        """Of all tiers."""
        return sum(each.tokens for each in self.tiers.values())

    def tier(self, name: str) -> Backlog:
        """What waits in the tier."""
        return self.tiers.get(name, Backlog())

    def pace_of(self, tier: str) -> float | None:
        """Seconds for each token of a running job of the tier; None: not measured yet."""
        return self.paces.get(tier, self.seconds_per_token)

    def slow_pace_of(self, tier: str) -> float | None:
        """Seconds for each token that few jobs of the tier take longer than; None: not measured yet."""
        pace = self.pace_of(tier)
        return (
            None
            if pace is None
            else SPREAD * max(pace, self.crowded_pace_of(tier), self.slow_paces.get(tier, 0.0) / SPREAD)
        )

    def crowded_pace_of(self, tier: str) -> float:
        """Seconds for each token of a job of the tier where higher tiers have as much work as they like; 0 for the highest that has any.

        By Little's law, against the day when that is the case and no job of it has ended yet. A worker holds as many jobs of the tier as the
        higher ones leave room for, and a few more; they run in its share of the places, and each would take as long as one of the highest
        tier if it were never preempted.
        """
        pace = next((self.paces[name] for name in self.weights if name in self.paces), self.seconds_per_token)
        busy = self._busy_with(tier)
        above = sum(self.weights[name] for name in busy[: busy.index(tier)])
        if pace is None or above == 0:
            return 0.0
        total = sum(self.weights[name] for name in busy)
        return pace * (_HELD - above / total) * total / self.weights[tier]

    def _busy_with(self, tier: str) -> list[str]:
        """The tiers that have work, or had some lately, and this one, the highest first."""
        return [name for name in self.weights if name == tier or name in self.busy or self.tier(name).tokens > 0]

    def rate_of(self, tier: str) -> float | None:
        """Tokens a second that the tier gets while all tiers that have work, or had some lately, keep having some; None: unknown.

        That is its weight's share among them: the claim serves the tier with the least weighted service (16:4:1).
        """
        if self.num_workers == 0 or self.drain_per_s is None or self.drain_per_s < _LEAST_RATE:
            return None
        return self.drain_per_s * self.weights[tier] / sum(self.weights[name] for name in self._busy_with(tier))


@dataclass(frozen=True, slots=True)
class Ask:
    """A job that wants in. `own_tokens` is what its tenant has waiting in the same tier already."""

    tier: str
    tokens: int
    own_tokens: int = 0
    weight: float = 1.0  # of its tenant
    deadline_s: float | None = None
    service_s: float = 0.0  # how long it will probably run
    longest_s: float = 0.0  # and how long in 19 of 20 cases
    owed_tokens: float = (
        0.0  # of the other tenants of its tier, that are claimed before its own turn: it was served ahead of them
    )


@dataclass(frozen=True, slots=True)
class Ceilings:
    """How much may wait before a tier takes nothing more."""

    wait_s: float  # from the submission to the end; of a job that runs for long, half of it to the start
    tokens: int
    pool_tokens: int  # of all tiers together


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not, and after how many seconds the reason is gone if what waits drains as it does now."""

    reason: Reason
    over_s: float
    wait_s: float | None  # as it was predicted; None where it isn't known
    limit: float
    is_own: bool = False  # the tenant's own queued work is the reason
    unit: Literal["s", "tokens"] = "s"  # of the limit


def tokens_ahead(load: PoolLoad, ask: Ask) -> float:
    """Tokens of its tier that are claimed before the job if nothing more comes.

    Tenants are served by their weights, so behind its own work the job waits for as much of each other tenant's as its weight has in
    proportion, and never for more than waits in the tier.
    """
    backlog = load.tier(ask.tier)
    return min(float(backlog.tokens), ask.own_tokens * _times_own(backlog, ask))


def predicted_wait_s(load: PoolLoad, ask: Ask) -> float | None:
    """Seconds until the job would start, if the tiers and tenants that have work keep having some; None where no rate is known.

    Of others' work that is yet to come it counts no more than `SPREAD` allows for: among many small tenants one that has much waiting
    would be told absurdities. Likewise, of what tenants may be served until they have caught up with this one, no more than waits in the
    tier; and of what other tiers may, no more than waits there: while Redis is away, the counters are of before, and the backlog isn't.
    """
    rate, backlog = load.rate_of(ask.tier), load.tier(ask.tier)
    if rate is None or load.drain_per_s is None:
        return None
    shared = min(backlog.tokens * SPREAD, ask.own_tokens * _times_own(backlog, ask))
    to_tiers = min(load.tokens - backlog.tokens, load.owed.get(ask.tier, 0.0))
    return (shared + min(backlog.tokens, ask.owed_tokens)) / rate + to_tiers / load.drain_per_s


def tier_wait_s(load: PoolLoad, tier: str) -> float | None:
    """Seconds until all that waits in the tier has started, of all tenants together; None where no rate is known."""
    backlog = load.tier(tier)
    return predicted_wait_s(load, Ask(tier, 0, own_tokens=backlog.tokens, weight=max(1.0, backlog.total_weight)))


def _times_own(backlog: Backlog, ask: Ask) -> float:
    """How many times as much as its own work all tenants' work is that is served in the same time; at least 1."""
    return max(1.0, backlog.total_weight / ask.weight)


def soonest_wait_s(load: PoolLoad, ask: Ask) -> float | None:
    """Seconds until the job would start if nothing more came: tiers that run dry leave their share to the others.

    Fluid model of weighted sharing (Parekh and Gallager, "A Generalized Processor Sharing Approach to Flow Control in
    Integrated Services Networks", 1993).
    """
    rate = load.rate_of(ask.tier)
    if rate is None or load.drain_per_s is None:
        return None
    ahead = tokens_ahead(load, ask)
    others = {name: float(each.tokens) for name, each in load.tiers.items() if name != ask.tier and each.tokens > 0}
    passed_s = 0.0
    while ahead > 0:
        busy = load.weights[ask.tier] + sum(load.weights[name] for name in others)
        per_weight = load.drain_per_s / busy
        until_mine = ahead / (per_weight * load.weights[ask.tier])
        first = min(others, key=lambda name: others[name] / load.weights[name], default=None)
        if first is None or others[first] / (per_weight * load.weights[first]) >= until_mine:
            return passed_s + until_mine
        step_s = others[first] / (per_weight * load.weights[first])
        passed_s += step_s
        ahead -= step_s * per_weight * load.weights[ask.tier]
        others = {
            name: tokens - step_s * per_weight * load.weights[name] for name, tokens in others.items() if name != first
        }
    return passed_s


def drain_of_tenant(load: PoolLoad, ask: Ask) -> float | None:
    """Tokens a second at which this tenant's own waiting work gets less while the others keep having some; None: unknown."""
    rate = load.rate_of(ask.tier)
    return None if rate is None else rate / _times_own(load.tier(ask.tier), ask)


def judge(load: PoolLoad, ask: Ask, ceilings: Ceilings) -> Refusal | None:
    """None where the job may come in.

    Without a rate (no worker, or none that was ever full) only tokens are limited: nobody can say how long it takes. A job that finds its tier
    empty isn't refused for its own size.
    """
    backlog = load.tier(ask.tier)
    rate, wait_s = load.rate_of(ask.tier), predicted_wait_s(load, ask)
    if backlog.tokens > 0:
        excess = load.tokens + ask.tokens - ceilings.pool_tokens
        if excess > 0:
            over_s = excess / load.drain_per_s if rate and load.drain_per_s else math.inf
            return Refusal("pool_tokens", over_s, wait_s, ceilings.pool_tokens, unit="tokens")
        excess = backlog.tokens + ask.tokens - ceilings.tokens
        if excess > 0:
            is_own = asks_too_much(load, ask)
            reason: Reason = "share" if is_own else "tier_tokens"
            over_s = excess / rate if rate else math.inf
            return Refusal(reason, over_s, wait_s, ceilings.tokens, is_own, unit="tokens")
    if wait_s is None:
        return None
    most_s = longest_wait_s(ask, ceilings)
    if wait_s > most_s:
        is_own = asks_too_much(load, ask)
        over_s = wait_s - most_s
        return Refusal("share" if is_own else "tier_wait", over_s, wait_s, ceilings.wait_s, is_own)
    if ask.deadline_s is not None:
        finish_s = (soonest_wait_s(load, ask) or 0.0) + ask.service_s
        if finish_s > ask.deadline_s:
            over_s = min(finish_s - ask.deadline_s, wait_s) if ask.service_s <= ask.deadline_s else math.inf
            return Refusal("deadline", over_s, finish_s, ask.deadline_s)
    return None


def longest_wait_s(ask: Ask, ceilings: Ceilings) -> float:
    """The longest predicted wait with which the job is let in: it leaves time to run, and a third for what no prediction knows."""
    return (ceilings.wait_s - min(ask.longest_s, ceilings.wait_s / 2)) / SPREAD


def asks_too_much(load: PoolLoad, ask: Ask) -> bool:
    """Whether the tenant has more than its weight's part of the tier's backlog waiting, beside others."""
    backlog = load.tier(ask.tier)
    return backlog.tenants > 1 and ask.own_tokens * _times_own(backlog, ask) > backlog.tokens
