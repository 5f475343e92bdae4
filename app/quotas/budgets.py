"""May this job spend that much? Reserve before, settle after: always inside the caller's transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import BudgetExhausted


@dataclass(frozen=True, slots=True)
class Spending:
    """Tokens of one job: wanted (at the reservation) or used (at the settlement)."""

    input_tokens: int
    output_tokens: int

    def amount(self, metric: str) -> int:
        """This spending in a budget's metric."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
            "requests": 1,
        }[metric]


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a job sets aside before it may run. `number` counts the job's reservations from 1."""

    job_id: UUID
    number: int
    tenant_id: str
    api_key_id: UUID | None
    wanted: Spending


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a job really used; `used` is None where nothing is billed and all goes back."""

    job_id: UUID
    reservation: int
    used: Spending | None


# Rows are locked in the order of their ids, so that two submissions can't deadlock.
_APPLYING = text("""
    SELECT id, metric, hard_limit,
           CASE period WHEN 'total' THEN 'epoch'::timestamptz ELSE date_trunc(period, now()) END AS window_start
    FROM budgets
    WHERE tenant_id = :tenant AND (api_key_id IS NULL OR api_key_id = :key) AND retired_at IS NULL
    ORDER BY id
""")
_RESERVE = text("""
    INSERT INTO budget_windows (budget_id, window_start, hard_limit, reserved)
    VALUES (:budget, :window, :limit, :amount)
    ON CONFLICT (budget_id, window_start)
    DO UPDATE SET reserved = budget_windows.reserved + EXCLUDED.reserved, hard_limit = EXCLUDED.hard_limit
""")
_WRITE = text("""
    INSERT INTO ledger (budget_id, window_start, job_id, reservation, kind, amount)
    VALUES (:budget, :window, :job, :reservation, :kind, :amount)
""")
_RESERVED = text("""
    SELECT l.job_id, l.reservation, l.budget_id, l.window_start, l.amount, b.metric
    FROM ledger l JOIN budgets b ON b.id = l.budget_id
    WHERE l.kind = 'reserve' AND (l.job_id, l.reservation) IN (
        SELECT * FROM unnest(CAST(:jobs AS uuid[]), CAST(:reservations AS smallint[])))
    ORDER BY l.budget_id, l.window_start
""")
_SETTLE = text("""
    UPDATE budget_windows SET used = used + :used, reserved = reserved - :reserved
    WHERE budget_id = :budget AND window_start = :window
""")


_GUARD = "never_over"  # the constraint of budget_windows that refuses an overdraft


async def reserve(conn: AsyncConnection, reservations: Sequence[Reservation]) -> None:
    """Set aside what these jobs may use at most, in every budget that applies, or nothing at all.

    Raises:
        BudgetExhausted: a budget can't hold it; the transaction is spoilt and must be rolled back.
    """
    callers = {(each.tenant_id, each.api_key_id) for each in reservations}
    for tenant_id, api_key_id in sorted(callers, key=str):
        budgets = (await conn.execute(_APPLYING, {"tenant": tenant_id, "key": api_key_id})).all()
        mine = [each for each in reservations if (each.tenant_id, each.api_key_id) == (tenant_id, api_key_id)]
        for budget in budgets:
            amounts = [each.wanted.amount(budget.metric) for each in mine]
            place = {"budget": budget.id, "window": budget.window_start}
            try:
                await conn.execute(_RESERVE, {**place, "limit": budget.hard_limit, "amount": sum(amounts)})
            except IntegrityError as error:
                if _GUARD not in str(error.orig):
                    raise
                raise BudgetExhausted(
                    f"the budget of {budget.hard_limit} {budget.metric.replace('_', ' ')} can't hold the {sum(amounts)} "
                    "that this request may use; ask for less (max_tokens), wait for the next window, or have it raised",
                    budget_id=str(budget.id),
                    metric=budget.metric,
                    limit=budget.hard_limit,
                ) from error
            await conn.execute(
                _WRITE,
                [
                    {**place, "job": each.job_id, "reservation": each.number, "kind": "reserve", "amount": amount}
                    for each, amount in zip(mine, amounts, strict=True)
                ],
            )


async def settle(conn: AsyncConnection, settlements: Sequence[Settlement]) -> None:
    """Book what was used and give back the rest. The ledger's unique key makes a second settlement of a reservation an error."""
    if not settlements:
        return
    used_by_job = {each.job_id: each.used for each in settlements}
    keys = {"jobs": [s.job_id for s in settlements], "reservations": [s.reservation for s in settlements]}
    for row in (await conn.execute(_RESERVED, keys)).all():
        spending = used_by_job[row.job_id]
        # Billing never passes what was reserved: the engine stops at max_tokens, and the prompt was counted before.
        used = 0 if spending is None else min(spending.amount(row.metric), row.amount)
        place = {"budget": row.budget_id, "window": row.window_start}
        await conn.execute(_SETTLE, {**place, "used": used, "reserved": row.amount})
        entry = {**place, "job": row.job_id, "reservation": row.reservation}
        await conn.execute(
            _WRITE,
            [{**entry, "kind": "settle", "amount": used}, {**entry, "kind": "release", "amount": row.amount - used}],
        )
