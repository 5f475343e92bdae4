"""Does everyone get their share? A flooder beside quiet tenants, a flood of interactive work over batch, an interactive job in a full engine.

Real Redis and scripts, the real scheduler, virtual time: docs/fairness.md.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Iterable
from pathlib import Path
from random import Random

from app.embedded import EmbeddedRedis
from app.queue.fairness import INPUT_WEIGHT, OUTPUT_WEIGHT
from app.queue.places import TIER_WEIGHTS
from app.redis import Redis, create_redis
from app.settings import Settings
from benchmarks.peers.task import percentile
from benchmarks.plot import require
from benchmarks.result import Bar, Result
from benchmarks.virtual_pool import CAPACITY, Job, Moment, VirtualPool, service_gap

FLOODER = "flooder"
QUIET = [f"quiet-{i}" for i in range(1, 10)]
WEIGHTS = {FLOODER: 1, **{tenant: (1, 2, 4)[i % 3] for i, tenant in enumerate(QUIET)}}
_LONGEST_PROMPT, _LONGEST_OUTPUT = 128, 96
_PLAY_S = 120.0
_WARM_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--flood", type=int, default=10_000, metavar="N", help="jobs of the flooder (default 10,000)")
    parser.add_argument("--seconds", type=float, default=_PLAY_S, metavar="S", help="virtual time (default 120)")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and lengths (default 1)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw service and waits as a PNG")


def run(args: argparse.Namespace) -> Result:
    """Play all of it on one Redis."""
    if args.plot:
        require()
    result = Result("fairness", {"flood": args.flood, "seconds": args.seconds, "seed": args.seed})
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        with EmbeddedRedis(Path(folder) / "redis") as server:
            asyncio.run(_measure(server.url, args, result))
    return result


async def _measure(url: str, args: argparse.Namespace, result: Result) -> None:
    async with create_redis(Settings(redis_url=url)) as redis:
        await _flood(redis, args, result)
        await _starve(redis, args, result)
        await _preempt(redis, args, result)


def quiet_jobs(random: Random, until_s: float) -> list[Job]:
    """Nine tenants that join and leave: each is there for some periods, in which it sends bursts."""
    jobs = []
    for tenant in QUIET:
        now = random.uniform(0, until_s / 6)
        while now < until_s * 0.8:
            leaves = now + random.uniform(until_s / 6, until_s / 3)
            while now < min(leaves, until_s * 0.8):
                jobs += [_job(random, tenant, "standard", now) for _ in range(random.randint(10, 40))]
                now += random.uniform(8, 20)
            now += random.uniform(until_s / 12, until_s / 4)
    return jobs


def _job(random: Random, tenant: str, tier: str, at_s: float, *, asks: int = 2) -> Job:
    output = random.randint(16, _LONGEST_OUTPUT)
    return Job(tenant, tier, at_s, random.randint(16, _LONGEST_PROMPT), output, min(asks * output, 256))


def _flood_jobs(random: Random, count: int) -> list[Job]:
    return [_job(random, FLOODER, "standard", 1.0, asks=4) for _ in range(count)]


async def _flood(redis: Redis, args: argparse.Namespace, result: Result) -> None:
    bound = 2 * max(INPUT_WEIGHT * _LONGEST_PROMPT, OUTPUT_WEIGHT * CAPACITY)
    histories: dict[str, list[Moment]] = {}
    waits: dict[str, list[float]] = {}
    for name in ("fair", "without the flooder", "fifo"):
        random = Random(args.seed)
        jobs = quiet_jobs(random, args.seconds)
        if name != "without the flooder":
            jobs += _flood_jobs(random, args.flood)
        if name == "fifo":
            for job in jobs:
                job.queue_tenant = "everyone"
        pool = VirtualPool(redis, name.replace(" ", "-"))
        await pool.play(jobs, args.seconds, WEIGHTS)
        histories[name], waits[name] = pool.history, _waits(jobs, args.seconds)
        result.figures[f"{name}: service gap"] = service_gap(pool.history, WEIGHTS)
        result.figures[f"{name}: quiet p95 wait s"] = percentile(waits[name], 95)
        result.figures[f"{name}: jobs started"] = sum(job.started_s >= 0 for job in jobs)
    alone = result.figures["without the flooder: quiet p95 wait s"]
    result.figures["bound of the service gap"] = bound
    result.bars += [
        Bar("service gap", result.figures["fair: service gap"], bound, "work"),
        Bar("quiet p95 wait / without the flooder", result.figures["fair: quiet p95 wait s"] / alone, 2.0, "x"),
        Bar("FIFO breaks the bound (counter-example)", result.figures["fifo: service gap"], bound, "work", False),
    ]
    if args.plot:
        _draw(args.plot, histories, bound)


def _waits(jobs: Iterable[Job], until_s: float) -> list[float]:
    """Of the quiet tenants' jobs, from submission to start; one that didn't start has waited until the end."""
    return [
        (job.started_s if job.started_s >= 0 else until_s) - job.at_s
        for job in jobs
        if job.tenant != FLOODER and job.at_s < until_s
    ]


async def _starve(redis: Redis, args: argparse.Namespace, result: Result) -> None:
    """Interactive work at three times what the engine can do, over a batch tier that always has work."""
    random, seconds = Random(args.seed), args.seconds / 2
    probe = VirtualPool(redis, "probe")
    await probe.play([_job(random, "probe", "interactive", 0.0) for _ in range(5000)], seconds / 2)
    rate = probe.history[-1].work["probe"] / probe.clock.now  # work a second of an engine that is full
    each = INPUT_WEIGHT * (16 + _LONGEST_PROMPT) / 2 + OUTPUT_WEIGHT * (16 + _LONGEST_OUTPUT) / 2
    jobs = [_job(random, "urgent", "interactive", i * each / (3 * rate)) for i in range(int(3 * rate / each * seconds))]
    batch = [_job(random, "nightly", "batch", 1.0) for _ in range(1000)]
    pool = VirtualPool(redis, "starve")
    await pool.play(jobs + batch, seconds)
    begin = next(moment for moment in pool.history if moment.at_s >= _WARM_S)
    end = pool.history[-1]
    done = {tenant: end.work[tenant] - begin.work[tenant] for tenant in end.work}
    share = done["nightly"] / sum(done.values())
    starts = sorted(job.started_s for job in batch if job.started_s >= 0)
    longest = max(b - a for a, b in zip([1.0, *starts], [*starts, seconds], strict=True))
    # Until its next job starts, batch waits at most for: the others' share of the one before, the lead that they may have, and an
    # engine that is full of them. All in work, which is at most 2 a token.
    costliest = OUTPUT_WEIGHT * max(job.cost for job in jobs + batch)
    shares = TIER_WEIGHTS["interactive"] + TIER_WEIGHTS["batch"]
    bound_s = (shares * costliest + 2 * OUTPUT_WEIGHT * CAPACITY) / rate
    result.figures["work a second"] = rate
    result.figures["batch share under 300 % interactive"] = share
    result.figures["batch: longest time without a start s"] = longest
    result.bars += [
        Bar("batch share", share, 1 / sum(TIER_WEIGHTS.values()), "of the work", False),
        Bar("batch: longest time without a start", longest, bound_s, "s"),
    ]


async def _preempt(redis: Redis, args: argparse.Namespace, result: Result) -> None:
    """An interactive job now and then: into an idle engine, and into one that is full of long batch jobs."""
    found = {}
    for name in ("idle", "full"):
        random = Random(args.seed)
        jobs = [_job(random, "user", "interactive", 5 + i * 0.7 + random.random() * 0.4) for i in range(60)]
        batch = [Job("nightly", "batch", 0.0, 128, 400, 400) for _ in range(600)] if name == "full" else []
        pool = VirtualPool(redis, f"preempt-{name}")
        await pool.play(jobs + batch, 50.0)
        assert all(job.first_token_s >= 0 for job in jobs)
        found[name] = percentile([job.first_token_s - job.at_s for job in jobs], 95)
        result.figures[f"ttft p95 s, engine {name}"] = found[name]
        result.figures[f"preemptions, engine {name}"] = pool.engine.stats().preemptions
    result.bars.append(Bar("ttft p95 in a full engine / in an idle one", found["full"] / found["idle"], 3.0, "x"))


def _draw(path: Path, histories: dict[str, list[Moment]], bound: float) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name in zip(figure.subplots(1, 2, sharey=True), ("fair", "fifo"), strict=True):
        history = histories[name][::25]
        for tenant, weight in WEIGHTS.items():
            style = {"color": "#c92a2a", "linewidth": 2} if tenant == FLOODER else {"color": "#0b7285", "alpha": 0.5}
            axis.plot([m.at_s for m in history], [m.work[tenant] / weight for m in history], label=tenant, **style)
        axis.set_title(f"{name}: work / weight (red: the flooder)", loc="left", fontsize=10)
        axis.set_xlabel("virtual seconds")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"bound of the gap while both have work waiting: {bound:,.0f}", fontsize=9, x=0.01, ha="left")
    figure.savefig(path, dpi=144, format="png")
