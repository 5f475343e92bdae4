"""What does a large fleet do with a bursty day? The real queue and its scripts on a real Redis, in virtual time, with modelled engines."""

import argparse
import asyncio
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.embedded import EmbeddedRedis
from app.jobs.states import TIERS
from app.queue.fairness import Terms
from app.queue.streams import JobQueue
from app.redis import Redis, create_redis
from app.settings import Settings
from benchmarks.result import Bar, Result
from benchmarks.simulation.day import Day
from benchmarks.simulation.gpus import POOLS
from benchmarks.simulation.scripts import BlockingScripts
from benchmarks.simulation.traffic import Plan, weight_of

DAYS = ("plain", "lost-zone")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--jobs", type=int, default=1_000_000, metavar="N", help="jobs of a day (default 1,000,000)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1_000,
        metavar="N",
        help="workers of all pools (default 1,000). Fewer than 1,000 jobs a worker make a shorter day with the same load",
    )
    parser.add_argument("--tenants", type=int, default=1_000, metavar="N", help="tenants (default 1,000)")
    parser.add_argument("--day", choices=DAYS, nargs="+", default=list(DAYS), help="which days (default: both)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (default 1)")
    parser.add_argument("--gpu-hour", type=float, default=2.5, metavar="PRICE", help="of a GPU (default 2.50)")


def run(args: argparse.Namespace) -> Result:
    """Each day on an empty Redis."""
    for name in ("jobs", "workers", "tenants"):
        least = len(POOLS) if name == "workers" else 1
        if getattr(args, name) < least:
            raise SystemExit(f"--{name} must be at least {least}")
    plan = Plan(args.seed, args.jobs, args.workers, args.tenants, {name: share for name, (share, _) in POOLS.items()})
    settings = {name: getattr(args, name.replace("-", "_")) for name in ("jobs", "workers", "tenants", "day", "seed")}
    result = Result("simulate", settings | {"gpu-hour": args.gpu_hour})
    for name in args.day:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
            Path(folder).chmod(0o711)
            with EmbeddedRedis(Path(folder) / "redis") as server:
                asyncio.run(_live_through(name, plan, server, args.gpu_hour, result))
    result.tables = [_waits_table(result), _figures_table(result)]
    return result


async def _live_through(name: str, plan: Plan, server: EmbeddedRedis, price: float, result: Result) -> None:
    console = Console(stderr=True)
    client = BlockingScripts(server.socket_url)
    async with create_redis(Settings(redis_url=server.url)) as redis:
        try:
            await redis.config_set("appendonly", "no")  # nobody needs it tomorrow
            terms = {tenant: Terms(weight_of(tenant)) for tenant in plan.tenants}
            for pool in POOLS:
                await JobQueue(redis, pool).open_epoch("simulation")
                await JobQueue(redis, pool).share(terms)
            console.print(
                f"{name} day: {plan.num_jobs:,} jobs, {plan.num_workers:,} workers, {plan.day_s / 3600:.1f} hours"
            )
            begin = time.perf_counter()
            day = Day(plan, client, loses_zone=name == "lost-zone", say=console.print)
            await day.run()
            took_s = time.perf_counter() - begin
            left = sum([await redis.hlen(JobQueue(redis, pool).keys.idx) for pool in POOLS])
            figures = _figures(day, price)
            figures["run"] = await _run_figures(day, client, redis, took_s)
            result.figures[name] = figures
            result.bars += [
                Bar(f"{name}: accepted jobs that didn't end once", day.num_live + day.ends_twice, 0, "jobs"),
                Bar(f"{name}: nominations left over", left, 0, ""),
                Bar(f"{name}: widest gap between tenants, of its bound", figures["fairness"]["of bound"], 1.0, ""),
            ]
        finally:
            client.close()


def _figures(day: Day, price: float) -> dict[str, Any]:
    """What the seed alone decides."""
    gap, gpu_hours = day.fairness.widest, day.provisioned_s / 3600
    workers = [worker for pool in day.pools.values() for worker in pool.workers]
    asked_again = sum(count for times, count in day.retries.items() if times) + sum(day.given_up.values())
    tiers = {
        tier: {
            "offered": day.offered[tier],
            "refused": day.refused[tier],
            "given up": day.given_up[tier],
            "wait p50 s": day.waits[tier].quantile(0.5),
            "wait p95 s": day.waits[tier].quantile(0.95),
            "wait p99 s": day.waits[tier].quantile(0.99),
            "first token p50 s": day.first_tokens[tier].quantile(0.5),
            "first token p95 s": day.first_tokens[tier].quantile(0.95),
            "first token p99 s": day.first_tokens[tier].quantile(0.99),
            "waited longer than the ceiling": day.waits[tier].share_over(day.gate.ceilings_s[tier]),
        }
        for tier in TIERS
    }
    return {
        "tiers": tiers,
        "workers": {pool.name: len(pool.workers) for pool in day.pools.values()},
        "jobs ended": day.num_ended,
        "output tokens": day.output_tokens,
        "most that waited": day.most_waiting,
        "last end, hours": day.last_end_s / 3600,
        "fairness": {
            "widest gap": gap.work,
            "bound": gap.bound,
            "of bound": gap.work / gap.bound if gap.bound else 0.0,
            "largest jobs": gap.of_jobs,
            "where": "/".join(gap.shelf) if gap.shelf else "",
            "windows compared": day.fairness.num_windows,
        },
        "gpu": {
            "hours": gpu_hours,
            "hours with work": day.busy_s / 3600,
            "preempted for a higher tier": sum(worker.engine.num_displaced for worker in workers),
            "preempted for room": sum(worker.engine.num_evicted for worker in workers),
            "tokens computed again": round(sum(worker.engine.lost_tokens for worker in workers)),
            "cost": gpu_hours * price,
            "cost of a million output tokens": gpu_hours * price / day.output_tokens * 1e6
            if day.output_tokens
            else 0.0,
        },
        "refusals": {reason: day.reasons[reason] for reason in sorted(day.reasons)}
        | {
            "retry after p50 s": day.retry_after.quantile(0.5),
            "retry after p95 s": day.retry_after.quantile(0.95),
            "let in at the first retry": day.retries[1] / asked_again if asked_again else math.nan,
            "let in at the second": day.retries[2] / asked_again if asked_again else math.nan,
        },
        "lost": {
            "jobs": day.num_lost,
            "again after p50 s": day.comebacks.quantile(0.5),
            "again after p99 s": day.comebacks.quantile(0.99),
        },
        "redis calls": {
            name: {"a day": day.traffic.total(name), "a second, busiest minute": day.traffic.peak_per_s(name)}
            for name in ("enqueue", "claim", "ack", "true_up", "empty claim", "poll")
        },
    }


async def _run_figures(day: Day, client: BlockingScripts, redis: Redis, took_s: float) -> dict[str, Any]:
    """What this machine decides."""
    scripts = (await redis.info("commandstats")).get("cmdstat_evalsha", {"usec": 0, "calls": 0})
    memory = await redis.info("memory")
    return {
        "seconds": took_s,
        "events": day.loop.num_events,
        "scripts run": dict(client.calls),
        "scripts, us in Redis": scripts["usec"] / max(1, scripts["calls"]),
        "Redis' peak memory MiB": memory["used_memory_peak"] / 2**20,
    }


def _waits_table(result: Result) -> Table:
    table = Table(title=f"simulate {result.settings}", title_justify="left")
    for name in ("day", "tier"):
        table.add_column(name)
    for name in (
        "offered",
        "refused",
        "given up",
        "wait p50",
        "p95",
        "p99",
        "first token p50",
        "p95",
        "p99",
        "past ceiling",
    ):
        table.add_column(name, justify="right")
    for day, figures in result.figures.items():
        for tier, each in figures["tiers"].items():
            seconds = [each[f"{what} {q} s"] for what in ("wait", "first token") for q in ("p50", "p95", "p99")]
            table.add_row(
                *(day, tier, f"{each['offered']:,}", f"{each['refused']:,}", f"{each['given up']:,}"),
                *(f"{value:,.2f} s" for value in seconds),
                f"{each['waited longer than the ceiling']:.2%}",
            )
    return table


def _figures_table(result: Result) -> Table:
    table = Table(title="the days", title_justify="left")
    table.add_column("figure")
    for day in result.figures:
        table.add_column(day, justify="right")
    flat = [
        _flatten({name: each for name, each in figures.items() if name != "tiers"})
        for figures in result.figures.values()
    ]
    for name in flat[0]:
        table.add_row(name, *(_shown(each[name]) for each in flat))
    return table


def _flatten(figures: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        flat |= _flatten(value, f"{prefix}{name}: ") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
