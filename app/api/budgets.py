"""How do operators manage budgets over HTTP? /v1/admin/tenants/{id}/budgets and /v1/admin/budgets, for keys with the scope `admin`."""

import re
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response

from app.api.authentication import Admin
from app.api.body import parse_body, read_body
from app.api.documents import answer
from app.api.id_paging import page_answer, parse_id_page, query_of
from app.api.openapi import body_of, problems, shows
from app.api.preconditions import IF_MATCH, VERSION, etag, precondition
from app.api.quota_documents import BudgetObject, BudgetPage, budget_object
from app.api.runtime import runtime_of
from app.api.tenants import MAX_BODY_BYTES, TenantName, tenant_of
from app.errors import NotFound
from app.quotas import budget_acts
from app.quotas.tenants import read_tenant
from app.quotas.wanted import BudgetChange, BudgetWanted

_CHOICES = {"state": ("applying", "any")}
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"

router = APIRouter(prefix="/v1/admin", tags=["budgets"])

BudgetId = Annotated[str, Path(alias="id", description="The budget's UUID.")]


def _budget_id(given: str) -> UUID:
    if not re.fullmatch(_UUID, given):
        raise NotFound("there is no such budget: ids are UUIDs")
    return UUID(given)


@router.get(
    "/tenants/{id}/budgets",
    operation_id="listBudgets",
    summary="List a tenant's budgets",
    responses=shows(200, "A page of budgets with their current windows, oldest first.", BudgetPage)
    | problems(401, 403, 404, 422, 503),
    openapi_extra={"parameters": query_of(_CHOICES)},
)
async def page_of_budgets(request: Request, name: TenantName, _: Admin) -> Response:
    """Those of the tenant and of its keys that apply; `state=any`: the retired ones, too."""
    runtime = runtime_of(request)
    page = parse_id_page(
        request.query_params, default_limit=runtime.settings.page_size, id_pattern="[0-9a-f]{32}", choices=_CHOICES
    )
    async with runtime.transaction() as conn:
        tenant = await read_tenant(conn, tenant_of(name))
        found = await budget_acts.list_budgets(
            conn, tenant.id, limit=page.asks, after=page.after_id,
            retired=page.chosen.get("state") == "any",
        )  # fmt: skip
    return page_answer(found, page, budget_object, lambda each: each.id.hex)


@router.post(
    "/tenants/{id}/budgets",
    operation_id="createBudget",
    summary="Make a budget",
    status_code=201,
    responses=shows(201, "It is made, and counts from now on.", BudgetObject, VERSION)
    | problems(400, 401, 403, 404, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(BudgetWanted)},
)
async def create_budget(request: Request, name: TenantName, admin: Admin) -> Response:
    """One of a metric and period for a tenant, and one for each of its keys: all that apply must hold a job."""
    wanted = parse_body(await read_body(request, most=MAX_BODY_BYTES), BudgetWanted)
    async with runtime_of(request).transaction() as conn:
        made = await budget_acts.create_budget(conn, tenant_of(name), wanted, actor=admin.actor)
    return answer(budget_object(made), 201, {"Location": f"/v1/admin/budgets/{made.id}"} | etag(made.version))


@router.get(
    "/budgets/{id}",
    operation_id="getBudget",
    summary="Read a budget",
    responses=shows(200, "The budget with its current window.", BudgetObject, VERSION) | problems(401, 403, 404, 503),
)
async def read_budget(request: Request, name: BudgetId, _: Admin) -> Response:
    """How much of it is used, reserved and left now."""
    async with runtime_of(request).transaction() as conn:
        found = await budget_acts.read_budget(conn, _budget_id(name))
    return answer(budget_object(found), headers=etag(found.version))


@router.patch(
    "/budgets/{id}",
    operation_id="changeBudget",
    summary="Change a budget",
    responses=shows(200, "The budget as it is now.", BudgetObject, VERSION)
    | problems(400, 401, 403, 404, 409, 412, 413, 415, 422, 503),
    openapi_extra={"requestBody": body_of(BudgetChange), "parameters": [IF_MATCH]},
)
async def change_budget(request: Request, name: BudgetId, admin: Admin) -> Response:
    """A limit below what is used and reserved takes nothing back: nothing more is accepted in this window until there is room."""
    change = parse_body(await read_body(request, most=MAX_BODY_BYTES), BudgetChange)
    with precondition(request.headers) as seen:
        async with runtime_of(request).transaction() as conn:
            changed = await budget_acts.change_budget(conn, _budget_id(name), change, actor=admin.actor, seen=seen)
    return answer(budget_object(changed), headers=etag(changed.version))


@router.post(
    "/budgets/{id}/retire",
    operation_id="retireBudget",
    summary="Let a budget apply no more",
    responses=shows(200, "It is retired.", BudgetObject) | problems(401, 403, 404, 503),
)
async def retire_budget(request: Request, name: BudgetId, admin: Admin) -> Response:
    """Its ledger stays, and jobs that it holds are settled in it. Asking again changes nothing."""
    async with runtime_of(request).transaction() as conn:
        return answer(budget_object(await budget_acts.retire_budget(conn, _budget_id(name), actor=admin.actor)))
