"""When will a waiting job start and end? From what is ahead of it, the measured rates, and how long its tenant's outputs are."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs.lengths import Lengths
from app.jobs.pool_figures import PoolFigures
from app.quotas.pressure import SPREAD, Ask, predicted_wait_s, soonest_wait_s

MOST_LOOKED_AT = 5000  # waiting jobs of the pool; who has more before it is taken to be behind all of its tenant's work
_FAR_S = 10 * 31_536_000.0  # beyond this nothing is said


@dataclass(frozen=True, slots=True)
class Ahead:
    """What the job's own tenant has waiting before it in its tier."""

    jobs: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """The job. `tokens`: prompt + n x max_tokens."""

    tier: str
    tokens: int
    max_tokens: int
    weight: float = 1.0  # of its tenant
    owed_tokens: float = 0.0  # of other tenants of its tier, that are claimed before its tenant's next turn


@dataclass(frozen=True, slots=True)
class Forecast:
    """`position` 1 is next. Times are None where no rate is known: no worker, or none that was ever full."""

    position: int
    start_p50: datetime | None
    start_p95: datetime | None
    finish_p50: datetime | None
    finish_p95: datetime | None


# Nearest first, so that the look is bounded however long the queue is.
_AHEAD = text("""
    WITH me AS (SELECT id, pool, tier, tenant_id, eligible_at FROM jobs WHERE id = :id AND status = 'queued'),
    before AS (
        SELECT j.tenant_id, j.tier, j.prompt_tokens + j.n * j.max_tokens AS tokens
        FROM jobs j WHERE j.pool = (SELECT pool FROM me) AND j.status = 'queued' AND j.not_before IS NULL
          AND (j.eligible_at, j.id) < (SELECT eligible_at, id FROM me)
        ORDER BY j.eligible_at DESC, j.id DESC LIMIT :most)
    SELECT count(*) AS looked_at,
           count(*) FILTER (WHERE before.tenant_id = me.tenant_id AND before.tier = me.tier) AS jobs,
           coalesce(sum(tokens) FILTER (WHERE before.tenant_id = me.tenant_id AND before.tier = me.tier), 0)::bigint AS tokens
    FROM before, me
""")


async def ahead_of(conn: AsyncConnection, job_id: UUID, *, own_tokens: int, most: int = MOST_LOOKED_AT) -> Ahead:
    """What waits before the job; `own_tokens`: all that its tenant has there, for a queue too long to look at."""
    row = (await conn.execute(_AHEAD, {"id": job_id, "most": most})).one()
    if row.looked_at < most:
        return Ahead(row.jobs, row.tokens)
    mean = row.tokens / row.jobs if row.jobs else 1.0
    tokens = max(row.tokens, own_tokens)
    return Ahead(max(row.jobs, int(tokens / mean)), tokens)


def forecast(figures: PoolFigures | None, job: Waiting, ahead: Ahead, lengths: Lengths, *, now: datetime) -> Forecast:
    """Half of such jobs start and end before the p50 times, 19 of 20 before the p95 times, as far as the past is a guide.

    p50 of the start is as if nothing more came, p95 as if all tiers kept having work, and half more; lengths likewise. `now` is
    what the times count from.
    """
    if figures is None:
        return Forecast(ahead.jobs + 1, None, None, None, None)
    # Without the job itself; the figures may also be older than what is ahead.
    seen = figures.load.tier(job.tier)
    others = replace(seen, tokens=max(seen.tokens - job.tokens, ahead.tokens), jobs=max(seen.jobs - 1, ahead.jobs))
    load = replace(figures.load, tiers={**figures.load.tiers, job.tier: others})
    ask = Ask(job.tier, 0, own_tokens=ahead.tokens, weight=job.weight, owed_tokens=job.owed_tokens)
    position = 1 + min(ahead.jobs * max(1, others.tenants), others.jobs)
    soonest, wait = soonest_wait_s(load, ask), predicted_wait_s(load, ask)
    if soonest is None or wait is None:
        return Forecast(position, None, None, None, None)
    late = wait * SPREAD
    pace = load.pace_of(job.tier)
    finish_p50 = None if pace is None else soonest + job.max_tokens * lengths.usual * pace
    finish_p95 = None if pace is None else late + job.max_tokens * lengths.most * pace * SPREAD
    return Forecast(position, *(_at(now, each) for each in (soonest, late, finish_p50, finish_p95)))


def _at(now: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None or seconds > _FAR_S else now + timedelta(seconds=seconds)
