"""How does a budget stand, and how will its window end? What the bars show."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.quotas.budget_acts import BudgetView

LEAST_PART = 0.05  # of a window must have passed before its rate says anything
_START = "CASE b.period WHEN 'total' THEN 'epoch'::timestamptz ELSE date_trunc(b.period, statement_timestamp()) END"
_TIGHTEST = text(f"""
    SELECT DISTINCT ON (b.tenant_id) b.tenant_id, b.metric, b.period, b.hard_limit, k.prefix,
           coalesce(w.used, 0) AS used, coalesce(w.reserved, 0) AS reserved
    FROM budgets b LEFT JOIN api_keys k ON k.id = b.api_key_id
    LEFT JOIN budget_windows w ON w.budget_id = b.id AND w.window_start = {_START}
    WHERE b.tenant_id = ANY(CAST(:tenants AS text[])) AND b.retired_at IS NULL
    ORDER BY b.tenant_id,
             (coalesce(w.used, 0) + coalesce(w.reserved, 0))::float8 / greatest(b.hard_limit, 1) DESC, b.id
""")  # noqa: S608  constants only


@dataclass(frozen=True, slots=True)
class Outlook:
    """How the window ends if it goes on as it went: `projected` in the budget's metric, `full_at` when that reaches the limit."""

    projected: int | None
    full_at: datetime | None
    note: str


def outlook(budget: BudgetView, now: datetime) -> Outlook:
    """By the mean rate since the window began; what is reserved is taken to be used."""
    if budget.window_end is None:
        return Outlook(None, None, "no end: it counts for ever")
    length = (budget.window_end - budget.window_start).total_seconds()
    passed = (now - budget.window_start).total_seconds()
    if passed < LEAST_PART * length:
        return Outlook(None, None, "too early in the window to say")
    spent = budget.used + budget.reserved
    projected = max(spent, round(spent * length / passed))
    full_at = None
    if projected > budget.limit and spent > 0:
        full_at = budget.window_start + timedelta(seconds=max(passed, passed * budget.limit / spent))
    return Outlook(projected, full_at, "")


async def tightest_budgets(conn: AsyncConnection, tenants: list[str]) -> dict[str, Any]:
    """Of each of these tenants, the budget of which the largest part is used and reserved now."""
    return {row.tenant_id: row for row in await conn.execute(_TIGHTEST, {"tenants": tenants})}


UNITS = {
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "total_tokens": "tokens",
    "requests": "requests",
    "cost": "of the currency",
}


def budget_name(metric: str, period: str) -> str:
    """Such as `Tokens a day`."""
    what = {"cost": "cost"}.get(metric, UNITS[metric]).capitalize()
    return f"{what} in all" if period == "total" else f"{what} an hour" if period == "hour" else f"{what} a {period}"
