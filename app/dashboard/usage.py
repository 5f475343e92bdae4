"""Who used what, when? A tenant's billed usage over time, by model, tier or key, and as CSV for a spreadsheet."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

By = Literal["model", "tier", "key"]
Span = Literal["day", "week", "month"]
BYS: tuple[By, ...] = ("model", "tier", "key")
SPANS: dict[Span, tuple[int, str, str]] = {  # hours, step, name
    "day": (24, "hour", "24 hours"),
    "week": (7 * 24, "day", "7 days"),
    "month": (30 * 24, "day", "30 days"),
}
MOST_ROWS = 100_000  # of usage that one page reads one by one, the newest
MOST_SERIES = 5  # by name; the rest is one more
OTHERS = "others"

# Hours that are over were added up (app/quotas/usage_hours.py); the rest row by row, newest first, by the index on (tenant_id, at).
_USAGE = text("""
    WITH rolled AS (SELECT coalesce(max(hour) + interval '1 hour', '-infinity') AS until FROM usage_rollups),
    recent AS (
        SELECT at, model, tier, api_key_id, prompt_tokens, cached_tokens, completion_tokens, cost_micros FROM usage
        WHERE tenant_id = :tenant AND kind = 'billed' AND at >= greatest(:since, (SELECT until FROM rolled)) AND at < :until
        ORDER BY at DESC LIMIT :most),
    parts AS (
        SELECT date_trunc(:step, at) AS step, model, tier, api_key_id, count(*) AS jobs, sum(prompt_tokens) AS prompt_tokens,
               sum(cached_tokens) AS cached_tokens, sum(completion_tokens) AS completion_tokens, sum(cost_micros) AS cost_micros,
               min(at) AS oldest, count(*) AS looked_at
        FROM recent GROUP BY 1, 2, 3, 4
        UNION ALL
        SELECT date_trunc(:step, hour), model, tier, api_key_id, sum(jobs), sum(prompt_tokens), sum(cached_tokens),
               sum(completion_tokens), sum(cost_micros), NULL, 0
        FROM usage_hours WHERE tenant_id = :tenant AND hour >= :since AND hour < :until GROUP BY 1, 2, 3, 4),
    summed AS (
        SELECT step, model, tier, api_key_id, sum(jobs)::bigint AS jobs, sum(prompt_tokens)::bigint AS prompt_tokens,
               sum(cached_tokens)::bigint AS cached_tokens, sum(completion_tokens)::bigint AS completion_tokens,
               sum(cost_micros)::bigint AS cost_micros, min(oldest) AS oldest, sum(looked_at)::bigint AS looked_at
        FROM parts GROUP BY 1, 2, 3, 4)
    SELECT summed.*, k.prefix FROM summed LEFT JOIN api_keys k ON k.id = summed.api_key_id ORDER BY step, model, tier, k.prefix
""")


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one key of a tenant was billed for in one step, with one model, in one tier; cached tokens are part of the prompts'."""

    step: datetime
    model: str
    tier: str
    key: str  # its prefix; empty where it is gone
    jobs: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_micros: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Rows of a span; `cut_at` is where those that no round has added up yet begin, if there were more than could be read."""

    rows: list[UsageRow]
    since: datetime
    until: datetime
    step: str
    cut_at: datetime | None

    def total(self, name: str) -> int:
        """The sum of a column."""
        return sum(getattr(each, name) for each in self.rows)


async def read_usage(conn: AsyncConnection, tenant_id: str, *, since: datetime, until: datetime, step: str) -> Usage:
    """The tenant's, by steps of an hour or a day, in UTC."""
    values = {"tenant": tenant_id, "since": since, "until": until, "step": step, "most": MOST_ROWS}
    found = (await conn.execute(_USAGE, values)).all()
    rows = [
        UsageRow(
            each.step, each.model, each.tier, each.prefix or "", each.jobs, each.prompt_tokens, each.cached_tokens,
            each.completion_tokens, each.cost_micros,
        )
        for each in found
    ]  # fmt: skip
    is_cut = sum(each.looked_at for each in found) >= MOST_ROWS
    cut_at = min(each.oldest for each in found if each.oldest is not None) if is_cut else None
    return Usage(rows, since, until, step, cut_at)


def span_of(span: Span, now: datetime) -> tuple[datetime, datetime, str]:
    """From when, until when, and in which steps: whole ones, the last of them not over yet."""
    hours, step, _ = SPANS[span]
    size = timedelta(hours=1 if step == "hour" else 24)
    last = now.replace(minute=0, second=0, microsecond=0)
    last = last if step == "hour" else last.replace(hour=0)
    return last - timedelta(hours=hours) + size, last + size, step


def series(usage: Usage, by: By) -> dict[str, Any]:
    """As charts.js draws it: tokens in each step, by the largest names first."""
    size = timedelta(hours=1 if usage.step == "hour" else 24)
    steps = []
    at = usage.since
    while at < usage.until:
        steps.append(at)
        at += size
    sums: dict[str, dict[datetime, int]] = defaultdict(lambda: defaultdict(int))
    for each in usage.rows:
        sums[getattr(each, by) or "no key"][each.step] += each.prompt_tokens + each.completion_tokens
    names = sorted(sums, key=lambda name: (-sum(sums[name].values()), name))
    shown = names[:MOST_SERIES]
    found = [{"name": name, "values": [sums[name][step] for step in steps]} for name in shown]
    if names[MOST_SERIES:]:
        rest = [sum(sums[name][step] for name in names[MOST_SERIES:]) for step in steps]
        found.append({"name": OTHERS, "values": rest})
    return {"times": [step.timestamp() for step in steps], "series": found, "unit": "tokens"}


COLUMNS = (
    "tenant", "step_utc", "model", "tier", "key", "jobs", "prompt_tokens", "cached_tokens", "completion_tokens", "cost",
)  # fmt: skip


def as_csv(tenant_id: str, rows: Iterable[UsageRow]) -> str:
    """The rows as CSV (RFC 4180). What a spreadsheet would take for a formula begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for each in rows:
        writer.writerow(
            safe_cells(
                [
                    tenant_id, f"{each.step:%Y-%m-%dT%H:%M:%SZ}", each.model, each.tier, each.key, each.jobs,
                    each.prompt_tokens, each.cached_tokens, each.completion_tokens, f"{each.cost_micros / 1e6:.6f}",
                ]
            )
        )  # fmt: skip
    return out.getvalue()


def safe_cells(cells: Sequence[object]) -> list[object]:
    """Texts that begin as formulas do get an apostrophe before them (OWASP, CSV Injection)."""
    return [
        f"'{each}" if isinstance(each, str) and each[:1] in {"=", "+", "-", "@", "\t", "\r", "\n"} else each
        for each in cells
    ]
