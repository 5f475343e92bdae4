"""How long does an interactive job wait for its first token where batch work fills the engine? Real processes, the real engine, the real clock."""

import argparse
import asyncio
import json
import os
import tempfile
from pathlib import Path

from rich.console import Console
from sqlalchemy import text

from benchmarks.control import load
from benchmarks.control.stack import MODEL, ControlStack, control_stack
from benchmarks.peers.task import percentile
from benchmarks.result import Bar, Result

_BROOK = Path(__file__).parents[1] / "workers" / "models" / "brook"
_OUTPUT = 400  # tokens of a batch job
_FULL_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--model", type=Path, default=_BROOK, metavar="DIR", help="what the engine runs (default brook)"
    )
    parser.add_argument("--slots", type=int, default=32, help="sequences that the engine runs at once (default 32)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement (default 30)")
    parser.add_argument("--rate", type=float, default=2.0, help="interactive jobs a second (default 2)")


def run(args: argparse.Namespace) -> Result:
    """Into an idle engine, then into a full one."""
    result = Result(
        "preempt", {"slots": args.slots, "seconds": args.seconds, "rate": args.rate, "model": args.model.name}
    )
    with tempfile.TemporaryDirectory(prefix="penstock-preempt-", ignore_cleanup_errors=True) as name:
        asyncio.run(_measure(args, result, Path(name)))
    result.figures["cores"] = len(os.sched_getaffinity(0))
    result.figures["load_average_1m_at_end"] = os.getloadavg()[0]
    result.tables = [result.plain_table()]
    return result


async def _measure(args: argparse.Namespace, result: Result, folder: Path) -> None:
    console = Console(stderr=True)
    settings = {
        "PENSTOCK_MODEL": str(args.model),
        "PENSTOCK_MODEL_NAME": MODEL,
        "PENSTOCK_MAX_NUM_SEQS": str(args.slots),
        "PENSTOCK_MAX_QUEUED_TOKENS": "100000000",
    }
    async with control_stack(folder) as stack, stack.client() as client:
        await stack.start("worker", "api", "maintenance", **settings)
        console.print("an idle engine")
        idle = await load.first_tokens(stack, client, args.rate, args.seconds, tier="interactive")
        console.print("an engine full of batch work")
        batch = [load.body(_OUTPUT, seed=seed, tier="batch", ignore_eos=True, temperature=1.0) for seed in range(1000)]
        for _ in range(4):
            await client.post("/v1/jobs/bulk", json.dumps({"jobs": batch}).encode())
        async with asyncio.timeout(_FULL_S):
            await stack.until(f"SELECT count(*) >= {args.slots} FROM jobs WHERE status = 'running' AND tier = 'batch'")
        full = await load.first_tokens(stack, client, args.rate, args.seconds, tier="interactive")
        left, preemptions = await _batch_left(stack)
        if left == 0:
            result.failed.append(
                "the batch work ended before the measurement did: the engine wasn't full; take fewer --seconds"
            )
    for name, found in (("idle", idle), ("full", full)):
        for part in (50, 95, 99):
            result.figures[f"engine {name}: first token p{part} ms"] = percentile(found, part) * 1000
    result.figures |= {
        "interactive jobs of each": len(full),
        "batch jobs still waiting at the end": left,
        "preemptions": preemptions,
    }
    ratio = percentile(full, 95) / percentile(idle, 95)
    result.bars.append(Bar("first token p95, engine full of batch work / idle", ratio, 3.0, "x"))


async def _batch_left(stack: ControlStack) -> tuple[int, int]:
    """(batch jobs that wait, preemptions that the engine's lease tells of)."""
    async with stack.db.connect() as conn:
        left = await conn.scalar(text("SELECT count(*) FROM jobs WHERE status = 'queued' AND tier = 'batch'"))
        told = await conn.scalar(text("SELECT max((stats->>'preemptions')::int) FROM workers"))
    return int(left or 0), int(told or 0)
