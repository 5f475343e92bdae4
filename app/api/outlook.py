"""What does the API tell of what lies before a waiting job? In a transaction of its own, or from memory alone at its submission."""

from datetime import UTC, datetime
from uuid import UUID

from app.api.runtime import Runtime
from app.jobs.forecast import Ahead, Forecast, Waiting, forecast
from app.jobs.outlook import Outlook, outlook_of
from app.jobs.prepare import PreparedJob
from app.jobs.read import JobView


async def outlook(runtime: Runtime, tenant_id: str, job_id: UUID) -> Outlook | None:
    """By a look at the job's row and at what is ahead of it; None where the tenant has no such job."""
    async with runtime.transaction() as conn:
        return await outlook_of(conn, runtime.loads, runtime.lengths, tenant_id, job_id)


def outlook_of_quote(runtime: Runtime, tenant_id: str, job: PreparedJob) -> Forecast:
    """From memory alone, of a job that isn't submitted: behind all that its tenant has waiting."""
    pool, tier, loads = job.model.pool, job.request.tier, runtime.loads
    weight, owed = loads.weight_of(pool, tier, tenant_id), loads.owed_tokens(pool, tier, tenant_id)
    waiting = Waiting(tier, job.cost, job.max_tokens, weight, owed)
    lengths, now = runtime.lengths.of(tenant_id, job.model.name), datetime.fromtimestamp(runtime.clock.now(), UTC)
    return forecast(loads.figures(pool), waiting, _ahead_in(runtime, pool, tier, tenant_id, 0), lengths, now=now)


def outlook_at_submission(runtime: Runtime, job: JobView) -> Forecast | None:
    """From memory alone: behind all that its tenant has waiting. Its own tokens are among that already."""
    if job.status != "queued":
        return None
    cost = job.prompt_tokens + job.n * job.max_tokens
    figures = runtime.loads.figures(job.pool)
    ahead = _ahead_in(runtime, job.pool, job.tier, job.tenant_id, cost)
    lengths = runtime.lengths.of(job.tenant_id, job.model)
    weight = runtime.loads.weight_of(job.pool, job.tier, job.tenant_id)
    owed = runtime.loads.owed_tokens(job.pool, job.tier, job.tenant_id)
    return forecast(figures, Waiting(job.tier, cost, job.max_tokens, weight, owed), ahead, lengths, now=job.created_at)


def _ahead_in(runtime: Runtime, pool: str, tier: str, tenant_id: str, own_cost: int) -> Ahead:
    own_tokens = max(0, runtime.loads.own_tokens(pool, tier, tenant_id) - own_cost)
    figures = runtime.loads.figures(pool)
    mean = figures.load.tier(tier).mean_tokens if figures else 0.0
    return Ahead(round(own_tokens / mean) if mean else 0, own_tokens)
