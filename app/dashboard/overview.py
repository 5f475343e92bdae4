"""How does it go now? /admin/overview: tokens a second, queues, waits, refusals, workers; it refreshes itself."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import text

from app.dashboard.access import Viewer
from app.dashboard.history import History
from app.dashboard.pages import page
from app.dashboard.services import Services, services_of
from app.jobs.admission import objectives_of
from app.jobs.live import LiveWorker, live_workers
from app.jobs.pool_figures import Source
from app.jobs.states import TIERS
from app.queue.decisions import read_decisions
from app.quotas.pressure import tier_wait_s
from app.redis import RedisError

router = APIRouter(prefix="/overview")
REFUSED_MINUTES = 15
MOST_WORKERS = 200  # that are shown one by one
# Only what runs: a partial index has it, and it is as much as the workers hold.
_RUNNING = text("SELECT pool, tier, count(*) AS jobs FROM jobs WHERE status = 'running' GROUP BY pool, tier")

REASONS = {
    "tier_wait": "the tier's predicted wait is too long",
    "tier_tokens": "too many tokens wait in the tier",
    "pool_tokens": "too many tokens wait in the pool",
    "share": "the tenant's share of the tier is used up",
    "deadline": "its deadline couldn't be met",
    "booked": "others were given the next places",
    "breaker": "the model's circuit breaker is open",
    "budget": "a budget can't hold it",
    "rate": "faster than a rate limit",
    "tenant": "a limit of the tenant, or it is suspended",
}


@dataclass(frozen=True, slots=True)
class TierNow:
    """One tier of one pool."""

    pool: str
    tier: str
    queued: int
    tokens: int
    tenants: int
    running: int
    tokens_per_s: float
    wait_s: float | None
    objective_s: float


@dataclass(frozen=True, slots=True)
class Now:
    """All that the overview shows of one moment. `refused` is None while Redis is away."""

    tiers: list[TierNow]
    workers: list[LiveWorker]
    refused: Counter[str] | None
    accepted: int
    source: Source
    age_s: float

    @property
    def tokens_per_s(self) -> float:
        """Of all workers: prompts computed and output."""
        return sum(figure(each, "served_tokens_per_s") for each in self.workers if not each.is_expired)

    @property
    def unserved(self) -> dict[str, int]:
        """Jobs that wait, of each pool for which no worker holds a lease."""
        served = {each.pool for each in self.workers if not each.is_expired}
        waiting: Counter[str] = Counter()
        for each in self.tiers:
            if each.pool not in served and each.queued:
                waiting[each.pool] += each.queued
        return dict(waiting)

    @property
    def ready(self) -> int:
        """Workers that take jobs."""
        return sum(each.state == "ready" and not each.is_expired for each in self.workers)


@router.get("")
async def overview(request: Request, _: Viewer) -> Response:
    """The page."""
    return page(request, "overview.html", section="overview", **await _values(request))


@router.get("/live")
async def live(request: Request, _: Viewer) -> Response:
    """What of it changes."""
    return page(request, "overview_live.html", section="overview", **await _values(request))


@router.get("/history/live")
async def history(request: Request, _: Viewer) -> Response:
    """The charts' samples: [times], [tokens a second], then [queued jobs] of each tier."""
    return JSONResponse(_history(request).columns())


async def now(services: Services) -> Now:
    """Read it.

    Raises:
        SQLAlchemyError: Postgres doesn't answer.
    """
    async with services.transaction() as conn:
        workers = await live_workers(conn)
        running = {(row.pool, row.tier): row.jobs for row in await conn.execute(_RUNNING)}
    try:
        decided = await read_decisions(services.redis, int(services.clock.now() // 60), minutes=REFUSED_MINUTES)
    except RedisError:
        decided = None
    tiers, objectives = [], objectives_of(services.settings)
    sources: list[Source] = []
    for pool in services.loads.pools():
        figures = services.loads.figures(pool)
        if figures is None:
            continue
        sources.append(figures.source)
        for tier in TIERS:
            backlog = figures.load.tier(tier)
            served = sum(
                float((each.stats.get("served_by_tier") or {}).get(tier, 0.0))
                for each in workers
                if each.pool == pool and not each.is_expired
            )
            tiers.append(
                TierNow(
                    pool, tier, backlog.jobs, backlog.tokens, backlog.tenants, running.get((pool, tier), 0), served,
                    tier_wait_s(figures.load, tier), objectives[tier],
                )
            )  # fmt: skip
    refused = None
    if decided is not None:
        refused = Counter({name.partition(":")[2]: n for name, n in decided.items() if name.startswith("refused:")})
    return Now(
        tiers, workers, refused, sum(n for name, n in (decided or {}).items() if name.startswith("accepted:")),
        "redis" if all(each == "redis" for each in sources) else next(each for each in sources if each != "redis"),
        max((services.loads.age_s(pool) or 0.0 for pool in services.loads.pools()), default=0.0),
    )  # fmt: skip


def figure(worker: LiveWorker, name: str) -> float:
    """A number of the worker's last report; 0 where it has none."""
    return float(worker.stats.get(name) or 0.0)


def health(worker: LiveWorker) -> tuple[str, str]:
    """A word for it, and the badge's colour."""
    if worker.is_expired:
        return "lease expired", "bad"
    if worker.state == "draining":
        return "draining", "warn"
    return "ready", "good"


def _history(request: Request) -> History:
    found: History = request.app.state.history
    return found


async def _values(request: Request) -> dict[str, Any]:
    services = services_of(request)
    return {
        "now": await now(services),
        "sample": _history(request).latest,
        "reasons": REASONS,
        "minutes": REFUSED_MINUTES,
        "most_workers": MOST_WORKERS,
        "figure": figure,
        "health": health,
    }
