"""How long until a Redis that forgot everything knows the whole queue again, in its order? Real servers, a real maintenance process."""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.queue.streams import JobQueue
from app.quotas.keys import ensure_tenant
from app.redis import Redis, create_redis
from app.schema import migrate
from app.settings import Settings
from benchmarks.result import Bar, Result

_POOL = "bench"
_MOST_S = 30.0
_PATIENCE_S = 600.0
_LOOK_S = 0.05

_MODEL = text("""
    WITH tokenizer AS (
        INSERT INTO tokenizers (hash, tokenizer_json, special_tokens) VALUES ('none', '', '{}') RETURNING hash)
    INSERT INTO models (name, pool, tokenizer_hash, model_hash, max_model_len, vocab_size)
    SELECT :pool, :pool, hash, 'none', 1024, 512 FROM tokenizer
""")
# Jobs of one tenant become eligible one after the other; tenants and tiers are mixed.
_JOBS = text("""
    INSERT INTO jobs (id, tenant_id, pool, model, tier, prompt_tokens, max_tokens, eligible_at)
    SELECT gen_random_uuid(), 'tenant-' || i % :tenants, :pool, :pool,
           (ARRAY['interactive', 'standard', 'batch'])[1 + i / :tenants % 3], 100, 100,
           statement_timestamp() - interval '1 hour' + i * interval '1 millisecond'
    FROM generate_series(1, :jobs) AS i
""")
_ORDER = text("SELECT id, tier, tenant_id FROM jobs ORDER BY eligible_at, id")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--queued", type=int, default=100_000, metavar="N", help="jobs in the queue (default 100,000)")
    parser.add_argument("--tenants", type=int, default=100, metavar="N", help="whose they are (default 100)")


def run(args: argparse.Namespace) -> Result:
    """Fill, FLUSHALL, wait, compare."""
    result = Result("rebuild", {"queued": args.queued, "tenants": args.tenants})
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with EmbeddedPostgres(folder / "postgres") as postgres, EmbeddedRedis(folder / "redis") as redis:
            config = Settings(database_url=postgres.url, redis_url=redis.url)
            migrate(config)
            asyncio.run(_measure(config, args, folder, result))
    result.bars.append(Bar("all there again", result.figures["all there again after s"], _MOST_S, "s"))
    result.bars.append(Bar("streams out of order", result.figures["streams out of order"], 0, ""))
    return result


async def _measure(config: Settings, args: argparse.Namespace, folder: Path, result: Result) -> None:
    console = Console(stderr=True)
    db = create_engine(config, application_name="penstock-benchmark")
    async with create_redis(config) as redis:
        try:
            console.print(f"writing {args.queued:,} jobs")
            await _fill(db, args)
            assert config.database_url
            assert config.redis_url
            environment = os.environ | {"DATABASE_URL": config.database_url, "REDIS_URL": config.redis_url}
            with (folder / "maintenance.log").open("ab") as log:
                keeper = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", "workers.maintenance.main", env=environment, stdout=log, stderr=log
                )
            try:
                queue = JobQueue(redis, _POOL)
                console.print("the first fill")
                await _until_known(queue, args.queued)
                console.print("FLUSHALL")
                start = time.monotonic()
                await redis.flushall()
                await _until_known(queue, args.queued)
                result.figures["all there again after s"] = time.monotonic() - start
            finally:
                keeper.terminate()
                await keeper.wait()
            result.figures["streams"], result.figures["streams out of order"] = await _compare(db, redis, queue)
        finally:
            await db.dispose()


async def _fill(db: AsyncEngine, args: argparse.Namespace) -> None:
    async with db.begin() as conn:
        for i in range(args.tenants):
            await ensure_tenant(conn, f"tenant-{i}")
        await conn.execute(_MODEL, {"pool": _POOL})
        await conn.execute(text("SET LOCAL statement_timeout = 0"))
        await conn.execute(_JOBS, {"pool": _POOL, "tenants": args.tenants, "jobs": args.queued})


async def _until_known(queue: JobQueue, count: int) -> None:
    """Until every job is nominated and claims may begin."""
    async with asyncio.timeout(_PATIENCE_S):
        while await queue.redis.hlen(queue.keys.idx) < count or not await queue.has_epoch():  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)


async def _compare(db: AsyncEngine, redis: Redis, queue: JobQueue) -> tuple[int, int]:
    """(streams, those whose entries aren't in the order in which their jobs became eligible)."""
    wanted: dict[tuple[str, str], list[bytes]] = {}
    async with db.connect() as conn:
        for row in await conn.execute(_ORDER):
            wanted.setdefault((row.tier, row.tenant_id), []).append(row.id.hex.encode())
    wrong = 0
    for place, jobs in wanted.items():
        entries: Any = await redis.xrange(queue.keys.stream(*place))
        wrong += [fields[b"j"] for _, fields in entries] != jobs
    return len(wanted), wrong
