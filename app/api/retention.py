"""How do operators see what is deleted? /v1/admin/retention, for keys with the scope `admin`."""

import asyncio
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from app.api.authentication import Admin
from app.api.documents import Described, answer
from app.api.openapi import problems, shows
from app.api.runtime import runtime_of
from app.errors import Unavailable
from app.quotas.acts import record_act
from app.redis import RedisError
from app.retention.dispatch import enqueue_run, open_queue
from app.retention.overview import overview
from app.settings import Settings
from app.webhooks.dispatch import connect_rq

_RUNS = 20

router = APIRouter(prefix="/v1/admin/retention", tags=["operations"])


class RetentionRun(Described):
    """One run, or the one under way."""

    id: str
    asked_by: str = Field(description="`schedule`, or an operator.")
    host: str
    started_at: datetime
    ended_at: datetime | None
    step: str = Field(description="What it is at, or was at its end.")
    rows: dict[str, int] = Field(description="Deleted or emptied, by table.")
    outcome: Literal["done", "more", "failed", "lost"] | None = Field(
        description="`more`: its time was up, and the next one goes on. `lost`: its process died. Null: it runs."
    )
    error: str | None


class TenantRetention(Described):
    """A tenant that says for itself how long something is kept."""

    tenant: str
    retention_days: int | None = Field(description="Null: as the setting says.")
    content_retention_s: int | None = Field(description="Null: as long as the job.")


class RetentionObject(Described):
    """What is kept for how long, and what was deleted."""

    object: Literal["retention"]
    retention_days: int | None = Field(description="Null: for ever.")
    usage_retention_days: int | None
    output_retention_s: float | None
    runs: list[RetentionRun] = Field(description="The newest first.")
    totals: dict[str, int] = Field(description="Of all runs, by table.")
    tenants: list[TenantRetention] = Field(description="By id, the first 1000.")


class RetentionAsked(Described):
    """A run was asked for."""

    object: Literal["retention.asked"]
    asked: bool = Field(description="False: enough are asked for already.")


@router.get(
    "",
    operation_id="getRetention",
    summary="See what is deleted and when",
    responses=shows(200, "Settings, runs, sums.", RetentionObject) | problems(401, 403, 503),
)
async def read_retention(request: Request, _: Admin) -> Response:
    """What is kept for how long, the newest runs, and what all of them have deleted."""
    runtime = runtime_of(request)
    async with runtime.transaction() as conn:
        found = await overview(conn, limit=_RUNS)
    settings = runtime.settings
    body: dict[str, Any] = {
        "object": "retention",
        "retention_days": settings.retention_days,
        "usage_retention_days": settings.usage_retention_days,
        "output_retention_s": settings.output_retention_s,
        "runs": [asdict(each) | {"id": str(each.id)} for each in found.runs],
        "totals": found.totals,
        "tenants": [asdict(each) for each in found.tenants],
    }
    return answer(body)


@router.post(
    "/runs",
    operation_id="runRetention",
    summary="Delete what has had its time, now",
    status_code=202,
    responses=shows(202, "A maintenance process makes the run.", RetentionAsked) | problems(401, 403, 503),
)
async def run_retention(request: Request, admin: Admin) -> Response:
    """It is made by whichever maintenance process is first, unless one is under way."""
    runtime = runtime_of(request)
    async with runtime.transaction() as conn:
        await record_act(conn, admin.actor, "retention.run", "retention", {"here": False})
    try:
        asked = await asyncio.to_thread(_ask, runtime.settings, admin.actor)
    except (RedisError, OSError) as error:
        raise Unavailable("Redis doesn't answer now; the schedule makes a run all the same") from error
    return answer({"object": "retention.asked", "asked": asked}, 202)


def _ask(settings: Settings, actor: str) -> bool:
    with connect_rq(settings) as redis:
        return enqueue_run(open_queue(redis), actor)
