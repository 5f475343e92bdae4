"""How does an operator make, change, retire and read budgets? What was promised under a budget stays promised."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import AlreadyExists, BudgetRetired, InvalidRequest, NotFound
from app.ids import new_id
from app.quotas.acts import record_act
from app.quotas.tables import api_keys, budgets
from app.quotas.tenants import read_tenant
from app.quotas.wanted import BudgetChange, BudgetWanted
from app.seen import Seen, refuse_unless_seen, version_of


@dataclass(frozen=True, slots=True)
class BudgetView:
    """A budget with its current window, whose `used` and `reserved` are 0 where nothing was asked of it yet.

    Amounts are tokens, requests, or millionths of the currency. `window_end` is None for the period `total`.
    """

    id: UUID
    tenant_id: str
    key: str | None  # the key's prefix
    metric: str
    period: str
    limit: int
    thresholds: list[int]
    created_at: datetime
    retired_at: datetime | None
    window_start: datetime
    window_end: datetime | None
    used: int
    reserved: int

    @property
    def version(self) -> str:
        """Of what `change_budget` may change."""
        return version_of(self.limit, self.thresholds)

    @property
    def remaining(self) -> int:
        """What a submission may still reserve; 0 where the limit was set below what is used and reserved."""
        return 0 if self.retired_at else max(0, self.limit - self.used - self.reserved)


# In UTC, as sessions are: a day's window begins at midnight there.
_START = "CASE b.period WHEN 'total' THEN 'epoch'::timestamptz ELSE date_trunc(b.period, statement_timestamp()) END"
_VIEW = f"""
    SELECT b.id, b.tenant_id, k.prefix, b.metric, b.period, b.hard_limit, b.thresholds, b.created_at, b.retired_at,
           {_START} AS window_start,
           CASE WHEN b.period <> 'total'
                THEN date_trunc(b.period, statement_timestamp()) + CAST('1 ' || b.period AS interval) END AS window_end,
           coalesce(w.used, 0) AS used, coalesce(w.reserved, 0) AS reserved
    FROM budgets b LEFT JOIN api_keys k ON k.id = b.api_key_id
    LEFT JOIN budget_windows w ON w.budget_id = b.id AND w.window_start = {_START}
"""  # noqa: S608  constants only
_ONE = text(f"{_VIEW} WHERE b.id = :id")
_SAME = text(f"""
    {_VIEW} WHERE b.tenant_id = :tenant AND b.api_key_id IS NOT DISTINCT FROM :key AND b.metric = :metric
        AND b.period = :period AND b.retired_at IS NULL
""")
_PAGE = text(f"""
    {_VIEW} WHERE (CAST(:tenant AS text) IS NULL OR b.tenant_id = :tenant) AND (:retired OR b.retired_at IS NULL)
        AND (CAST(:after AS uuid) IS NULL OR b.id > :after)
    ORDER BY b.id LIMIT :limit
""")
# The window's own limit guards what is promised, which a lower limit doesn't take back. The row is made where there is none, so
# that whoever reserves at this moment, be it the window's first, is waited for.
_NOTE_LIMIT = text(f"""
    INSERT INTO budget_windows AS w (budget_id, window_start, hard_limit)
    SELECT b.id, {_START}, b.hard_limit FROM budgets b WHERE b.id = :id
    ON CONFLICT (budget_id, window_start) DO UPDATE SET hard_limit = greatest(EXCLUDED.hard_limit, w.used + w.reserved)
""")  # noqa: S608  constants only


async def create_budget(
    conn: AsyncConnection, tenant_id: str, wanted: BudgetWanted, *, actor: str, reason: str | None = None
) -> BudgetView:
    """Make a budget. It counts what is submitted from now on.

    Raises:
        NotFound: there is no such tenant.
        InvalidRequest: the key isn't the tenant's.
        AlreadyExists: there is a budget of this metric and period for the same tenant or key.
    """
    await read_tenant(conn, tenant_id)
    made = await conn.scalar(
        upsert(budgets)
        .values(
            id=new_id(), tenant_id=tenant_id, api_key_id=await _key_id(conn, tenant_id, wanted.key),
            metric=wanted.metric, period=wanted.period, hard_limit=wanted.limit, thresholds=wanted.thresholds,
        )
        .on_conflict_do_nothing()
        .returning(budgets.c.id)
    )  # fmt: skip
    if made is None:
        same = await find_budget(conn, tenant_id, wanted)
        raise AlreadyExists(
            f"metric, period: there is a budget of {wanted.metric} a {wanted.period} for the same "
            f"{'key' if wanted.key else 'tenant'} already: change that one, or retire it first",
            param="metric",
            **({"budget_id": str(same.id)} if same else {}),
        )
    await record_act(conn, actor, "budget.create", f"{tenant_id}/{made}", wanted.model_dump(), reason=reason)
    return await read_budget(conn, made)


async def read_budget(conn: AsyncConnection, budget_id: UUID) -> BudgetView:
    """The budget, retired or not.

    Raises:
        NotFound: there is none of this id.
    """
    row = (await conn.execute(_ONE, {"id": budget_id})).one_or_none()
    if row is None:
        raise NotFound(f"there is no budget {budget_id}")
    return BudgetView(*row)


async def find_budget(conn: AsyncConnection, tenant_id: str, wanted: BudgetWanted) -> BudgetView | None:
    """The budget that applies now to the same tenant or key, metric and period.

    Raises:
        InvalidRequest: the tenant has no such key.
    """
    key = await _key_id(conn, tenant_id, wanted.key)
    same = {"tenant": tenant_id, "key": key, "metric": wanted.metric, "period": wanted.period}
    row = (await conn.execute(_SAME, same)).one_or_none()
    return BudgetView(*row) if row else None


async def list_budgets(
    conn: AsyncConnection, tenant_id: str | None = None, *, limit: int, after: UUID | None = None, retired: bool = False
) -> list[BudgetView]:
    """Budgets, all or one tenant's, oldest first, those that come after `after`; retired ones where they are asked for."""
    wanted = {"tenant": tenant_id, "after": after, "limit": limit, "retired": retired}
    return [BudgetView(*row) for row in await conn.execute(_PAGE, wanted)]


async def change_budget(
    conn: AsyncConnection,
    budget_id: UUID,
    change: BudgetChange,
    *,
    actor: str,
    seen: Seen = None,
    reason: str | None = None,
) -> BudgetView:
    """Change limit or thresholds, from the next submission on.

    A limit below what is used and reserved takes nothing back: accepted jobs keep their reservation, and nothing more is
    reserved in this window until what is used and reserved is below it. A submission that is in flight at this moment
    may still go by the limit before. `seen`: the `version` that whoever changes it has seen.

    Raises:
        NotFound: there is none of this id.
        ChangedMeanwhile: it isn't what was seen.
        BudgetRetired: it applies no more.
        InvalidRequest: nothing is given.
    """
    given = change.given()
    if not given:
        raise InvalidRequest("name at least one field that shall be different", errors=[])
    before = await _locked(conn, budget_id)
    changed = {name: value for name, value in given.items() if value != getattr(before, name)}
    if not changed:
        return before
    refuse_unless_seen(seen, before.version, {name: getattr(before, name) for name in changed})
    columns = {"hard_limit" if name == "limit" else name: value for name, value in changed.items()}
    await conn.execute(update(budgets).where(budgets.c.id == budget_id).values(**columns))
    if "limit" in changed:
        await conn.execute(_NOTE_LIMIT, {"id": budget_id})
    detail: dict[str, Any] = {name: [getattr(before, name), changed[name]] for name in changed}
    detail |= {"used": before.used, "reserved": before.reserved}
    await record_act(conn, actor, "budget.change", f"{before.tenant_id}/{budget_id}", detail, reason=reason)
    return await read_budget(conn, budget_id)


async def retire_budget(conn: AsyncConnection, budget_id: UUID, *, actor: str, reason: str | None = None) -> BudgetView:
    """Let it apply no more; its windows and its ledger stay, and what is reserved in it is settled there. Again changes nothing.

    Raises:
        NotFound: there is none of this id.
    """
    before = await _locked(conn, budget_id, even_retired=True)
    if before.retired_at is not None:
        return before
    await conn.execute(
        update(budgets).where(budgets.c.id == budget_id).values(retired_at=text("statement_timestamp()"))
    )
    await conn.execute(_NOTE_LIMIT, {"id": budget_id})
    detail = {"metric": before.metric, "period": before.period, "limit": before.limit}
    await record_act(conn, actor, "budget.retire", f"{before.tenant_id}/{budget_id}", detail, reason=reason)
    return await read_budget(conn, budget_id)


async def _locked(conn: AsyncConnection, budget_id: UUID, *, even_retired: bool = False) -> BudgetView:
    await conn.execute(select(budgets.c.id).where(budgets.c.id == budget_id).with_for_update(key_share=True))
    found = await read_budget(conn, budget_id)
    if found.retired_at is not None and not even_retired:
        raise BudgetRetired(
            f"the budget {budget_id} was retired at {found.retired_at:%Y-%m-%dT%H:%M:%SZ}: make a new one"
        )
    return found


async def _key_id(conn: AsyncConnection, tenant_id: str, prefix: str | None) -> UUID | None:
    if prefix is None:
        return None
    found: UUID | None = await conn.scalar(
        select(api_keys.c.id).where(
            api_keys.c.tenant_id == tenant_id, or_(api_keys.c.prefix == prefix, api_keys.c.old_prefix == prefix)
        )
    )
    if found is None:
        raise InvalidRequest(
            f"key: {tenant_id!r} has no key with the prefix {prefix!r}: `penstock keys list` shows all", param="key"
        )
    return found
