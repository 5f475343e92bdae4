"""Who are the tenants? /admin/tenants: searched, paged by id, with the budget that is nearest to its limit; and one more is made."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.access import Operator, Viewer
from app.dashboard.assets import PREFIX
from app.dashboard.budget_figures import budget_name, tightest_budgets
from app.dashboard.forms import read_form, text_of, why_of
from app.dashboard.listing import PAGE_SIZE, listing_of, one_of
from app.dashboard.lists import Search, list_page
from app.dashboard.pages import go
from app.dashboard.queries.walk import Page
from app.dashboard.services import services_of
from app.dashboard.tenant_forms import tenant_wanted
from app.errors import AlreadyExists, InvalidRequest
from app.quotas import tenants as acts
from app.quotas.tables import tenants
from app.quotas.wanted import TENANT

router = APIRouter(prefix="/tenants")
STATES = (("any", "All"), ("active", "Active"), ("suspended", "Suspended"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Page[Any]):
    """Tenants by id, and of each the budget that is nearest to its limit, where it has one."""

    tightest: Mapping[str, Any]


@router.get("")
async def listed(request: Request, _: Viewer) -> Response:
    """A page of them. Also what the search field fetches while somebody types."""
    return await _shown(request)


@router.post("")
async def create(request: Request, session: Operator) -> Response:
    """Make one: every tier and no limits; the next page sets them."""
    form = await read_form(request)
    try:
        wanted = tenant_wanted(form)
        async with services_of(request).transaction() as conn:
            made = await acts.create_tenant(conn, wanted, actor=session.actor, reason=why_of(form))
    except (InvalidRequest, AlreadyExists) as error:
        entered = {name: text_of(form, name) for name in ("id", "display_name", "reason")}
        return await _shown(request, problem=error.detail, status=422, entered=entered)
    return go(request, f"{PREFIX}/tenants/{made.id}", said="saved")


async def _shown(request: Request, **values: Any) -> Response:
    listing = listing_of(request, f"{PREFIX}/tenants", ("q", "state"))

    def search(_: datetime) -> Search:
        state = listing.read("state", one_of([name for name, _ in STATES])) or "any"
        q, after = listing.get("q"), listing.read_cursor(_id)
        return lambda conn: _page_of(conn, q, state, after)

    values = {"problem": None, "entered": {}} | values
    return await list_page(
        request, "tenants.html", listing, search, section="tenants", states=STATES, budget_name=budget_name, **values
    )


async def _page_of(conn: AsyncConnection, q: str | None, state: str, after: str | None) -> Found:
    query = select(
        tenants.c.id, tenants.c.display_name, tenants.c.weight, tenants.c.tiers, tenants.c.max_running_jobs,
        tenants.c.max_queued_jobs, tenants.c.requests_per_minute, tenants.c.suspended_at,
    ).order_by(tenants.c.id).limit(PAGE_SIZE + 1)  # fmt: skip
    if q:
        # Thousands of rows: read one by one in some milliseconds.
        query = query.where(
            or_(tenants.c.id.icontains(q, autoescape=True), tenants.c.display_name.icontains(q, autoescape=True))
        )
    if state != "any":
        is_suspended = tenants.c.suspended_at.is_not(None)
        query = query.where(is_suspended if state == "suspended" else ~is_suspended)
    if after is not None:
        query = query.where(tenants.c.id > after)
    rows = list((await conn.execute(query)).all())
    shown = rows[:PAGE_SIZE]
    tightest = await tightest_budgets(conn, [each.id for each in shown])
    return Found(shown, shown[-1].id if len(rows) > PAGE_SIZE else None, tightest=tightest)


def _id(text: str, name: str) -> str:
    if not re.fullmatch(TENANT, text):
        raise InvalidRequest(f"{name}: isn't one that a page has given", param=name)
    return text
