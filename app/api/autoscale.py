"""How many workers should there be? GET /v1/autoscale, for operators and their autoscalers."""

import contextlib
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlalchemy.exc import SQLAlchemyError

from app.api.authentication import Admin
from app.api.documents import Described, answer
from app.api.openapi import problems, shows
from app.api.runtime import Runtime, runtime_of
from app.jobs.admission import objectives_of
from app.jobs.pool_figures import PoolFigures
from app.jobs.states import TIERS
from app.quotas.autoscale import desired_replicas
from app.quotas.pressure import tier_wait_s

router = APIRouter(prefix="/v1", tags=["operations"])
_FRESH_S = 2.0


class TierPressure(Described):
    """What waits in one tier."""

    jobs: int = Field(ge=0)
    tokens: int = Field(ge=0, description="prompt + n x max_tokens")
    predicted_wait_s: float | None = Field(description="Behind all of it; null where no rate is known.")
    objective_s: float


class PoolAutoscale(Described):
    """How many workers a pool should have."""

    object: Literal["pool.autoscale"]
    pool: str
    desired_replicas: int = Field(ge=0, description="What an autoscaler should aim at; hysteresis is in it.")
    needed: float | None = Field(description="Before rounding and hysteresis: workers at full load.")
    reason: str
    replicas: int = Field(ge=0, description="Workers that take jobs now.")
    running_jobs: int = Field(ge=0)
    served_tokens_per_s: float = Field(description="In the tokens that the queue counts.")
    drain_tokens_per_s: float | None = Field(
        description="Of all workers at full load; null where it was never measured."
    )
    load_s: float | None = Field(description="How long a worker takes to load the model.")
    age_s: float = Field(description="Of these figures.")
    figures: Literal["redis", "postgres", "last", "none"] = Field(description="Where the backlog was read.")
    tiers: dict[str, TierPressure]


class Autoscale(Described):
    """Every pool, by name."""

    object: Literal["list"]
    data: list[PoolAutoscale]


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
                "predicted_wait_s": _rounded(tier_wait_s(load, tier)),
                "objective_s": objectives_s[tier],
            }
            for tier in TIERS
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
