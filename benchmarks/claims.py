"""What does the queue cost? Time of a claim and Redis' memory for a queued job, on a real Redis, without workers or Postgres."""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from random import Random

from app.embedded import EmbeddedRedis
from app.ids import new_id
from app.queue.streams import JobQueue, Nomination
from app.redis import Redis, create_redis
from app.settings import Settings
from benchmarks.result import Bar, Result

_PAGE = 1000
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
        random = Random(1)
        jobs = [
            Nomination(
                new_id(), 1, random.choice(_TIERS), f"tenant-{random.randrange(args.tenants)}", random.randint(64, 2048)
            )
            for _ in range(args.queued)
        ]
        start = time.perf_counter()
        for i in range(0, len(jobs), _PAGE):
            await queue.enqueue(jobs[i : i + _PAGE])
        result.figures["enqueued a second"] = len(jobs) / (time.perf_counter() - start)
        result.figures["bytes a job"] = (await _used_memory(redis) - empty) / len(jobs)
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
        result.figures["claims timed"] = len(claims)
        result.figures["jobs claimed"] = claimed


async def _used_memory(redis: Redis) -> int:
    info = await redis.info("memory")
    return int(info["used_memory"]) - int(info.get("mem_clients_normal", 0)) - int(info.get("mem_aof_buffer", 0))
