"""What does the queue cost? Time of a claim and Redis' memory for a queued job, on a real Redis, without workers or Postgres."""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from random import Random

from rich.console import Console

from app.embedded import EmbeddedRedis
from app.ids import new_id
from app.queue.streams import JobQueue, Nomination
from app.redis import Redis, create_redis
from app.settings import Settings
from benchmarks.result import Bar, Result

_PAGE = 1000
_TELL = 200_000
_EMPTY_CLAIMS = 1000
_TIERS = ("interactive", "standard", "batch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--queued", type=int, default=10_000, help="jobs that wait (default 10,000)")
    parser.add_argument("--tenants", type=int, default=100, help="tenants that they belong to (default 100)")
    parser.add_argument("--jobs", type=int, default=8, help="jobs a claim (default 8)")
    parser.add_argument("--claims", type=int, default=1000, help="most claims that are timed (default 1,000)")


def run(args: argparse.Namespace) -> Result:
    """Fill a queue, then claim and ack from it."""
    result = Result(
        "claims", {"queued": args.queued, "tenants": args.tenants, "jobs": args.jobs, "claims": args.claims}
    )
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        with EmbeddedRedis(Path(folder) / "redis") as server:
            asyncio.run(_measure(server.url, args, result))
    big = args.queued >= 1_000_000
    if big:
        result.bars.append(Bar("claim p99", result.figures["claim p99 ms"], 5.0, "ms"))
    else:
        result.bars.append(Bar("claim median", result.figures["claim median ms"], 2.0, "ms"))
    result.bars.append(Bar("memory a job", result.figures["bytes a job"], 400.0, "bytes"))
    return result


async def _measure(url: str, args: argparse.Namespace, result: Result) -> None:
    async with create_redis(Settings(redis_url=url)) as redis:
        queue = JobQueue(redis, "bench")
        await queue.open_epoch("bench")
        empty = await _used_memory(redis)
        streams, took_s = await _fill(queue, args, Console(stderr=True))
        result.figures["enqueued a second"] = args.queued / took_s
        result.figures["enqueue us in Redis, a job"] = await _script_us(redis) / args.queued
        result.figures["streams"] = streams
        result.figures["bytes a job"] = (await _used_memory(redis) - empty) / args.queued
        result.figures["resident MiB"] = (await redis.info("memory"))["used_memory_rss"] / 2**20
        rewriting = await _is_rewriting(redis)
        claimed = 0
        claims: list[float] = []
        acks: list[float] = []
        while len(claims) < args.claims:
            start = time.perf_counter()
            got = await queue.claim("bench", max_jobs=args.jobs, room=10**9)
            claims.append((time.perf_counter() - start) * 1000)
            if not got:
                claims.pop()
                break
            claimed += len(got)
            start = time.perf_counter()
            await queue.ack([(job.job_id, job.gen) for job in got])
            acks.append((time.perf_counter() - start) * 1000)
        for name, times in (("claim", claims), ("ack", acks)):
            result.figures[f"{name} median ms"] = statistics.median(times)
            result.figures[f"{name} p99 ms"] = statistics.quantiles(times, n=100)[98]
            result.figures[f"{name} worst ms"] = max(times)
        result.figures["claim and ack us in Redis, a job"] = await _script_us(redis) / claimed
        result.figures["its file was rewritten meanwhile"] = rewriting or await _is_rewriting(redis)
        result.figures["claims timed"] = len(claims)
        result.figures["jobs claimed"] = claimed
        result.figures["empty claim us in Redis"] = await _empty_claim_us(redis)


async def _fill(queue: JobQueue, args: argparse.Namespace, console: Console) -> tuple[int, float]:
    """(streams, seconds). A page is made, sent and forgotten: a million jobs never lie here at once."""
    random, took_s, streams = Random(1), 0.0, set()
    for first in range(0, args.queued, _PAGE):
        page = [
            Nomination(
                new_id(), 1, random.choice(_TIERS), f"tenant-{random.randrange(args.tenants)}", random.randint(64, 2048)
            )
            for _ in range(min(_PAGE, args.queued - first))
        ]
        streams |= {(each.place, each.tenant) for each in page}
        start = time.perf_counter()
        await queue.enqueue(page)
        took_s += time.perf_counter() - start
        if first and first % _TELL == 0:
            console.print(f"{first:,} of {args.queued:,} jobs queued")
    return len(streams), took_s


async def _script_us(redis: Redis) -> float:
    """What Redis spent in scripts since the last call, by its own count; begins anew."""
    stats = await redis.info("commandstats")
    await redis.config_resetstat()
    return float(stats.get("cmdstat_evalsha", {}).get("usec", 0))


async def _is_rewriting(redis: Redis) -> bool:
    """Whether a child of Redis rewrites the append-only file, which takes processor and disk from it."""
    return bool((await redis.info("persistence"))["aof_rewrite_in_progress"])


async def _empty_claim_us(redis: Redis) -> float:
    """What a claim costs that finds nothing: each idle worker makes one a second."""
    queue = JobQueue(redis, "empty")
    await _script_us(redis)
    for _ in range(_EMPTY_CLAIMS):
        await queue.claim("bench", max_jobs=1, room=1)
    return await _script_us(redis) / _EMPTY_CLAIMS


async def _used_memory(redis: Redis) -> int:
    info = await redis.info("memory")
    return int(info["used_memory"]) - int(info.get("mem_clients_normal", 0)) - int(info.get("mem_aof_buffer", 0))
