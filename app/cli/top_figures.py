"""What is going on now? One picture of workers, tiers and busy tenants, by few and bounded queries: it may be taken each second."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.jobs.loads import LoadBoard
from app.jobs.states import TIERS
from app.quotas.pressure import tier_wait_s
from app.racing import at_most

MOST_WORKERS = 200
MOST_TENANTS = 10
MOST_COUNTED = 10_000  # waiting jobs of one tenant: more are shown as so many

WORKERS = text("""
    SELECT incarnation, pool, host, pid, device, state, stats,
           extract(epoch FROM statement_timestamp() - started_at)::float8 AS up_s,
           extract(epoch FROM statement_timestamp() - renewed_at)::float8 AS seen_s
    FROM workers WHERE ended_at IS NULL AND expires_at > statement_timestamp() ORDER BY pool, host, pid LIMIT :most
""")
RUNNING = text("SELECT pool, tier, count(*) AS jobs FROM jobs WHERE status = 'running' GROUP BY pool, tier")
# Who runs most; of those who only wait, such as are met among a thousand waiting jobs: all of a long queue isn't read.
TENANTS = text("""
    WITH running AS (
        SELECT tenant_id, count(*) AS jobs, sum(prompt_tokens + n * max_tokens) AS tokens
        FROM jobs WHERE status = 'running' GROUP BY tenant_id),
    waiting AS (SELECT DISTINCT tenant_id FROM (SELECT tenant_id FROM jobs WHERE status = 'queued' LIMIT 1000) met),
    busiest AS (
        SELECT tenant_id, coalesce(r.jobs, 0) AS running, coalesce(r.tokens, 0)::bigint AS tokens
        FROM running r FULL JOIN waiting w USING (tenant_id)
        ORDER BY coalesce(r.tokens, 0) DESC, tenant_id LIMIT :most)
    SELECT b.tenant_id, b.running, b.tokens, q.jobs AS queued FROM busiest b CROSS JOIN LATERAL (
        SELECT count(*) AS jobs FROM (
            SELECT 1 FROM jobs WHERE jobs.tenant_id = b.tenant_id AND status = 'queued' LIMIT :counted) met) q
    ORDER BY b.tokens DESC, q.jobs DESC, b.tenant_id
""")


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """A living worker, as its lease says. Rates are means of the last ten seconds or so."""

    incarnation: str
    pool: str
    host: str
    pid: int
    device: str
    state: str
    up_s: float
    seen_s: float  # since it renewed its lease
    jobs: int
    batch_sequences: int
    waiting_sequences: int
    tokens_per_s: float
    kv_usage: float  # 0 to 1
    preemptions: int


@dataclass(frozen=True, slots=True)
class TierFigures:
    """A tier of a pool. `queued_tokens`: prompt + n x max_tokens. `predicted_wait_s`: behind all of it; None where no rate is known."""

    pool: str
    tier: str
    queued: int
    queued_tokens: int
    running: int
    predicted_wait_s: float | None


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """A busy tenant. `running_tokens`: prompt + n x max_tokens of its running jobs. `queued` counts up to 10,000."""

    tenant: str
    running: int
    running_tokens: int
    queued: int


@dataclass(frozen=True, slots=True)
class Picture:
    """All of it, at one time."""

    at: datetime
    workers: list[WorkerFigures]
    tiers: list[TierFigures]
    tenants: list[TenantFigures]
    is_redis_away: bool  # then what waits is counted in Postgres, or as it was


class Camera:
    """Takes pictures."""

    def __init__(self, db: AsyncEngine, board: LoadBoard, timeout_s: float) -> None:
        self._db = db
        self._board = board
        self._timeout_s = timeout_s

    async def take(self) -> Picture:
        """One picture.

        Raises:
            SQLAlchemyError, OSError: Postgres doesn't answer.
        """
        await self._board.refresh()
        return await at_most(self._timeout_s, self._read())

    async def _read(self) -> Picture:
        async with self._db.connect() as conn:
            workers = await _workers(conn)
            running = {(row.pool, row.tier): row.jobs for row in await conn.execute(RUNNING)}
            rows = await conn.execute(TENANTS, {"most": MOST_TENANTS, "counted": MOST_COUNTED})
            tenants = [TenantFigures(row.tenant_id, row.running, row.tokens, row.queued) for row in rows]
        pools = self._board.pools()
        sources = {figures.source for pool in pools if (figures := self._board.figures(pool)) is not None}
        return Picture(datetime.now(UTC), workers, self._tiers(pools, running), tenants, bool(sources - {"redis"}))

    def _tiers(self, pools: Sequence[str], running: dict[tuple[str, str], int]) -> list[TierFigures]:
        found = []
        for pool in pools:
            figures = self._board.figures(pool)
            if figures is None:
                continue
            for tier in TIERS:
                backlog, wait_s = figures.load.tier(tier), tier_wait_s(figures.load, tier)
                found.append(
                    TierFigures(
                        pool,
                        tier,
                        backlog.jobs,
                        backlog.tokens,
                        running.get((pool, tier), 0),
                        None if wait_s is None else round(wait_s, 3),
                    )
                )
        return found


async def _workers(conn: AsyncConnection) -> list[WorkerFigures]:
    return [_worker(row) for row in await conn.execute(WORKERS, {"most": MOST_WORKERS})]


def _worker(row: Any) -> WorkerFigures:
    """From its lease; a worker that has renewed for the first time only has no figures yet."""
    stats: dict[str, Any] = row.stats
    pages = int(stats.get("kv_blocks_total", 0))
    return WorkerFigures(
        incarnation=row.incarnation.hex,
        pool=row.pool,
        host=row.host,
        pid=row.pid,
        device=row.device,
        state=row.state,
        up_s=round(row.up_s, 1),
        seen_s=round(row.seen_s, 1),
        jobs=int(stats.get("jobs", 0)),
        batch_sequences=int(stats.get("running", 0)),
        waiting_sequences=int(stats.get("waiting", 0)),
        tokens_per_s=float(stats.get("served_tokens_per_s", 0.0)),
        kv_usage=round(int(stats.get("kv_blocks_used", 0)) / pages, 4) if pages else 0.0,
        preemptions=int(stats.get("preemptions", 0)),
    )
