"""Who did what as an operator? The log of acts, newest first."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.queries.walk import MOST_LOOKED_AT, Page, equal, walk
from app.quotas.tables import audit_log


@dataclass(frozen=True, slots=True)
class ActRow:
    """One act."""

    id: int
    at: datetime
    actor: str
    action: str
    target: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ActSearch:
    """What is searched for; None is any. `action` also finds what begins with it and a dot. `after` and `before` are exclusive.

    `tenant` finds what was done to the tenant itself, to its budgets and keys, and acts that name it.
    """

    actor: str | None = None
    action: str | None = None
    target: str | None = None
    after: datetime | None = None
    before: datetime | None = None
    tenant: str | None = None


_a = audit_log.c


async def find_acts(
    conn: AsyncConnection, wanted: ActSearch, *, limit: int, older_than: int | None = None, most: int = MOST_LOOKED_AT
) -> Page[ActRow]:
    """The newest acts that fit, from the one before `older_than` on."""
    near = select(*[_a[name] for name in ActRow.__slots__]).order_by(_a.id.desc())
    if older_than is not None:
        near = near.where(_a.id < older_than)
    actor = wanted.actor
    if wanted.target is not None:
        near = near.where(_a.target == wanted.target)
    elif actor is not None:
        near, actor = near.where(_a.actor == actor), None
    elif wanted.before is not None:
        # Ids and times grow together but for transactions that overlap: the time itself is asked below.
        last = await conn.scalar(
            select(_a.id).where(_a.at <= wanted.before).order_by(_a.at.desc(), _a.id.desc()).limit(1)
        )
        near = near.where(_a.id <= func.coalesce(last, 0) + _OVERLAP)

    def fits(columns: Any) -> list[ColumnElement[bool]]:
        found = equal(columns, actor=actor)
        if wanted.action is not None:
            found.append(
                (columns.action == wanted.action) | columns.action.startswith(wanted.action + ".", autoescape=True)
            )
        if wanted.tenant is not None:
            found.append(_concerns(columns, wanted.tenant))
        if wanted.after is not None:
            found.append(columns.at > wanted.after)
        if wanted.before is not None:
            found.append(columns.at < wanted.before)
        return found

    page = await walk(conn, near, fits, key="id", limit=limit, most=most)
    return page.of(lambda row: ActRow(*row))


def _concerns(columns: Any, tenant: str) -> ColumnElement[bool]:
    itself = columns.action.startswith("tenant.") & (columns.target == tenant)
    of_it = columns.action.startswith("budget.") | columns.action.startswith("key.")
    under_it = of_it & columns.target.startswith(tenant + "/", autoescape=True)
    return or_(itself, under_it, columns.detail["tenant"].astext == tenant)


_OVERLAP = 1000
