"""`penstock budgets ...`: what tenants and keys may use. Directly on the database: whoever can reach that is the operator."""

import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from app.cli.actor import actor
from app.cli.errors import CommandFailed
from app.cli.operating import document, in_transaction, whole
from app.cli.tables import print_table
from app.quotas import budget_acts
from app.quotas.budget_acts import BudgetView
from app.quotas.wanted import BudgetChange, BudgetWanted, checked
from app.settings import Settings

_PAGE = 500
_COLUMNS = ("budget", "tenant", "key", "metric", "period", "limit", "used", "reserved", "remaining", "warn at", "state")


def show_all(settings: Settings, tenant_id: str | None, *, retired: bool, as_json: bool) -> None:
    """Print the budgets with their current windows, oldest first."""

    async def act(conn: Any) -> list[BudgetView]:
        found: list[BudgetView] = []
        while page := await budget_acts.list_budgets(
            conn, tenant_id, limit=_PAGE, after=found[-1].id if found else None, retired=retired
        ):
            found += page
        return found

    found = in_transaction(settings, act)
    if as_json:
        for each in found:
            print(document(each))
        return
    print_table(_COLUMNS, [_cells(each) for each in found], nothing="no budgets: `penstock budgets set` makes one")


def put(
    settings: Settings, tenant_id: str, metric: str, period: str, limit: str, *, key: str | None, thresholds: str | None
) -> None:
    """Make the budget, or change the one that is there for the same tenant or key, metric and period.

    Raises:
        NotFound: there is no such tenant.
        InvalidRequest: a value is out of its bounds, or the key isn't the tenant's.
    """
    values: dict[str, Any] = {"metric": metric, "period": period, "limit": whole("LIMIT", limit), "key": key}
    if thresholds is not None:
        values["thresholds"] = [whole("--thresholds", each.strip()) for each in thresholds.split(",") if each.strip()]
    wanted = checked(BudgetWanted, values)

    async def act(conn: Any) -> tuple[bool, BudgetView]:
        there = await budget_acts.find_budget(conn, tenant_id, wanted)
        if there is None:
            return True, await budget_acts.create_budget(conn, tenant_id, wanted, actor=actor())
        given = wanted.model_dump(include={"limit"} | ({"thresholds"} if thresholds is not None else set()))
        change = BudgetChange.model_validate(given)
        return False, await budget_acts.change_budget(conn, there.id, change, actor=actor())

    is_new, budget = in_transaction(settings, act)
    print(
        f"{budget.id} is {'made' if is_new else 'changed'}: {budget.remaining} of {budget.limit} remain in this window"
    )


def retire(settings: Settings, budget_id: str) -> None:
    """Let a budget apply no more.

    Raises:
        NotFound: there is none of this id.
        CommandFailed: that is no id.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", budget_id):
        raise CommandFailed("that is no budget's id: `penstock budgets list` shows them")
    found = in_transaction(settings, lambda conn: budget_acts.retire_budget(conn, UUID(budget_id), actor=actor()))
    print(f"{found.id} is retired: {found.metric} a {found.period} of {found.tenant_id}")


def _cells(each: BudgetView) -> Sequence[Any]:
    return (
        each.id, each.tenant_id, each.key, each.metric, each.period, each.limit, each.used, each.reserved, each.remaining,
        ",".join(f"{threshold}%" for threshold in each.thresholds) or "-", "retired" if each.retired_at else "applies",
    )  # fmt: skip
