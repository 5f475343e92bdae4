"""What does the control plane do a second, and how fast does it answer? Beside RQ and Celery on the same Redis, in one run; and what it takes from the engine."""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.control import load, tax
from benchmarks.control.stack import ControlStack, control_stack
from benchmarks.models import default_folder, model_folder
from benchmarks.result import Bar, Result

PARTS = ("submit", "lives", "latency", "peers", "tax")
_NULL = {"PENSTOCK_ENGINE": "null", "PENSTOCK_MAX_NUM_SEQS": "256"}
_PEERS = ("rq", "celery")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured (default: all)")
    parser.add_argument(
        "--jobs", type=int, default=20_000, metavar="N", help="in bulk, and end to end (default 20,000)"
    )
    parser.add_argument("--single", type=int, default=2_000, metavar="N", help="submitted one by one (default 2,000)")
    parser.add_argument("--clients", type=int, default=16, metavar="N", help="that submit one by one (default 16)")
    parser.add_argument("--callers", type=int, default=2, metavar="N", help="bulks under way at once (default 2)")
    parser.add_argument("--peer-jobs", type=int, default=2_000, metavar="N", help="of each peer (default 2,000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each latency (default 10)")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="of bare engine and stack, by turns (default 3)"
    )
    parser.add_argument("--model", default="smol135", help="of the queue tax (default smol135)")
    parser.add_argument("--models", type=Path, default=default_folder(), metavar="DIR", help="where models are kept")


def run(args: argparse.Namespace) -> Result:
    """Part after part."""
    names = ("jobs", "single", "clients", "callers", "peer_jobs", "seconds", "repeat", "model")
    result = Result("api", {name: getattr(args, name) for name in names} | {"part": args.part})
    with tempfile.TemporaryDirectory(prefix="penstock-api-", ignore_cleanup_errors=True) as name:
        asyncio.run(_Run(args, result, Path(name)).run())
    result.figures["cores"] = len(os.sched_getaffinity(0))
    result.figures["load_average_1m_at_end"] = os.getloadavg()[0]
    result.tables = [result.plain_table(), *_beside(result)]
    return result


class _Run:
    """One run."""

    def __init__(self, args: argparse.Namespace, result: Result, folder: Path) -> None:
        self._args = args
        self._result = result
        self._folder = folder
        self._console = Console(stderr=True)

    async def run(self) -> None:
        """Everything that was asked for."""
        parts = self._args.part
        async with control_stack(self._folder) as stack:
            if {"submit", "lives", "latency"} & set(parts):
                await stack.start("api", "worker", "maintenance", **_NULL)
            if "submit" in parts:
                await self._submit(stack)
            if "lives" in parts:
                await self._lives(stack)
            if "latency" in parts:
                await self._latency(stack)
            await stack.stop()
            if "peers" in parts:
                assert stack.config.redis_url
                await self._peers(stack.config.redis_url)
        if "tax" in parts:
            await self._tax()

    async def _submit(self, stack: ControlStack) -> None:
        """Without a worker: nothing but submissions."""
        await stack.stop("worker")
        async with stack.client() as client:
            self._tell("submissions one by one")
            rate = await load.one_by_one(client, self._args.single, self._args.clients)
            self._figure("one by one: durable submissions a second", rate)
            self._tell("submissions in bulk")
            rate = await load.in_bulk(client, self._args.jobs, self._args.callers)
            self._figure("bulk: durable submissions a second", rate)
            self._bar("bulk", rate, 5000, "jobs/s", at_most=False)
        await stack.start("worker", **_NULL)
        self._tell("working off what was submitted")
        await stack.until_all_ended()

    async def _lives(self, stack: ControlStack) -> None:
        self._tell("whole lives")
        async with stack.client() as client:
            rate = await load.end_to_end(stack, client, self._args.jobs, self._args.callers)
        self._figure("end to end: jobs a second", rate)
        self._bar("end to end", rate, 1000, "jobs/s", at_most=False)

    async def _latency(self, stack: ControlStack) -> None:
        seconds = self._args.seconds
        await stack.start("webhooks")
        async with stack.client() as client:
            self._tell("submit, at 100 requests a second")
            found = load.summary(await load.submit_latencies(client, 100, seconds))
            self._figures("submit at 100/s", found)
            self._bar("submit p50", found["p50_ms"], 8, "ms")
            self._tell("submit to first token, at 20 jobs a second")
            self._figures("submit to first token", load.summary(await load.first_tokens(stack, client, 20, seconds)))
            self._tell("end to webhook, at 20 jobs a second")
            self._figures("end to webhook", load.summary(await load.webhook_delays(stack, client, 20, seconds)))

    async def _peers(self, redis_url: str) -> None:
        for place, name in enumerate(_PEERS):
            self._tell(name)
            url = redis_url.removesuffix("/0") + f"/{place + 1}"
            command = [sys.executable, "-m", "benchmarks.peers.queues", name, url, str(self._args.peer_jobs)]
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            said, complaint = await process.communicate()
            if process.returncode != 0:
                self._result.failed.append(f"{name}: {complaint.decode(errors='replace').strip()[-300:]}")
                continue
            for what, value in json.loads(said).items():
                self._figure(f"{name}: {what}", value)

    async def _tax(self) -> None:
        folder = model_folder(self._args.model, self._args.models)
        bare: list[float] = []
        whole: list[float] = []
        for turn in range(self._args.repeat):
            self._tell(f"bare engine, turn {turn + 1}")
            bare += await tax.bare(folder, 1)
            self._tell(f"the same through the whole stack, turn {turn + 1}")
            name = self._folder / f"tax-{turn}"
            name.mkdir()
            async with control_stack(name) as stack:
                await stack.start("worker", "api", "maintenance", **tax.settings_of(folder))
                async with stack.client() as client:
                    whole += await tax.through_the_stack(stack, client, 1)
        for what, speeds in (("bare engine", bare), ("whole stack", whole)):
            self._figure(f"{tax.CASE}: {what}, tokens a second", statistics.median(speeds))
            self._result.figures[f"{tax.CASE}: {what}, each run"] = [round(each, 1) for each in speeds]
        left = statistics.median(whole) / statistics.median(bare)
        self._figure("queue tax: what is left of the engine's speed", left)
        self._bar("queue tax", left, 0.95, "of the bare engine", at_most=False)

    def _tell(self, what: str) -> None:
        self._console.print(what, markup=False, highlight=False)

    def _figure(self, name: str, value: float) -> None:
        self._result.figures[name] = value
        self._tell(f"  {name}: {value:,.2f}")

    def _figures(self, name: str, values: dict[str, float]) -> None:
        for what, value in values.items():
            self._figure(f"{name}: {what}", value)

    def _bar(self, name: str, value: float, limit: float, unit: str, *, at_most: bool = True) -> None:
        self._result.bars.append(Bar(name, value, limit, unit, at_most))


def _beside(result: Result) -> list[Table]:
    """Ours beside the others'."""
    table = Table(title="jobs a second", title_justify="left")
    for column in ("", "one by one", "bulk", "end to end"):
        table.add_column(column, justify="left" if not column else "right")
    figures: dict[str, Any] = result.figures
    ours = [
        "one by one: durable submissions a second",
        "bulk: durable submissions a second",
        "end to end: jobs a second",
    ]
    rows = {"penstock (durable, over HTTP)": ours}
    rows |= {name: [f"{name}: {what}" for what in ("one by one", "bulk", "end to end")] for name in _PEERS}
    for name, wanted in rows.items():
        table.add_row(name, *[f"{figures[each]:,.0f}" if each in figures else "-" for each in wanted])
    return [table]
