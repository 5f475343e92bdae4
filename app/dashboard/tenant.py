"""What may one tenant have? /admin/tenants/{id}: limits edited in place with a preview, suspended and resumed; usage over time, as CSV, too."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response

from app.dashboard.access import Operator, Viewer
from app.dashboard.forms import conflict_of, read_form, text_of, why_of
from app.dashboard.pages import page
from app.dashboard.previews import preview_limits
from app.dashboard.services import services_of
from app.dashboard.tenant_forms import tenant_change
from app.dashboard.tenant_page import TenantPath, done, tenant_page
from app.dashboard.usage import BYS, SPANS, By, Span, as_csv, read_usage, series, span_of
from app.db import database_now
from app.errors import ChangedMeanwhile, InvalidRequest
from app.operators.sessions import Session
from app.quotas import tenants as acts
from app.quotas.wanted import Because, checked

router = APIRouter(prefix="/tenants/{tenant}")


@router.get("")
async def shown(request: Request, tenant: TenantPath, _: Viewer, edit: str = "") -> Response:
    """The page; `edit` opens a form in it."""
    return await tenant_page(request, tenant, edit=edit)


@router.post("/limits")
async def change_limits(request: Request, tenant: TenantPath, session: Operator) -> Response:
    """Weight, tiers, caps and rates, all at once: what is empty is no limit."""
    form = await read_form(request)
    try:
        change = tenant_change(form)
        async with services_of(request).transaction() as conn:
            await acts.change_tenant(
                conn, tenant, change, actor=session.actor, seen=text_of(form, "seen"), reason=why_of(form)
            )
    except (InvalidRequest, ChangedMeanwhile) as error:
        problem = conflict_of(error, form) if isinstance(error, ChangedMeanwhile) else error.detail
        return await tenant_page(
            request, tenant, edit="limits", problem=problem, problem_at="limits", status=error.status, entered=form
        )
    return await done(request, tenant, "saved")


@router.post("/limits/preview")
async def limits_preview(request: Request, tenant: TenantPath, _: Operator) -> Response:
    """What these limits would refuse."""
    form = await read_form(request)
    try:
        wanted = tenant_change(form).given()
    except InvalidRequest as error:
        return page(request, "preview.html", lines=[], problem=error.detail, status=422)
    async with services_of(request).transaction() as conn:
        now = await acts.read_tenant(conn, tenant)
        change = {name: value for name, value in wanted.items() if value != getattr(now, name)}
        lines = await preview_limits(conn, now, change) if change else []
    return page(request, "preview.html", lines=lines, problem=None)


@router.post("/suspend")
async def suspend(request: Request, tenant: TenantPath, session: Operator) -> Response:
    """Take no new jobs; those that were accepted run on."""
    return await _because(request, tenant, session, acts.suspend_tenant)


@router.post("/resume")
async def resume(request: Request, tenant: TenantPath, session: Operator) -> Response:
    """Take its jobs again."""
    return await _because(request, tenant, session, acts.resume_tenant)


@router.get("/usage")
async def usage(request: Request, tenant: TenantPath, _: Viewer, by: By = "model", span: Span = "day") -> Response:
    """The part of the page with the chart."""
    async with services_of(request).transaction() as conn:
        await acts.read_tenant(conn, tenant)
        since, until, step = span_of(span, await database_now(conn))
        found = await read_usage(conn, tenant, since=since, until=until, step=step)
    return page(
        request,
        "usage.html",
        tenant_id=tenant,
        usage=found,
        chart=series(found, by),
        by=by,
        span=span,
        bys=BYS,
        spans=SPANS,
    )


@router.get("/usage.csv")
async def usage_csv(request: Request, tenant: TenantPath, _: Viewer, span: Span = "month") -> Response:
    """What the chart is drawn from, a row an hour or day, model, tier and key."""
    async with services_of(request).transaction() as conn:
        await acts.read_tenant(conn, tenant)
        since, until, step = span_of(span, await database_now(conn))
        found = await read_usage(conn, tenant, since=since, until=until, step=step)
    name = f"usage-{tenant}-{since:%Y%m%d}-{until:%Y%m%d}.csv"
    return Response(
        as_csv(tenant, found.rows), media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )  # fmt: skip


async def _because(
    request: Request, tenant: str, session: Session, act: Callable[..., Awaitable[acts.Tenant]]
) -> Response:
    form = await read_form(request)
    try:
        reason = checked(Because, {"reason": text_of(form, "reason")}).reason
    except InvalidRequest as error:
        return await tenant_page(request, tenant, problem=error.detail, problem_at="head", status=422)
    async with services_of(request).transaction() as conn:
        await act(conn, tenant, actor=session.actor, reason=reason)
    return await done(request, tenant, "done")
