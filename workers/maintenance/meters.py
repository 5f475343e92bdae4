"""What does maintenance count? Its rounds, and what it alone looks at: drift, dead letters, breakers, whether the servers answer."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import Clock
from app.looks import Looks
from app.observe.ends import count_ends
from app.observe.metrics import AtScrape, Family, counter, family, gauge, preset
from app.quotas import drift
from app.racing import at_most
from app.redis import Redis, RedisError
from app.settings import Settings

LOOK_EVERY_S = 5.0
_COMPARE_S = 1.0  # of each round, whatever it has to compare
_MOST_AGAIN = 20
_LONGEST_REST_S = 1.0  # after a comparison the others have their turn for as long as it took
_STATES = ("closed", "half_open", "open")
_REASONS = ("attempts_exhausted", "engine_crashes", "workers_lost")  # there from the start; others when they are met

# An operator's word goes before what the keeper found.
MODELS = text("""
    SELECT m.name, m.pool, CASE WHEN b.mode <> 'auto' THEN b.mode ELSE coalesce(b.state, 'closed') END AS state
    FROM models m LEFT JOIN breakers b ON b.model = m.name ORDER BY m.name
""")
LETTERS = text(
    "SELECT pool, reason, count(*) AS open FROM dead_letters WHERE resolved_at IS NULL GROUP BY pool, reason"
)


@dataclass(slots=True)
class _Seen:
    """What the last look found."""

    breakers: dict[str, str] = field(default_factory=dict)  # model -> state
    letters: dict[tuple[str, str], int] = field(default_factory=dict)  # pool, reason -> open ones


class Meters:
    """One maintenance process's metrics, in a registry of its own."""

    def __init__(self, db: AsyncEngine | None = None) -> None:
        self.registry = CollectorRegistry()
        if db is not None:
            count_ends(db, self.registry)
        self.repairs = counter("penstock_repairs_total", self.registry)
        self.failures = counter("penstock_round_failures_total", self.registry)
        self._up = gauge("penstock_dependency_up", self.registry)
        self._drift: int | None = None
        self._seen = _Seen()
        AtScrape(self._shown, self.registry)

    def runs(self, rounds: Iterable[str]) -> None:
        """These rounds will be run."""
        names = list(rounds)
        preset(self.repairs, names)
        preset(self.failures, names)

    async def look(self, looks: Looks, redis: Redis, settings: Settings) -> int:
        """Ask both servers. One that doesn't answer is a finding, no failure. Returns 0: nothing was repaired."""
        try:
            await at_most(settings.redis_timeout_s, _ping(redis))
            self._up.labels("redis").set(1)
        except (RedisError, OSError):  # TimeoutError is an OSError
            self._up.labels("redis").set(0)
        try:
            self._seen = await at_most(settings.database_timeout_s, _read(looks))
            self._up.labels("postgres").set(1)
        except (SQLAlchemyError, OSError):
            self._up.labels("postgres").set(0)
        return 0

    async def compare(self, db: AsyncEngine, clock: Clock, every_s: float) -> int:
        """Compare the budgets of as many tenants with their ledger as a round has to, and of more while time is left.

        Returns 0: nothing was repaired.
        """
        async with db.connect() as conn:
            tenants = await drift.waiting(conn)
        least, worked_s = drift.a_round(len(tenants), every_s), 0.0
        due, rest = tenants[:least], tenants[least:]
        # Whether what was found is still so is to be known soon.
        again = [each for each in rest if each.drift][:_MOST_AGAIN]
        for number, each in enumerate([*due, *again, *(each for each in rest if each not in again)]):
            if number >= least + len(again) and worked_s >= _COMPARE_S:
                break
            began = clock.monotonic()
            async with db.begin() as conn:
                is_ours = await drift.begin(conn, each)
            if is_ours:
                async with db.begin() as conn:
                    await drift.compare(conn, each.tenant_id)
            took_s = clock.monotonic() - began
            worked_s += took_s
            await asyncio.sleep(min(took_s, _LONGEST_REST_S))
        async with db.connect() as conn:
            self._drift = await drift.drift(conn)
        return 0

    def _shown(self) -> Iterator[Family]:
        breakers, letters, drifts = (
            family(f"penstock_{name}") for name in ("breaker_state", "dead_letters", "budget_drift_tokens")
        )
        for model, state in self._seen.breakers.items():
            for each in _STATES:
                breakers.add_metric([model, each], float(each == state))
        for (pool, reason), number in sorted(self._seen.letters.items()):
            letters.add_metric([pool, reason], number)
        if self._drift is not None:  # nothing is better than a 0 that nobody has computed
            drifts.add_metric([], self._drift)
        yield from (breakers, letters, drifts)


async def _ping(redis: Redis) -> None:
    await redis.ping()


async def _read(looks: Looks) -> _Seen:
    seen = _Seen()
    for row in await looks.rows(MODELS):
        seen.breakers[row.name] = row.state
        seen.letters |= {(row.pool, reason): 0 for reason in _REASONS}
    seen.letters |= {(row.pool, row.reason): row.open for row in await looks.rows(LETTERS)}
    return seen
