"""May this job spend that much? Reserve before, settle after: always inside the caller's transaction."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Statement
from app.errors import BudgetExhausted, Unavailable

MICROS = 1_000_000


@dataclass(frozen=True, slots=True)
class Prices:
    """Of a model: millionths of the currency for a million tokens."""

    input_price: int = 0
    output_price: int = 0

    @property
    def are_set(self) -> bool:
        """Whether an operator has set any; without, nothing is said of costs."""
        return self.input_price > 0 or self.output_price > 0

    def cost_micros(self, input_tokens: int, output_tokens: int) -> int:
        """Millionths of the currency for so many tokens together, rounded up once."""
        return -(-(input_tokens * self.input_price + output_tokens * self.output_price) // MICROS)


@dataclass(frozen=True, slots=True)
class Spending:
    """What one job spends: at most (at the reservation) or really (at the settlement)."""

    input_tokens: int
    output_tokens: int
    cost_micros: int

    @classmethod
    def at(cls, prices: Prices, input_tokens: int, output_tokens: int) -> "Spending":
        """So many tokens at these prices."""
        return cls(input_tokens, output_tokens, prices.cost_micros(input_tokens, output_tokens))

    def amount(self, metric: str) -> int:
        """This spending in a budget's metric."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
            "requests": 1,
            "cost": self.cost_micros,
        }[metric]


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a job sets aside before it may run. `number` counts the job's reservations from 1."""

    job_id: UUID
    number: int
    tenant_id: str
    api_key_id: UUID | None
    wanted: Spending
    can_tell: bool = False  # whether its job has a webhook that wants to hear of thresholds


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a job really used; `used` is None where nothing is billed and all goes back."""

    job_id: UUID
    reservation: int
    used: Spending | None


@dataclass(slots=True)
class Window:
    """A budget in its window of now. In an account it is locked, and `reserved` has what this transaction will write."""

    budget_id: UUID
    tenant_id: str
    api_key_id: UUID | None  # None: all of the tenant's
    metric: str
    period: str
    hard_limit: int
    thresholds: list[int]
    start: datetime
    ends_at: datetime | None  # None: never
    look_again_at: datetime  # for those who wait: the next window's beginning, or a day from now
    used: int = 0
    reserved: int = 0
    warned: int = 0

    @property
    def left(self) -> int:
        """What can still be reserved; below 0 where the limit was lowered meanwhile."""
        return self.hard_limit - self.used - self.reserved

    def applies_to(self, tenant_id: str, api_key_id: UUID | None) -> bool:
        """Whether this caller's jobs count here."""
        return self.tenant_id == tenant_id and self.api_key_id in {None, api_key_id}

    def holds(self, amount: int) -> bool:
        """Whether so much can be reserved now. Nothing always can."""
        return amount <= self.left or amount == 0

    @property
    def resets_at(self) -> str | None:
        """When the next window begins, as the API writes times; None where none will."""
        return None if self.ends_at is None else self.ends_at.isoformat().replace("+00:00", "Z")

    def refusal(self, amount: int) -> BudgetExhausted:
        """The error that says so."""
        unit = "millionths of the currency" if self.metric == "cost" else self.metric.replace("_", " ")
        span = "" if self.ends_at is None else f" a {self.period}"
        resets_at = self.resets_at
        advice = "ask for less (max_tokens)"
        if self.ends_at is not None and amount <= self.hard_limit:
            advice += f", wait for the next window, which begins at {resets_at} (on_budget: wait does)"
        return BudgetExhausted(
            f"the budget of {self.hard_limit} {unit}{span} can't hold the {amount} that this request may use, "
            f"{max(0, self.left)} are left; {advice}, or have it raised",
            budget_id=str(self.budget_id),
            metric=self.metric,
            limit=self.hard_limit,
            period=self.period,
            left=max(0, self.left),
            resets_at=resets_at,
        )


@dataclass(frozen=True, slots=True)
class Crossing:
    """used + reserved of a window has reached `threshold` per cent of its limit by the reservation of this job."""

    job_id: UUID
    budget_id: UUID
    tenant_id: str
    api_key_id: UUID | None
    metric: str
    period: str
    start: datetime
    hard_limit: int
    used: int
    reserved: int
    threshold: int


_WINDOW_START = "CASE period WHEN 'total' THEN 'epoch'::timestamptz ELSE date_trunc(period, now()) END"
_WINDOW_END = """
    CASE WHEN period <> 'total' THEN date_trunc(period, now()) + CAST('1 ' || nullif(period, 'total') AS interval) END"""
_APPLYING = f"""
    SELECT id, tenant_id, api_key_id, metric, period, hard_limit, thresholds, {_WINDOW_START} AS start,
           {_WINDOW_END} AS ends_at, coalesce({_WINDOW_END}, now() + interval '1 day') AS look_again_at
    FROM budgets
    WHERE retired_at IS NULL AND tenant_id = ANY(CAST(:tenants AS text[]))
      AND (api_key_id IS NULL OR api_key_id = ANY(CAST(:keys AS uuid[])))
"""  # noqa: S608  constants only
# All that is missing is there before anything is locked, and both go in the order of the ids: so no two can deadlock.
OPEN_BUDGETS = text(f"""
    WITH applying AS ({_APPLYING}), opened AS (
        INSERT INTO budget_windows (budget_id, window_start, hard_limit)
        SELECT id, start, hard_limit FROM applying
        WHERE NOT EXISTS (SELECT 1 FROM budget_windows WHERE budget_id = applying.id AND window_start = applying.start)
        ORDER BY id ON CONFLICT DO NOTHING)
    SELECT * FROM applying ORDER BY id
""")  # noqa: S608  constants only
_LOCK = text("""
    SELECT w.budget_id, w.window_start, w.used, w.reserved, w.warned FROM budget_windows w
    JOIN unnest(CAST(:budgets AS uuid[]), CAST(:starts AS timestamptz[])) AS wanted (budget_id, window_start)
        USING (budget_id, window_start)
    ORDER BY w.budget_id, w.window_start FOR UPDATE OF w
""")
_LOOK = text(f"""
    SELECT applying.*, coalesce(w.used, 0) AS used, coalesce(w.reserved, 0) AS reserved, coalesce(w.warned, 0) AS warned
    FROM ({_APPLYING}) AS applying
    LEFT JOIN budget_windows w ON w.budget_id = applying.id AND w.window_start = applying.start ORDER BY applying.id
""")  # noqa: S608  constants only
# The limit is read anew under the lock: one that was lowered or retired since then lets nothing through.
_RESERVE = text("""
    WITH held AS (
        UPDATE budget_windows w
        SET reserved = w.reserved + t.amount, hard_limit = greatest(b.hard_limit, w.used + w.reserved + t.amount),
            warned = t.warned
        FROM unnest(CAST(:budgets AS uuid[]), CAST(:starts AS timestamptz[]), CAST(:amounts AS bigint[]),
                    CAST(:warned AS smallint[])) AS t (budget_id, window_start, amount, warned)
        JOIN budgets b ON b.id = t.budget_id AND b.retired_at IS NULL
        WHERE w.budget_id = t.budget_id AND w.window_start = t.window_start
          AND (w.used + w.reserved + t.amount <= b.hard_limit OR t.amount = 0)
        RETURNING w.budget_id)
    INSERT INTO ledger (budget_id, window_start, job_id, reservation, kind, amount)
    SELECT e.budget_id, e.window_start, e.job_id, e.reservation, 'reserve', e.amount
    FROM unnest(CAST(:entry_budgets AS uuid[]), CAST(:entry_starts AS timestamptz[]), CAST(:jobs AS uuid[]),
                CAST(:reservations AS smallint[]), CAST(:entry_amounts AS bigint[]))
        AS e (budget_id, window_start, job_id, reservation, amount)
    JOIN held USING (budget_id)
""")


@dataclass(slots=True)
class Account:
    """The windows that apply to some callers now, locked by this transaction in the order of their ids; what is taken is written at once."""

    windows: list[Window]
    heard: set[str] = field(default_factory=set)  # tenants that hear of thresholds whether a job can tell or not
    _taken: list[tuple[Window, Reservation, int]] = field(default_factory=list)
    _crossings: list[Crossing] = field(default_factory=list)

    def applying(self, tenant_id: str, api_key_id: UUID | None) -> list[Window]:
        """The windows that this caller's jobs count in, in the order of their ids."""
        return [each for each in self.windows if each.applies_to(tenant_id, api_key_id)]

    def refusing(self, tenant_id: str, api_key_id: UUID | None, wanted: Spending) -> list[Window]:
        """Of those, which can't hold that much now."""
        return [each for each in self.applying(tenant_id, api_key_id) if not each.holds(wanted.amount(each.metric))]

    def take(self, reservation: Reservation) -> None:
        """Set aside what the job may use at most; nobody refuses it."""
        for window in self.applying(reservation.tenant_id, reservation.api_key_id):
            amount = reservation.wanted.amount(window.metric)
            assert window.holds(amount), "it was asked before"
            window.reserved += amount
            self._taken.append((window, reservation, amount))
            if reservation.can_tell or reservation.tenant_id in self.heard:
                self._crossings += _crossings(window, reservation.job_id)

    async def write(self, conn: AsyncConnection) -> list[Crossing]:
        """Write what was taken; return the thresholds that it crossed, each once a window.

        Raises:
            Unavailable: a budget was lowered or retired in this moment; the transaction must be rolled back.
        """
        if not self._taken:
            return []
        amounts: dict[UUID, int] = defaultdict(int)
        for window, _, amount in self._taken:
            amounts[window.budget_id] += amount
        touched = [each for each in self.windows if each.budget_id in amounts]
        written = await conn.execute(
            _RESERVE,
            {
                "budgets": [each.budget_id for each in touched],
                "starts": [each.start for each in touched],
                "amounts": [amounts[each.budget_id] for each in touched],
                "warned": [each.warned for each in touched],
                "entry_budgets": [window.budget_id for window, _, _ in self._taken],
                "entry_starts": [window.start for window, _, _ in self._taken],
                "jobs": [reservation.job_id for _, reservation, _ in self._taken],
                "reservations": [reservation.number for _, reservation, _ in self._taken],
                "entry_amounts": [amount for _, _, amount in self._taken],
            },
        )
        if written.rowcount != len(self._taken):
            raise Unavailable("a budget was changed just now: send the request again")
        crossings, self._taken, self._crossings = self._crossings, [], []
        return crossings


async def open_account(
    conn: AsyncConnection, callers: Iterable[tuple[str, UUID | None]], opened: Sequence[Any] | None = None
) -> Account:
    """The budgets of these callers (tenant, API key), their windows of now locked until the transaction ends.

    Ask for all callers of a transaction at once: two accounts in one transaction could deadlock with another's. `opened` is what
    OPEN_BUDGETS has given for them in this transaction, where it has.
    """
    rows = await conn.execute(OPEN_BUDGETS, whose(callers)) if opened is None else opened
    account = Account([Window(*row) for row in rows])
    if account.windows:
        places = {
            "budgets": [each.budget_id for each in account.windows],
            "starts": [each.start for each in account.windows],
        }
        locked = {row.budget_id: row for row in await conn.execute(_LOCK, places)}
        for each in account.windows:
            row = locked[each.budget_id]
            each.used, each.reserved, each.warned = row.used, row.reserved, row.warned
    return account


async def look(conn: AsyncConnection, tenant_id: str, api_key_id: UUID | None) -> list[Window]:
    """The windows that apply to this caller, as they are now, in the order of their ids; nothing is locked."""
    return [Window(*row) for row in await conn.execute(_LOOK, whose([(tenant_id, api_key_id)]))]


async def reserve(conn: AsyncConnection, reservations: Sequence[Reservation]) -> list[Crossing]:
    """Set aside what these jobs may use at most, in every budget that applies, or nothing at all; return the thresholds crossed.

    Raises:
        BudgetExhausted: a budget can't hold it; the transaction must be rolled back.
    """
    account = await open_account(conn, {(each.tenant_id, each.api_key_id) for each in reservations})
    for each in reservations:
        refusing = account.refusing(each.tenant_id, each.api_key_id, each.wanted)
        if refusing:
            raise refusing[0].refusal(each.wanted.amount(refusing[0].metric))
        account.take(each)
    return await account.write(conn)


# Billing never passes what was reserved: the engine stops at max_tokens, and the prompt was counted before.
_SETTLE = text("""
    WITH booked AS (
        SELECT l.budget_id, l.window_start, l.job_id, l.reservation, l.amount AS reserved,
               least(l.amount, CASE b.metric WHEN 'input_tokens' THEN s.input WHEN 'output_tokens' THEN s.output
                   WHEN 'total_tokens' THEN s.input + s.output WHEN 'requests' THEN s.requests WHEN 'cost' THEN s.cost END) AS used
        FROM unnest(CAST(:jobs AS uuid[]), CAST(:reservations AS smallint[]), CAST(:input AS bigint[]), CAST(:output AS bigint[]),
                    CAST(:requests AS bigint[]), CAST(:cost AS bigint[])) AS s (job_id, reservation, input, output, requests, cost)
        JOIN ledger l ON l.job_id = s.job_id AND l.reservation = s.reservation AND l.kind = 'reserve'
        JOIN budgets b ON b.id = l.budget_id),
    totals AS (SELECT budget_id, window_start, sum(used) AS used, sum(reserved) AS reserved FROM booked GROUP BY 1, 2),
    held AS (
        SELECT w.budget_id, w.window_start FROM budget_windows w JOIN totals USING (budget_id, window_start)
        ORDER BY w.budget_id, w.window_start FOR UPDATE OF w),
    settled AS (
        UPDATE budget_windows w SET used = w.used + t.used, reserved = w.reserved - t.reserved
        FROM held JOIN totals t USING (budget_id, window_start)
        WHERE w.budget_id = held.budget_id AND w.window_start = held.window_start)
    INSERT INTO ledger (budget_id, window_start, job_id, reservation, kind, amount)
    SELECT budget_id, window_start, job_id, reservation, kind, CASE kind WHEN 'settle' THEN used ELSE reserved - used END
    FROM booked CROSS JOIN (VALUES ('settle'), ('release')) AS k (kind)
""")
_NOTHING = Spending(0, 0, 0)


def settlement(settlements: Sequence[Settlement]) -> Statement:
    """What books what was used and gives back the rest, for `app.db.in_one_trip`, last in a transaction.

    The ledger's unique key makes a second settlement of a reservation an error. A job without a reservation has nothing to settle;
    one whose budget was retired since is settled all the same.
    """
    used = [each.used or _NOTHING for each in settlements]
    return _SETTLE, {
        "jobs": [each.job_id for each in settlements],
        "reservations": [each.reservation for each in settlements],
        "input": [each.input_tokens for each in used],
        "output": [each.output_tokens for each in used],
        "requests": [int(each.used is not None) for each in settlements],
        "cost": [each.cost_micros for each in used],
    }


def whose(callers: Iterable[tuple[str, UUID | None]]) -> dict[str, Any]:
    """These callers (tenant, API key) as OPEN_BUDGETS takes them."""
    callers = list(callers)
    return {
        "tenants": sorted({tenant_id for tenant_id, _ in callers}),
        "keys": sorted({api_key_id for _, api_key_id in callers if api_key_id is not None}),
    }


def _crossings(window: Window, job_id: UUID) -> list[Crossing]:
    """The thresholds that the window has reached and that weren't told yet; from now on they are."""
    spent = window.used + window.reserved
    reached = [
        each
        for each in sorted(window.thresholds)
        if each > window.warned and spent * 100 >= each * window.hard_limit > 0
    ]
    window.warned = max([window.warned, *reached])
    return [
        Crossing(
            job_id, window.budget_id, window.tenant_id, window.api_key_id, window.metric, window.period, window.start,
            window.hard_limit, window.used, window.reserved, threshold,
        )
        for threshold in reached
    ]  # fmt: skip
