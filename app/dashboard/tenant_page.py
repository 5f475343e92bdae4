"""What is known of one tenant? The page that its budgets, limits, keys and usage stand on, and what is shown again after each act."""

from typing import Annotated, Any

from fastapi import Path, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import text

from app.dashboard.assets import PREFIX
from app.dashboard.budget_figures import UNITS, budget_name, outlook
from app.dashboard.pages import SAYINGS, is_htmx, page
from app.dashboard.services import Services, services_of
from app.dashboard.usage import BYS, SPANS
from app.db import database_now
from app.jobs.states import TIERS
from app.queue.keys import PoolKeys
from app.quotas.budget_acts import list_budgets
from app.quotas.key_acts import FreshKey, list_keys
from app.quotas.tenants import read_tenant
from app.quotas.wanted import METRICS, PERIODS, SCOPES, TENANT
from app.redis import RedisError

TenantPath = Annotated[str, Path(pattern=TENANT)]
MOST_BUDGETS = 200
MOST_KEYS = 200
_RUNNING = text(
    "SELECT tier, count(*) AS jobs FROM jobs WHERE status = 'running' AND tenant_id = :tenant GROUP BY tier"
)

LIMIT_NAMES = {
    "max_running_jobs": ("Jobs that run at once", "jobs"),
    "max_queued_jobs": ("Jobs that may wait", "jobs"),
    "max_queued_tokens": ("Tokens that may wait", "tokens"),
    "max_prompt_tokens": ("Longest prompt", "tokens"),
    "max_output_tokens": ("Most output of a job", "tokens"),
    "requests_per_minute": ("Requests a minute", "per min"),
    "request_burst": ("Requests at once", "requests"),
    "tokens_per_minute": ("Tokens a minute", "per min"),
    "token_burst": ("Tokens at once", "tokens"),
}


async def tenant_page(
    request: Request, tenant_id: str, *, edit: str = "", problem: str | None = None, problem_at: str = "",
    status: int = 200, said: str = "", fresh: FreshKey | None = None, entered: dict[str, list[str]] | None = None,
) -> Response:  # fmt: skip
    """The page. `edit` names what is being edited: `limits` or a budget's id; `problem_at` where the problem is shown.

    Raises:
        NotFound: there is no such tenant.
    """
    services = services_of(request)
    async with services.transaction() as conn:
        tenant = await read_tenant(conn, tenant_id)
        budgets = await list_budgets(conn, tenant_id, limit=MOST_BUDGETS)
        keys = await list_keys(conn, tenant_id, limit=MOST_KEYS)
        running = {row.tier: row.jobs for row in await conn.execute(_RUNNING, {"tenant": tenant_id})}
        now = await database_now(conn)
    values: dict[str, Any] = {"said": SAYINGS[said]} if said else {}
    return page(
        request, "tenant.html", section="tenants", title=tenant.id, status=status, tenant=tenant,
        budgets=[(each, outlook(each, now)) for each in budgets], keys=keys, waiting=await _waiting(services, tenant_id),
        running=running, tiers=TIERS, edit=edit, problem=problem, problem_at=problem_at, fresh=fresh, entered=entered or {},
        limit_names=LIMIT_NAMES, budget_name=budget_name, units=UNITS, metrics=METRICS, periods=PERIODS, scopes=SCOPES,
        most_keys=MOST_KEYS, bys=BYS, spans=SPANS, **values,
    )  # fmt: skip


async def done(request: Request, tenant_id: str, said: str) -> Response:
    """After an act: the page as it is now, of which htmx takes its part; a browser without it is sent there."""
    if is_htmx(request):
        return await tenant_page(request, tenant_id, said=said)
    return RedirectResponse(f"{PREFIX}/tenants/{tenant_id}?said={said}", 303)


async def _waiting(services: Services, tenant_id: str) -> list[tuple[str, str, int]] | None:
    """Pool, tier, jobs that wait there, where there are any; None while Redis is away."""
    places = [(pool, tier) for pool in services.loads.pools() for tier in TIERS]
    try:
        async with services.redis.pipeline(transaction=False) as pipe:
            for pool, tier in places:
                pipe.xlen(PoolKeys(pool).stream(tier, tenant_id))
            lengths = await pipe.execute() if places else []
    except RedisError:
        return None
    return [(*place, int(length)) for place, length in zip(places, lengths, strict=True) if length]
