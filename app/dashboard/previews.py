"""What would another limit refuse? Counted over what is reserved now, over the last windows, and over the last submissions; nothing is changed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.quotas.budget_acts import BudgetView
from app.quotas.tenants import Tenant
from app.quotas.wanted import TIERS

MOST_JOBS = 20_000  # that are looked at: the page has to come
MOST_WINDOWS = 30
DAY_H = 24

# Jobs that hold a reservation in this window, oldest first; which of them wouldn't fit is a running sum.
_RESERVED = text("""
    WITH open AS (
        (SELECT id, reservation FROM jobs WHERE tenant_id = :tenant AND status = 'queued' AND reservation > 0 LIMIT :most)
        UNION ALL
        (SELECT id, reservation FROM jobs WHERE tenant_id = :tenant AND status = 'running' LIMIT :most)),
    held AS (
        SELECT l.amount, sum(l.amount) OVER (ORDER BY open.id) AS upto
        FROM open JOIN ledger l ON l.job_id = open.id AND l.reservation = open.reservation
            AND l.budget_id = :budget AND l.kind = 'reserve' AND l.window_start = :start)
    SELECT count(*) AS jobs, coalesce(sum(amount), 0)::bigint AS amount,
           count(*) FILTER (WHERE :used + upto > :limit) AS jobs_over,
           coalesce(sum(amount) FILTER (WHERE :used + upto > :limit), 0)::bigint AS amount_over
    FROM held
""")
_WINDOWS = text("""
    SELECT count(*) AS windows, count(*) FILTER (WHERE used > :limit) AS windows_over, coalesce(sum(used), 0)::bigint AS used,
           coalesce(sum(greatest(0, used - :limit)), 0)::bigint AS used_over, min(window_start) AS since
    FROM (SELECT used, window_start FROM budget_windows WHERE budget_id = :budget AND window_start < :start
          ORDER BY window_start DESC LIMIT :most) AS last
""")
_WAITING = text("""
    SELECT count(*) AS jobs, coalesce(sum(tokens), 0)::bigint AS tokens FROM (
        SELECT prompt_tokens + n * max_tokens AS tokens FROM jobs
        WHERE tenant_id = :tenant AND status = 'queued' LIMIT :most) AS waiting
""")
_RUNNING = text("SELECT count(*) FROM jobs WHERE status = 'running' AND tenant_id = :tenant")
# Ids are time-ordered: the newest ones are found without reading the others.
_RECENT = """
    SELECT created_at, tier, prompt_tokens, n * max_tokens AS output, prompt_tokens + n * max_tokens AS tokens
    FROM jobs WHERE tenant_id = :tenant ORDER BY id DESC LIMIT :most"""
_SUBMITTED = text(f"""
    SELECT count(*) AS jobs, count(*) FILTER (WHERE prompt_tokens > :max_prompt) AS long_prompts,
           count(*) FILTER (WHERE output > :max_output) AS long_outputs,
           count(*) FILTER (WHERE tier <> ALL(CAST(:tiers AS text[]))) AS other_tiers, min(created_at) AS since
    FROM ({_RECENT}) AS recent WHERE created_at > statement_timestamp() - interval '24 hours'
""")  # noqa: S608  constants only
_MINUTES = text(f"""
    SELECT count(*) FILTER (WHERE jobs > :requests) AS minutes_requests,
           coalesce(sum(greatest(0, jobs - :requests)), 0)::bigint AS jobs_over,
           count(*) FILTER (WHERE tokens > :tokens) AS minutes_tokens,
           coalesce(sum(greatest(0, tokens - :tokens)), 0)::bigint AS tokens_over
    FROM (SELECT count(*) AS jobs, sum(tokens) AS tokens FROM ({_RECENT}) AS recent
          WHERE created_at > statement_timestamp() - interval '24 hours' GROUP BY date_trunc('minute', created_at)) AS minutes
""")  # noqa: S608  constants only
_NO_LIMIT = 10**18


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence of a preview; `is_over` where something would be refused."""

    text: str
    is_over: bool = False


async def preview_budget(conn: AsyncConnection, budget: BudgetView, limit: int, *, unit: str, shown: Any) -> list[Line]:
    """What a budget of `limit` would refuse; `shown` writes an amount."""
    lines = []
    left = limit - budget.used - budget.reserved
    if left >= 0:
        lines.append(Line(f"In this window {shown(left)} {unit} would be left to reserve."))
    else:
        until = "from now on" if budget.window_end is None else f"until {budget.window_end:%Y-%m-%d %H:%M} UTC"
        lines.append(
            Line(
                f"What is used and reserved passes it by {shown(-left)} {unit}: nothing more is accepted {until}.", True
            )
        )
    values = {"tenant": budget.tenant_id, "budget": budget.id, "start": budget.window_start, "limit": limit}
    held = (await conn.execute(_RESERVED, {**values, "used": budget.used, "most": MOST_JOBS})).one()
    if held.jobs_over:
        lines.append(
            Line(
                f"{held.jobs_over:,} of {held.jobs:,} jobs that wait or run would not fit, with {shown(held.amount_over)} {unit} "
                "reserved. They were accepted and keep their reservations; later ones like them are refused.",
                True,
            )
        )
    elif held.jobs:
        lines.append(Line(f"All {held.jobs:,} jobs that wait or run with a reservation in it fit."))
    past = (await conn.execute(_WINDOWS, {**values, "most": MOST_WINDOWS})).one()
    if past.windows_over:
        share = 100 * past.used_over / past.used
        lines.append(
            Line(
                f"{past.windows_over} of the last {past.windows} windows used more: {shown(past.used_over)} {unit} of them, "
                f"{share:.0f} % of what they used, would have been refused.",
                True,
            )
        )
    elif past.windows:
        lines.append(Line(f"None of the last {past.windows} windows used more."))
    else:
        lines.append(Line("No window before this one was counted."))
    return lines


async def preview_limits(conn: AsyncConnection, tenant: Tenant, change: dict[str, Any]) -> list[Line]:
    """What these limits of a tenant would refuse, as they would be with `change`; only what is stricter than now, or is passed, is spoken of."""
    after = {name: change.get(name, getattr(tenant, name)) for name in Tenant.__slots__}
    lines: list[Line] = []
    await _of_what_waits(conn, tenant, after, change, lines)
    await _of_submissions(conn, tenant, after, change, lines)
    return lines or [Line("Nothing of what waits, runs, or was submitted in the last 24 hours passes these limits.")]


async def _of_what_waits(
    conn: AsyncConnection, tenant: Tenant, after: dict[str, Any], change: dict[str, Any], lines: list[Line]
) -> None:
    if {"max_queued_jobs", "max_queued_tokens"} & change.keys():
        waiting = (await conn.execute(_WAITING, {"tenant": tenant.id, "most": MOST_JOBS})).one()
        for name, count, unit in (
            ("max_queued_jobs", waiting.jobs, "jobs"), ("max_queued_tokens", waiting.tokens, "tokens"),
        ):  # fmt: skip
            most = after[name]
            if most is not None and count > most:
                more = "or more " if waiting.jobs == MOST_JOBS else ""
                lines.append(
                    Line(
                        f"{count:,} {more}{unit} wait, {count - most:,} beyond it: they stay, and nothing more is accepted until fewer wait.",
                        True,
                    )
                )
    if "max_running_jobs" in change and after["max_running_jobs"] is not None:
        running: int = await conn.scalar(_RUNNING, {"tenant": tenant.id}) or 0
        if running > after["max_running_jobs"]:
            lines.append(
                Line(
                    f"{running:,} jobs run, {running - after['max_running_jobs']:,} beyond it: they run on, and no other starts until fewer run.",
                    True,
                )
            )


async def _of_submissions(
    conn: AsyncConnection, tenant: Tenant, after: dict[str, Any], change: dict[str, Any], lines: list[Line]
) -> None:
    wanted = {
        "tenant": tenant.id, "most": MOST_JOBS, "tiers": list(after["tiers"] or TIERS),
        "max_prompt": _or_none(after["max_prompt_tokens"]), "max_output": _or_none(after["max_output_tokens"]),
    }  # fmt: skip
    found = (await conn.execute(_SUBMITTED, wanted)).one()
    if not found.jobs:
        return
    span = _span(found.jobs, found.since)
    for name, count, what in (
        ("max_prompt_tokens", found.long_prompts, "have a longer prompt"),
        ("max_output_tokens", found.long_outputs, "ask for more output"),
        ("tiers", found.other_tiers, "are of a tier that isn't among these"),
    ):
        if name in change and count:
            lines.append(Line(f"{count:,} of {span} {what}: they would have been refused.", True))
    if {"requests_per_minute", "tokens_per_minute"} & change.keys():
        rates = {
            "tenant": tenant.id, "most": MOST_JOBS,
            "requests": _or_none(after["requests_per_minute"]), "tokens": _or_none(after["tokens_per_minute"]),
        }  # fmt: skip
        over = (await conn.execute(_MINUTES, rates)).one()
        if over.minutes_requests:
            lines.append(
                Line(
                    f"In {over.minutes_requests:,} minutes more requests came, {over.jobs_over:,} too many together, of {span}.",
                    True,
                )
            )
        if over.minutes_tokens:
            lines.append(
                Line(
                    f"In {over.minutes_tokens:,} minutes more tokens were asked for, {over.tokens_over:,} too many together, by {span}.",
                    True,
                )
            )


def _span(jobs: int, since: datetime) -> str:
    if jobs >= MOST_JOBS:
        return f"the last {jobs:,} submissions, since {since:%H:%M} UTC,"
    return f"the {jobs:,} submissions of the last {DAY_H} hours"


def _or_none(limit: int | None) -> int:
    return _NO_LIMIT if limit is None else limit
