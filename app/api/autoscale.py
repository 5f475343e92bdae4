"""How many workers should there be? GET /v1/autoscale, for operators and their autoscalers."""

import contextlib
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from app.api.authentication import Admin
from app.api.documents import Autoscale, answer
from app.api.openapi import problems, shows
from app.api.runtime import Runtime, runtime_of
from app.jobs.admission import objectives_of
from app.jobs.pool_figures import PoolFigures, whole_wait_s
from app.jobs.states import TIERS
from app.quotas.autoscale import desired_replicas

router = APIRouter(prefix="/v1", tags=["operations"])
_FRESH_S = 2.0


@router.get(
    "/autoscale",
    operation_id="autoscale",
    summary="How many workers each pool should have",
    responses=shows(200, "Every pool, by name.", Autoscale) | problems(401, 403, 503),
)
async def autoscale(request: Request, _: Admin) -> Response:
    """By what waits and what is served, the tiers' objectives, and how long a worker takes to load."""
    runtime = runtime_of(request)
    oldest = max((runtime.loads.age_s(pool) or 0.0 for pool in runtime.loads.pools()), default=_FRESH_S)
    if oldest >= _FRESH_S:
        with contextlib.suppress(SQLAlchemyError, OSError):  # then the last figures, with their age
            await runtime.loads.refresh()
    return answer({"object": "list", "data": pools_now(runtime)})


def pools_now(runtime: Runtime) -> list[dict[str, Any]]:
    """Each pool's figures, from memory."""
    found = []
    for pool in runtime.loads.pools():
        figures = runtime.loads.figures(pool)
        if figures is not None:
            found.append(_pool(runtime, pool, figures))
    return found


def _pool(runtime: Runtime, pool: str, figures: PoolFigures) -> dict[str, Any]:
    load, objectives_s = figures.load, objectives_of(runtime.settings)
    desired = desired_replicas(
        load,
        served_per_s=figures.served_per_s,
        per_worker=figures.per_worker,
        load_s=figures.load_s or 0.0,
        running=figures.running,
        objectives_s=objectives_s,
    )
    return {
        "object": "pool.autoscale",
        "pool": pool,
        "desired_replicas": desired.replicas,
        "needed": None if desired.needed is None else round(desired.needed, 3),
        "reason": desired.reason,
        "replicas": load.num_workers,
        "running_jobs": figures.running,
        "served_tokens_per_s": round(figures.served_per_s, 1),
        "drain_tokens_per_s": None if load.drain_per_s is None else round(load.drain_per_s, 1),
        "load_s": figures.load_s,
        "age_s": round(runtime.loads.age_s(pool) or 0.0, 3),
        "figures": figures.source,
        "tiers": {
            tier: {
                "jobs": load.tier(tier).jobs,
                "tokens": load.tier(tier).tokens,
                # Behind all of it, as the tier's largest tenant.
                "predicted_wait_s": _rounded(whole_wait_s(load, tier)),
                "objective_s": objectives_s[tier],
            }
            for tier in TIERS
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
