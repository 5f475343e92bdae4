"""Does every event arrive, and in time, while a third of the endpoints fails, a tenth hangs, and workers are killed?

Real servers, a real maintenance process, real webhook workers of which one after the other is killed and started again. All settings are
the defaults; the long waits of the schedule are skipped once all events are written: from then on the endpoints are well, and what waits
for its next try is made due.
"""

import argparse
import asyncio
import os
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine, database_now
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.quotas.keys import ensure_tenant
from app.schema import migrate
from app.settings import Settings
from app.webhooks.endpoints import create_endpoint, rotate_secret
from app.webhooks.outbox import Event, emit
from app.webhooks.wanted import EndpointWanted
from benchmarks.faults.parts import Part
from benchmarks.hooks.outside import Endpoint as Place
from benchmarks.hooks.outside import Outside, kinds_of
from benchmarks.result import Bar, Result

_MOST_DELAY_S = 2.0
_PATIENCE_S = 900.0
_LOOK_S = 0.1
_PENDING = text("SELECT count(*) FROM webhook_deliveries WHERE status <> 'delivered'")
_SKIP = text("""
    UPDATE webhook_deliveries SET next_try_at = statement_timestamp()
    WHERE status = 'pending' AND handed_until IS NULL AND next_try_at > statement_timestamp()
""")
_COUNTS = text("""
    SELECT (SELECT count(*) FROM webhook_deliveries) AS deliveries,
           (SELECT count(*) FROM webhook_deliveries WHERE status = 'delivered') AS delivered,
           (SELECT count(*) FROM webhook_tries) AS tries
""")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--events", type=int, default=10_000, metavar="N", help="events to tell (default 10,000)")
    parser.add_argument("--rate", type=float, default=50.0, metavar="N", help="of them a second (default 50)")
    parser.add_argument(
        "--endpoints", type=int, default=20, metavar="N", help="each of a tenant of its own (default 20)"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="webhook workers (default 2)")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="of webhook workers (default 20)")


@dataclass(slots=True)
class _Run:
    """What is known of a run while it goes on."""

    places: dict[str, Place]
    endpoint_ids: dict[str, Any] = field(default_factory=dict)
    written_at: dict[int, float] = field(default_factory=dict)
    kind_of: dict[int, str] = field(default_factory=dict)
    kills: int = 0
    told_at_end_s: float = 0.0


def run(args: argparse.Namespace) -> Result:
    """Tell, kill, heal, wait, compare."""
    asked = {name: getattr(args, name) for name in ("events", "rate", "endpoints", "workers", "kills")}
    result = Result("webhooks", asked)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with EmbeddedPostgres(folder / "postgres") as postgres, EmbeddedRedis(folder / "redis") as redis:
            config = Settings(database_url=postgres.url, redis_url=redis.url, webhook_allow_local=True)
            migrate(config)
            asyncio.run(_measure(config, args, folder, result))
    return result


async def _measure(config: Settings, args: argparse.Namespace, folder: Path, result: Result) -> None:
    console = Console(stderr=True)
    db = create_engine(config, application_name="penstock-benchmark")
    outside = Outside([Place(kind) for kind in kinds_of(args.endpoints)])
    await outside.open()
    assert config.database_url
    assert config.redis_url
    environment = os.environ | {
        "DATABASE_URL": config.database_url,
        "REDIS_URL": config.redis_url,
        "PENSTOCK_WEBHOOK_ALLOW_LOCAL": "true",
    }
    keeper = Part("maintenance", environment, folder)
    workers = [Part(f"webhooks-{n}", environment, folder) for n in range(args.workers)]
    parts = [keeper, *workers]
    told = _Run({f"tenant-{n}": place for n, place in enumerate(outside.endpoints)})
    try:
        await _register(db, told)
        for part in parts:
            part.start()
        await _until_ready(parts)
        console.print(f"{args.events:,} events at {args.rate:g}/s to {args.endpoints} endpoints")
        watching = asyncio.create_task(_keep_up(parts))
        killing = asyncio.create_task(_kill(workers, told, args))
        await _tell(db, args, told)
        await killing
        console.print(f"all told, {told.kills} workers killed; the endpoints are well from now on")
        outside.heal()
        settled_s = await _settle(db, console)
        watching.cancel()
        await _judge(db, outside, told, result)
        result.figures["all delivered s after the last was told"] = settled_s
    finally:
        for part in parts:
            await asyncio.to_thread(part.end)
        outside.close()
        await db.dispose()


async def _register(db: AsyncEngine, told: _Run) -> None:
    for tenant, place in told.places.items():
        async with db.begin() as conn:
            await ensure_tenant(conn, tenant)
            fresh = await create_endpoint(conn, tenant, EndpointWanted(url=place.url))
        place.secrets.append(fresh.secret)
        told.endpoint_ids[tenant] = fresh.endpoint.id


async def _until_ready(parts: list[Part]) -> None:
    async with asyncio.timeout(60):
        while not all(_is_ready(part) for part in parts):  # noqa: ASYNC110  other processes tell by their logs
            await asyncio.sleep(_LOOK_S)


def _is_ready(part: Part) -> bool:
    log = part.log.read_text()
    return "maintenance_ready" in log or "webhook_worker_started" in log


async def _keep_up(parts: list[Part]) -> None:
    """Start what has ended again, as a service manager would."""
    while True:
        for part in parts:
            part.look()
        await asyncio.sleep(_LOOK_S)


async def _kill(workers: list[Part], told: _Run, args: argparse.Namespace) -> None:
    """kill -9 one worker after the other, evenly over the time in which events are told."""
    every_s = args.events / args.rate / (args.kills + 1)
    for n in range(args.kills):
        await asyncio.sleep(every_s)
        told.kills += workers[n % len(workers)].signal(signal.SIGKILL)


async def _tell(db: AsyncEngine, args: argparse.Namespace, told: _Run) -> None:
    """Write an event for each tenant in turn, each in a transaction of its own; rotate all secrets half-way."""
    began = time.monotonic()
    tenants = list(told.places)
    for number in range(args.events):
        await asyncio.sleep(began + number / args.rate - time.monotonic())
        if number == args.events // 2:
            await _rotate(db, told)
        tenant = tenants[number % len(tenants)]
        async with db.begin() as conn:
            await emit(conn, [Event(tenant, "job.succeeded", await database_now(conn), {"n": number})])
        told.written_at[number] = time.monotonic()
        told.kind_of[number] = told.places[tenant].kind
    told.told_at_end_s = time.monotonic() - began


async def _rotate(db: AsyncEngine, told: _Run) -> None:
    for tenant, endpoint_id in told.endpoint_ids.items():
        async with db.begin() as conn:
            fresh = await rotate_secret(conn, tenant, endpoint_id, overlap_s=3600)
        # Receivers of half of them know the new one only, the others the old one only.
        place = told.places[tenant]
        if int(tenant.removeprefix("tenant-")) % 2:
            place.secrets.append(fresh.secret)


async def _settle(db: AsyncEngine, console: Console) -> float:
    began = time.monotonic()
    said = began
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            async with db.begin() as conn:
                await conn.execute(_SKIP)
                left = await conn.scalar(_PENDING)
            if not left:
                return time.monotonic() - began
            if time.monotonic() - said > 10:
                said = time.monotonic()
                console.print(f"{left:,} to go")
            await asyncio.sleep(0.5)


async def _judge(db: AsyncEngine, outside: Outside, told: _Run, result: Result) -> None:
    async with db.connect() as conn:
        counts = (await conn.execute(_COUNTS)).one()
    delays = sorted(
        outside.first_heard[number] - at
        for number, at in told.written_at.items()
        if told.kind_of[number] == "healthy" and number in outside.first_heard
    )
    quantiles = statistics.quantiles(delays, n=100, method="inclusive")
    never = len(told.written_at.keys() - outside.accepted)
    twice = sum(len(ids) > 1 for ids in outside.ids.values())
    result.figures |= {
        "events": len(told.written_at),
        "events a second": len(told.written_at) / told.told_at_end_s,
        "workers killed": told.kills,
        "deliveries recorded as delivered": counts.delivered,
        "tries": counts.tries,
        "requests received": outside.num_requests,
        "healthy endpoints' delay p50 s": quantiles[49],
        "healthy endpoints' delay p95 s": quantiles[94],
        "healthy endpoints' delay p99 s": quantiles[98],
        "healthy endpoints' delay max s": delays[-1],
    }
    result.bars += [
        Bar("events that no endpoint accepted", never, 0, ""),
        Bar("events that aren't recorded as delivered", len(told.written_at) - counts.delivered, 0, ""),
        Bar("events under two webhook-ids", twice, 0, ""),
        Bar("requests that the receivers' package doesn't verify", outside.num_unverified, 0, ""),
        Bar("healthy endpoints' delay p95", quantiles[94], _MOST_DELAY_S, "s"),
    ]
