"""What was the time of the latest jobs made of? Of each tier: what was foretold, wait, run, and how long and how often it stood preempted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import job_name
from app.jobs.states import TIERS

_ENDED = text("""
    SELECT j.id, j.tier, extract(epoch FROM j.finished_at - j.created_at)::float8 AS took_s,
           extract(epoch FROM j.started_at - j.created_at)::float8 AS waited_s,
           extract(epoch FROM j.finished_at - j.started_at)::float8 AS held_s, a.prefill_s, a.detail
    FROM jobs j JOIN attempts a ON a.job_id = j.id AND a.attempt = j.attempt
    WHERE j.created_at >= :began AND j.started_at IS NOT NULL ORDER BY took_s DESC
""")


@dataclass(frozen=True, slots=True)
class Ended:
    """An accepted job, in seconds. `waited_s + ran_s + first_s + preempted_s` is `took_s`, as far as two clocks agree."""

    tier: str
    took_s: float  # from its submission to its end
    foretold_s: float | None  # until its start, of which 19 of 20 such jobs start before: as its 202 said
    waited_s: float  # until a worker had it
    first_s: float  # from then until its first token
    ran_s: float
    preempted_s: float  # in which it had lost its place in the batch
    num_preemptions: int


async def ended_since(db: AsyncEngine, began: Any, foretold: Mapping[str, float]) -> list[Ended]:
    """All jobs that were submitted since `began` and have run, the latest first. `foretold`: job's id as the API shows it -> seconds."""
    async with db.connect() as conn:
        rows = (await conn.execute(_ENDED, {"began": began})).all()
    return [of_row(row, foretold) for row in rows]


def of_row(row: Any, foretold: Mapping[str, float]) -> Ended:
    """From a row of `_ENDED`."""
    first_s = row.prefill_s or 0.0
    times = (row.detail or {}).get("preempted", [])
    # One without an end lasted until the job's; what lies before the first token counts there.
    preempted_s = math.fsum(
        max(0.0, (row.held_s if each["back_s"] is None else each["back_s"]) - max(each["out_s"], first_s))
        for each in times
    )
    ran_s = row.held_s - first_s - preempted_s
    return Ended(
        row.tier, row.took_s, foretold.get(job_name(row.id)), row.waited_s, first_s, ran_s, preempted_s, len(times)
    )


def latest(ended: Sequence[Ended]) -> dict[str, dict[str, Any]]:
    """Of each tier that has one."""
    first = {tier: next((each for each in ended if each.tier == tier), None) for tier in TIERS}
    return {tier: asdict(each) for tier, each in first.items() if each is not None}


def table_of(ended: Sequence[Ended]) -> Table:
    """The same, to be read."""
    table = Table(title="the latest job of each tier, seconds", title_justify="left")
    names = ["tier", "took", "foretold start", "waited", "to first token", "ran", "stood preempted", "times preempted"]
    for name in names:
        table.add_column(name, justify="right")
    for figures in latest(ended).values():
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in figures.values()))
    return table
