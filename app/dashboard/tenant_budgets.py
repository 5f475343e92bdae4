"""How are a tenant's budgets made, changed in place, previewed and retired on its page?"""

from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from app.dashboard.access import Operator
from app.dashboard.budget_figures import UNITS
from app.dashboard.figures import grouped, money
from app.dashboard.forms import conflict_of, read_form, text_of, why_of
from app.dashboard.pages import page
from app.dashboard.previews import preview_budget
from app.dashboard.services import services_of
from app.dashboard.tenant_forms import budget_change, budget_wanted
from app.dashboard.tenant_page import TenantPath, done, tenant_page
from app.errors import AlreadyExists, BudgetRetired, ChangedMeanwhile, InvalidRequest, NotFound
from app.quotas import budget_acts as acts
from app.quotas.budget_acts import BudgetView

router = APIRouter(prefix="/tenants/{tenant}/budgets")


@router.post("")
async def create(request: Request, tenant: TenantPath, session: Operator) -> Response:
    """Make a budget; it counts what is submitted from now on."""
    form = await read_form(request)
    try:
        async with services_of(request).transaction() as conn:
            await acts.create_budget(conn, tenant, budget_wanted(form), actor=session.actor, reason=why_of(form))
    except (InvalidRequest, AlreadyExists) as error:
        return await tenant_page(
            request, tenant, problem=error.detail, problem_at="new-budget", status=422, entered=form
        )
    return await done(request, tenant, "saved")


@router.post("/{budget}")
async def change(request: Request, tenant: TenantPath, budget: UUID, session: Operator) -> Response:
    """Another limit, other thresholds, from the next submission on."""
    form = await read_form(request)
    try:
        async with services_of(request).transaction() as conn:
            before = await _of_tenant(conn, tenant, budget)
            change = budget_change(form, before.metric)
            await acts.change_budget(
                conn, budget, change, actor=session.actor, seen=text_of(form, "seen"), reason=why_of(form)
            )
    except (InvalidRequest, BudgetRetired, ChangedMeanwhile) as error:
        problem, status = error.detail, 422
        if isinstance(error, ChangedMeanwhile):
            problem, status = (
                conflict_of(error, form, amounts=("limit",) if before.metric == "cost" else ()),
                error.status,
            )
        return await tenant_page(
            request, tenant, edit=str(budget), problem=problem, problem_at=str(budget), status=status, entered=form
        )
    return await done(request, tenant, "saved")


@router.post("/{budget}/preview")
async def preview(request: Request, tenant: TenantPath, budget: UUID, _: Operator) -> Response:
    """What the limit in the form would refuse."""
    form = await read_form(request)
    async with services_of(request).transaction() as conn:
        now = await _of_tenant(conn, tenant, budget)
        try:
            limit = budget_change(form, now.metric).limit
        except InvalidRequest as error:
            return page(request, "preview.html", lines=[], problem=error.detail, status=422)
        shown = money if now.metric == "cost" else grouped
        lines = await preview_budget(conn, now, limit, unit=UNITS[now.metric], shown=shown)
    return page(request, "preview.html", lines=lines, problem=None)


@router.post("/{budget}/retire")
async def retire(request: Request, tenant: TenantPath, budget: UUID, session: Operator) -> Response:
    """Let it apply no more; its windows and its ledger stay."""
    form = await read_form(request)
    try:
        async with services_of(request).transaction() as conn:
            await _of_tenant(conn, tenant, budget)
            await acts.retire_budget(conn, budget, actor=session.actor, reason=why_of(form))
    except InvalidRequest as error:
        return await tenant_page(request, tenant, problem=error.detail, problem_at="budgets", status=422)
    return await done(request, tenant, "done")


async def _of_tenant(conn: AsyncConnection, tenant: str, budget: UUID) -> BudgetView:
    found = await acts.read_budget(conn, budget)
    if found.tenant_id != tenant:
        raise NotFound(f"{tenant} has no budget {budget}")
    return found
