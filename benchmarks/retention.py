"""How fast does a run of the retention delete old jobs, and how long do others wait for it? Real rows on an embedded Postgres."""

import argparse
import asyncio
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.db import create_engine
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.redis import create_redis
from app.retention import run as retention
from app.retention.run import run_retention
from app.schema import migrate
from app.settings import Settings
from benchmarks.result import Result

_PAGE = 20_000
_FILL = """
    INSERT INTO jobs (id, tenant_id, pool, model, tier, status, gen, attempt, prompt_tokens, max_tokens, created_at, finished_at)
    SELECT gen_random_uuid(), 'acme', 'm', 'm', 'batch', 'succeeded', 1, 1, 200, 500, at, at
    FROM (SELECT now() - interval '100 days' + make_interval(secs => i) AS at FROM generate_series({first}, {last}) AS i) AS old;
    INSERT INTO job_inputs (job_id, request, sampling, prompt_ids, tokenizer_hash)
    SELECT id, json_build_object('prompt', repeat('once upon ', 100)), '{{}}', decode(repeat('00', 800), 'hex'), 'x' FROM jobs
    ON CONFLICT DO NOTHING;
    INSERT INTO job_results (job_id, attempt, choices, trace)
    SELECT id, 1, json_build_array(json_build_object('text', repeat('a time there ', 150))), decode(repeat('00', 1000), 'hex') FROM jobs
    ON CONFLICT DO NOTHING;
    INSERT INTO attempts (job_id, attempt, incarnation, outcome) SELECT id, 1, gen_random_uuid(), 'finished' FROM jobs
    ON CONFLICT DO NOTHING;
    INSERT INTO usage (job_id, attempt, kind, tenant_id, model, tier, prompt_tokens, cached_tokens, completion_tokens, at)
    SELECT id, 1, 'billed', 'acme', 'm', 'batch', 200, 0, 500, finished_at FROM jobs ON CONFLICT DO NOTHING;
    INSERT INTO ledger (budget_id, window_start, job_id, reservation, kind, amount)
    SELECT b.id, w.window_start, j.id, 1, k.kind, k.amount FROM jobs j CROSS JOIN budgets b JOIN budget_windows w ON w.budget_id = b.id
    CROSS JOIN (VALUES ('reserve', 700), ('settle', 700), ('release', 0)) AS k (kind, amount) ON CONFLICT DO NOTHING;
    INSERT INTO webhook_deliveries (id, tenant_id, job_id, event_type, url, body, status, ended_at)
    SELECT gen_random_uuid(), 'acme', id, 'job.succeeded', 'https://example.com/', decode(repeat('20', 500), 'hex'), 'delivered', finished_at
    FROM jobs ON CONFLICT DO NOTHING;
    INSERT INTO webhook_tries (delivery_id, number, http_status) SELECT id, 1, 200 FROM webhook_deliveries ON CONFLICT DO NOTHING;
"""
_WORLD = """
    INSERT INTO tenants (id, webhook_secret) VALUES ('acme', 'x');
    INSERT INTO budgets (id, tenant_id, metric, period, hard_limit) VALUES (gen_random_uuid(), 'acme', 'total_tokens', 'total', 1000000000000);
    INSERT INTO budget_windows (budget_id, window_start, hard_limit, used)
    SELECT id, '1970-01-01', hard_limit, {jobs}::bigint * 700 FROM budgets;
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This benchmark's options."""
    parser.add_argument("--jobs", type=int, default=20_000, help="old jobs (default: 20000)")


def run(args: argparse.Namespace) -> Result:
    """Fill, delete, and ask for one row all the while."""
    with tempfile.TemporaryDirectory(prefix="penstock-benchmark-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(Path(folder) / "postgres") as postgres, EmbeddedRedis(Path(folder) / "redis") as redis:
            settings = Settings(database_url=postgres.url, redis_url=redis.url, retention_days=90, retention_run_s=3600)
            migrate(settings)
            return asyncio.run(_measure(settings, args.jobs))


async def _measure(settings: Settings, jobs: int) -> Result:
    db, redis = create_engine(settings, application_name="penstock-benchmark"), create_redis(settings)
    try:
        await _fill(db, jobs)
        transactions: list[float] = []
        took = retention._Pace.took

        def noted(self: retention._Pace, seconds: float) -> None:
            transactions.append(seconds)
            took(self, seconds)

        retention._Pace.took = noted  # type: ignore[method-assign]
        others: list[float] = []
        asking = asyncio.create_task(_ask(db, others))
        began = time.perf_counter()
        made = await run_retention(settings, SystemClock(), db, redis, asked_by="benchmark")
        seconds = time.perf_counter() - began
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        retention._Pace.took = took  # type: ignore[method-assign]
    finally:
        await redis.aclose()
        await db.dispose()
    assert made is not None
    assert made.outcome == "done", made.error
    rows = sum(made.rows.values())
    ordered = sorted(others)
    return Result(
        "retention",
        {"jobs": jobs},
        {
            "jobs deleted": made.rows.get("jobs", 0),
            "rows deleted": rows,
            "seconds, with the pauses": seconds,
            "jobs a second, with the pauses": made.rows.get("jobs", 0) / seconds,
            "jobs a second, while it deletes": made.rows.get("jobs", 0) / sum(transactions),
            "longest transaction, s": max(transactions),
            "an update of another row meanwhile, median, s": ordered[len(ordered) // 2],
            "an update of another row meanwhile, 99th percentile, s": ordered[int(len(ordered) * 0.99)],
        },
    )


async def _fill(db: AsyncEngine, jobs: int) -> None:
    async with db.begin() as conn:
        await conn.execute(text("SET LOCAL statement_timeout = 0"))
        for statement in filter(str.strip, _WORLD.format(jobs=jobs).split(";")):
            await conn.exec_driver_sql(statement)
        for first in range(0, jobs, _PAGE):
            for statement in filter(str.strip, _FILL.format(first=first, last=min(jobs, first + _PAGE) - 1).split(";")):
                await conn.exec_driver_sql(statement)
    async with db.connect() as conn:
        await (await conn.execution_options(isolation_level="AUTOCOMMIT")).exec_driver_sql("VACUUM ANALYZE")


async def _ask(db: AsyncEngine, seconds: list[float]) -> None:
    """A row that everybody needs, written all the time: the window that the deleted jobs have been in."""
    while True:
        began = time.perf_counter()
        async with db.begin() as conn:
            await conn.execute(text("UPDATE budget_windows SET reserved = reserved"))
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(0.01)
