"""Who are the tenants? /admin/tenants: searched, paged by id, with the budget that is nearest to its limit; and one more is made."""

from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import or_, select

from app.dashboard.access import Operator, Viewer
from app.dashboard.assets import PREFIX
from app.dashboard.budget_figures import budget_name, tightest_budgets
from app.dashboard.forms import read_form, text_of, why_of
from app.dashboard.pages import go, page
from app.dashboard.services import services_of
from app.dashboard.tenant_forms import tenant_wanted
from app.errors import AlreadyExists, InvalidRequest
from app.quotas import tenants as acts
from app.quotas.tables import tenants

router = APIRouter(prefix="/tenants")
PAGE_SIZE = 50
STATES = (("any", "All"), ("active", "Active"), ("suspended", "Suspended"))


@router.get("")
async def listed(request: Request, _: Viewer, q: str = "", state: str = "any", after: str = "") -> Response:
    """A page of them. Also what the search field fetches while somebody types."""
    return await _shown(request, q=q, state=state, after=after)


@router.post("")
async def create(request: Request, session: Operator) -> Response:
    """Make one: every tier and no limits; the next page sets them."""
    form = await read_form(request)
    try:
        wanted = tenant_wanted(form)
        async with services_of(request).transaction() as conn:
            made = await acts.create_tenant(conn, wanted, actor=session.actor, reason=why_of(form))
    except (InvalidRequest, AlreadyExists) as error:
        return await _shown(
            request, problem=error.detail, status=422,
            entered={"id": text_of(form, "id"), "display_name": text_of(form, "display_name"),
                     "reason": text_of(form, "reason")},
        )  # fmt: skip
    return go(request, f"{PREFIX}/tenants/{made.id}", said="saved")


async def _shown(
    request: Request, *, q: str = "", state: str = "any", after: str = "", problem: str | None = None, status: int = 200,
    entered: dict[str, str] | None = None,
) -> Response:  # fmt: skip
    q = q.strip()[:100]
    query = select(
        tenants.c.id, tenants.c.display_name, tenants.c.weight, tenants.c.tiers, tenants.c.max_running_jobs,
        tenants.c.max_queued_jobs, tenants.c.requests_per_minute, tenants.c.suspended_at,
    ).order_by(tenants.c.id).limit(PAGE_SIZE + 1)  # fmt: skip
    if q:
        # Thousands of rows: read one by one in some milliseconds.
        query = query.where(
            or_(tenants.c.id.icontains(q, autoescape=True), tenants.c.display_name.icontains(q, autoescape=True))
        )
    if state in {"active", "suspended"}:
        is_suspended = tenants.c.suspended_at.is_not(None)
        query = query.where(is_suspended if state == "suspended" else ~is_suspended)
    if after:
        query = query.where(tenants.c.id > after)
    async with services_of(request).transaction() as conn:
        rows: list[Any] = list((await conn.execute(query)).all())
        tightest = await tightest_budgets(conn, [each.id for each in rows[:PAGE_SIZE]])
    return page(
        request, "tenants.html", section="tenants", status=status, rows=rows[:PAGE_SIZE], has_more=len(rows) > PAGE_SIZE,
        tightest=tightest, q=q, state=state, states=STATES, after=after, problem=problem, entered=entered or {},
        budget_name=budget_name,
    )  # fmt: skip
