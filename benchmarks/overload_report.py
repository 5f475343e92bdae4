"""What did the overload do to the clients? Figures and bars, from what they saw and from the jobs' rows."""

import math
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from rich.table import Table
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.states import TIERS
from benchmarks.overload_latest import ended_since, latest, table_of
from benchmarks.result import Bar, Result

CEILINGS_S = {"interactive": 10.0, "standard": 30.0, "batch": 100.0}


@dataclass(frozen=True, slots=True)
class Play:
    """What was done: so many times the capacity (jobs a second), from `began` (Postgres' clock) until `ends_at` (the clients')."""

    factor: float
    capacity: float
    began: Any
    ends_at: float


@dataclass(slots=True)
class Refused:
    """A client's first refusal, and when it was told to come back."""

    at: float
    told_s: float
    tier: str


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    num_clients: int = 0
    num_posts: int = 0
    refusals_ms: list[float] = field(default_factory=list)
    accepted_ms: list[float] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)  # answers that there should be none of
    first: dict[int, Refused] = field(default_factory=dict)  # client -> its first refusal
    in_at: dict[int, float] = field(default_factory=dict)  # client -> when it was accepted
    num_without_retry_after: int = 0
    foretold: dict[str, float] = field(default_factory=dict)  # job -> seconds until its start, of the forecast's p95

    def note_forecast(self, job: dict[str, Any]) -> None:
        """A job was accepted: what its 202 said of its start."""
        told = (job["forecast"] or {}).get("start_p95")
        if told is not None:
            begin, start = (datetime.fromisoformat(each) for each in (job["created_at"], told))
            self.foretold[job["id"]] = (start - begin).total_seconds()


async def report(db: AsyncEngine, result: Result, play: Play, tally: Tally, memory: dict[str, list[float]]) -> None:
    """Figures, tables and bars of it. `memory`: MiB of each process, second by second."""
    async with db.connect() as conn:
        rows = (
            await conn.execute(
                text("""
                    SELECT tier, status, extract(epoch FROM finished_at - created_at)::float8 AS took_s,
                           extract(epoch FROM started_at - created_at)::float8 AS waited_s
                    FROM jobs WHERE created_at >= :began
                """),
                {"began": play.began},
            )
        ).all()
    # Of those who could have come back in time: first refusal + half more than they were told lies within the run.
    judged = [(number, each) for number, each in tally.first.items() if each.at + 1.5 * each.told_s + 1 <= play.ends_at]
    ratios = [(tally.in_at[number] - each.at) / each.told_s for number, each in judged if number in tally.in_at]
    by_tier = {
        tier: [
            ((tally.in_at[number] - each.at) / each.told_s if number in tally.in_at else math.inf, each.told_s)
            for number, each in judged
            if each.tier == tier
        ]
        for tier in TIERS
    }
    good = sum(0.5 <= ratio <= 1.5 for ratio in ratios)
    late = [row for row in rows if row.took_s > CEILINGS_S[row.tier]]
    growth = {name: _growth(values) for name, values in memory.items()}
    result.figures |= {
        "capacity, jobs/s": play.capacity,
        "clients": tally.num_clients,
        "requests": tally.num_posts,
        "accepted": len(tally.in_at),
        "refusals": len(tally.refusals_ms),
        "refusals by reason": tally.reasons,
        "refusal p50 ms": _quantile(tally.refusals_ms, 0.5),
        "refusal p99 ms": _quantile(tally.refusals_ms, 0.99),
        "acceptance p50 ms": _quantile(tally.accepted_ms, 0.5),
        "acceptance p99 ms": _quantile(tally.accepted_ms, 0.99),
        "clients whose Retry-After is judged": len(judged),
        "of them never let in": len(judged) - len(ratios),
        "within 50 % of what they were told, by tier": {
            tier: f"{sum(0.5 <= ratio <= 1.5 for ratio, _ in found)} of {len(found)}" for tier, found in by_tier.items()
        },
        "told s, p50 by tier": {tier: _quantile([told for _, told in found], 0.5) for tier, found in by_tier.items()},
        "time to get in / told, p5": _quantile(ratios, 0.05),
        "time to get in / told, p50": _quantile(ratios, 0.5),
        "time to get in / told, p95": _quantile(ratios, 0.95),
        "memory MiB, largest": {name: round(max(values), 1) for name, values in memory.items()},
        "memory, last third / first third": growth,
        "other answers": tally.others[:10],
        "jobs by status": {
            status: sum(row.status == status for row in rows) for status in {row.status for row in rows}
        },
    }
    table = Table(title=f"accepted jobs at {play.factor:g} x capacity", title_justify="left")
    for column in (
        "tier",
        "ceiling s",
        "jobs",
        "start p50 s",
        "start p95 s",
        "end p50 s",
        "end p95 s",
        "longest s",
        "late",
    ):
        table.add_column(column, justify="right")
    for tier in TIERS:
        mine = [row for row in rows if row.tier == tier]
        figures = {
            "jobs": len(mine),
            "start p50 s": _quantile([row.waited_s for row in mine], 0.5),
            "start p95 s": _quantile([row.waited_s for row in mine], 0.95),
            "end p50 s": _quantile([row.took_s for row in mine], 0.5),
            "end p95 s": _quantile([row.took_s for row in mine], 0.95),
            "longest s": max((row.took_s for row in mine), default=0.0),
            "late": sum(row.took_s > CEILINGS_S[tier] for row in mine),
        }
        result.figures[tier] = figures
        table.add_row(
            tier,
            f"{CEILINGS_S[tier]:g}",
            *(f"{v:.2f}" if isinstance(v, float) else str(v) for v in figures.values()),
        )
    ended = await ended_since(db, play.began, tally.foretold)
    result.figures["the latest of each tier"] = latest(ended)
    result.figures["jobs past their ceiling"] = [asdict(each) for each in ended if each.took_s > CEILINGS_S[each.tier]]
    result.tables += [result.plain_table(), table, table_of(ended)]
    share = good / len(judged) if judged else 0.0
    result.bars += [
        Bar("accepted jobs that ended past their tier's ceiling", len(late), 0, ""),
        Bar("accepted jobs that didn't succeed", sum(row.status != "succeeded" for row in rows), 0, ""),
        Bar("refusals p99", _quantile(tally.refusals_ms, 0.99), 20, "ms"),
        Bar("refusals without Retry-After", tally.num_without_retry_after, 0, ""),
        Bar("clients let in within 50 % of what they were told", share, 0.95, "", at_most=False),
        Bar("memory of any process, last third / first third", max(growth.values(), default=0.0), 1.25, ""),
        Bar("other answers", len(tally.others), 0, ""),
    ]
    if not judged:
        result.failed.append("no client's Retry-After lay within the run: make it longer")


def _growth(values: list[float]) -> float:
    third = max(1, len(values) // 3)
    return round(max(values[-third:]) / max(values[:third]), 3) if values else 0.0


def _quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0
