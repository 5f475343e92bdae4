"""`penstock retention ...`: what is deleted, what would be, and a run now. Directly on the database, as an operator."""

import asyncio
import json
from dataclasses import asdict
from typing import Any

from app.cli.actor import actor
from app.cli.errors import CommandFailed
from app.cli.operating import in_transaction
from app.cli.tables import print_table, shown_time
from app.clock import SystemClock
from app.db import create_engine
from app.quotas.acts import record_act
from app.redis import create_redis
from app.retention.dispatch import enqueue_run, open_queue
from app.retention.overview import Overview, overview, plan
from app.retention.run import run_retention
from app.retention.runs import Run
from app.settings import Settings
from app.webhooks.dispatch import connect_rq

_COLUMNS = ("began", "by", "outcome", "rows", "at step", "tables")


def show(settings: Settings, *, limit: int, as_json: bool) -> None:
    """Print what is kept for how long, the newest runs, and what all of them have deleted."""
    found: Overview = in_transaction(settings, lambda conn: overview(conn, limit=limit))
    if as_json:
        print(json.dumps(asdict(found), default=str))
        return
    print(f"jobs: {_days(settings.retention_days)}")
    print(f"bills of deleted jobs, row by row: {_days(settings.usage_retention_days)}")
    print(f"outputs: {_seconds(settings.output_retention_s)}")
    for each in found.tenants:
        texts = (
            "" if each.content_retention_s is None else f", prompts and outputs {_seconds(each.content_retention_s)}"
        )
        print(f"tenant {each.tenant}: jobs {_days(each.retention_days, 'as above')}{texts}")
    print(f"deleted so far: {_counts(found.totals)}")
    print_table(_COLUMNS, [_row(each) for each in found.runs], nothing="no run yet: a maintenance process makes them")


def show_plan(settings: Settings, *, as_json: bool) -> None:
    """Print what a run would delete if it began now; nothing is changed."""
    found: dict[str, int] = in_transaction(settings, lambda conn: plan(conn, settings))
    if as_json:
        print(json.dumps(found))
        return
    print_table(("table", "rows"), list(found.items()), nothing="nothing would be deleted")


def run(settings: Settings, *, here: bool) -> None:
    """Ask maintenance for a run, or make one in this process and print what it did; written into the log of acts.

    Raises:
        CommandFailed: one is under way already, or the run failed.
    """

    async def act(conn: Any) -> None:
        await record_act(conn, actor(), "retention.run", "retention", {"here": here})

    in_transaction(settings, act)
    if here:
        _report(asyncio.run(_run_here(settings)))
        return
    with connect_rq(settings) as redis:
        asked = enqueue_run(open_queue(redis), actor())
    print(
        "asked: a maintenance process makes it; `penstock retention status` shows it"
        if asked
        else "enough are asked for already"
    )


async def _run_here(settings: Settings) -> Run | None:
    db, redis = create_engine(settings, application_name="penstock-cli"), create_redis(settings)
    try:
        return await run_retention(settings, SystemClock(), db, redis, asked_by=actor())
    finally:
        await redis.aclose()
        await db.dispose()


def _report(made: Run | None) -> None:
    if made is None:
        raise CommandFailed("a run is under way: `penstock retention status` shows it")
    if made.outcome == "failed":
        raise CommandFailed(f"the run failed at {made.step}: {made.error}; it had deleted {_counts(made.rows)}")
    rest = "" if made.outcome == "done" else "; there is more, and the next run goes on"
    print(f"deleted {_counts(made.rows)}{rest}")


def _row(each: Run) -> tuple[Any, ...]:
    outcome = each.outcome or "runs"
    error = f": {each.error}" if each.error else ""
    rows = sum(each.rows.values())
    return shown_time(each.started_at), each.asked_by, outcome + error, f"{rows:,}", each.step, _counts(each.rows)


def _counts(rows: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {table}" for table, number in rows.items()) or "nothing"


def _days(days: int | None, unset: str = "for ever") -> str:
    return unset if days is None else f"{days:,} days"


def _seconds(seconds: float | None) -> str:
    return "as long as the job" if seconds is None else f"{seconds:,.0f} s"
