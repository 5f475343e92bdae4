"""Is nothing lost and nothing done twice while everything breaks? The whole stack under load, with faults from a seed."""

import argparse
import asyncio
import contextlib
import json
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine
from app.ids import new_id
from app.quotas.keys import create_key, ensure_tenant
from app.quotas.tables import budgets
from app.redis import create_redis
from app.schema import migrate
from app.settings import Settings
from benchmarks.faults.load import TENANTS, Load, Tally, receive_hooks
from benchmarks.faults.parts import FaultyStack
from benchmarks.faults.plan import Fault, by_name, make_plan
from benchmarks.faults.verdict import Verdict, judge, num_unfinished
from benchmarks.result import Bar, Result

_FAULTS_A_MINUTE = 17.0
_READY_S = 60.0
_SETTLE_S = 180.0  # after the last fault
_AGAIN_S = 60.0  # how long, after the plan, what met nothing comes again
_NULL_ENGINE = {"PENSTOCK_ENGINE": "null", "PENSTOCK_NULL_STEP_S": "0.01"}
_LIMIT = 10**12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--minutes", type=float, default=2.0, help="how long faults come (default 2)")
    parser.add_argument("--seed", type=int, default=1, help="which faults, and which jobs (default 1)")
    parser.add_argument("--faults", type=int, help=f"how many (default {_FAULTS_A_MINUTE:g} a minute)")
    parser.add_argument("--rate", type=float, default=8.0, help="jobs submitted a second (default 8)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the durations of faults: 0.1 makes a partition of 20 s one of 2 s"
    )
    parser.add_argument(
        "--engine", choices=["null", "brook"], default="null", help="made-up tokens, or the bundled model"
    )
    parser.add_argument("--folder", type=Path, help="where data and logs go, and stay (default: one that is deleted)")
    parser.add_argument("--plan", action="store_true", help="print the faults that would come, and end")


def run(args: argparse.Namespace) -> Result:
    """Break everything for a while, let it settle, look."""
    count = args.faults or max(1, round(args.minutes * _FAULTS_A_MINUTE))
    plan = make_plan(args.seed, count, args.minutes * 60, scale=args.scale)
    settings = {name: getattr(args, name) for name in ("minutes", "seed", "rate", "scale", "engine")} | {
        "faults": count
    }
    result = Result("chaos", settings)
    if args.plan:
        for fault in plan:
            print(fault)
        return result
    with _folder(args.folder) as folder:
        try:
            asyncio.run(_Chaos(args, plan, folder).run(result))
        except TimeoutError as error:
            result.failed.append(str(error) or "something took too long")
    return result


@contextlib.contextmanager
def _folder(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="penstock-chaos-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        yield Path(name)


class _Chaos:
    """One run."""

    def __init__(self, args: argparse.Namespace, plan: list[Fault], folder: Path) -> None:
        self._args = args
        self._plan = plan
        self._console = Console(stderr=True)
        engine = _NULL_ENGINE if args.engine == "null" else {"PENSTOCK_ENGINE_THREADS": "1"}
        self._stack = FaultyStack(folder, _free_port(), engine)
        self._done: list[Fault] = []
        self._broken: list[str] = []  # faults that couldn't be made
        self._missed: list[Fault] = []  # faults that found nothing to happen to; they don't count
        self._began = 0.0

    async def run(self, result: Result) -> None:
        """Up, break, settle, judge, down."""
        try:
            await asyncio.to_thread(self._stack.start_servers)
            config = Settings(
                database_url=self._stack.servers["postgres"].url, redis_url=self._stack.servers["redis"].url
            )
            await asyncio.to_thread(migrate, config)
            db = create_engine(config, application_name="penstock-chaos")
            try:
                await self._run(config, db, result)
            finally:
                await db.dispose()
        finally:
            self._tell("stopping")
            await self._stack.stop()

    async def _run(self, config: Settings, db: AsyncEngine, result: Result) -> None:
        tokens = await _make_tenants(db, config)
        await self._stack.start_processes()
        tally = Tally()
        hooks = await receive_hooks(tally)
        load = Load(
            self._stack.url, tokens, seed=self._args.seed, rate=self._args.rate,
            hook_port=hooks.sockets[0].getsockname()[1],
        )  # fmt: skip
        load.tally = tally
        await self._until_ready(db)
        self._began = time.monotonic()
        clients = asyncio.create_task(load.run())
        try:
            await self._break_everything(load)
            load.is_over = True
            settled_s = await self._settle(db, load)
            async with create_redis(config) as redis:
                verdict = await judge(db, redis, tally)
        finally:
            load.is_over = True
            clients.cancel()
            await asyncio.gather(clients, return_exceptions=True)
            hooks.close()
        self._report(result, tally, verdict, settled_s)

    async def _break_everything(self, load: Load) -> None:
        tasks: set[asyncio.Task[None]] = set()
        for i, fault in enumerate(self._plan):
            await asyncio.sleep(max(0.0, self._began + fault.at_s - time.monotonic()))
            self._tell(
                f"{i + 1:4} of {len(self._plan)}  {fault}  ({len(load.tally.accepted)} jobs accepted, {load.num_open} clients ask)"
            )
            tasks.add(asyncio.create_task(self._suffer(fault)))
        await asyncio.gather(*tasks)
        await self._make_up_for_missed(load)
        self._stack.heal()

    async def _make_up_for_missed(self, load: Load) -> None:
        """What met nothing comes again at the plan's pace: on a slow machine, what was killed takes long to be there again."""
        pause_s = self._args.minutes * 60 / len(self._plan)
        ends_at = time.monotonic() + _AGAIN_S
        while self._missed and time.monotonic() < ends_at:
            missed, self._missed = self._missed, []
            tasks = []
            for fault in missed:
                self._tell(f"again  {fault}  ({len(load.tally.accepted)} jobs accepted, {load.num_open} clients ask)")
                tasks.append(asyncio.create_task(self._suffer(fault)))
                await asyncio.sleep(pause_s)
            await asyncio.gather(*tasks)

    async def _suffer(self, fault: Fault) -> None:
        try:
            has_happened = await self._stack.suffer(fault)
        except Exception as error:  # noqa: BLE001 - a fault that can't be made is told, and the run goes on
            self._broken.append(f"{fault}: {type(error).__name__}: {error}")
        else:
            if has_happened:
                self._done.append(fault)
            else:  # the process was just being started again, or had no connection or request to lose
                self._missed.append(fault)

    async def _settle(self, db: AsyncEngine, load: Load) -> float:
        """Seconds until every client had its answer, every job its end, every due webhook was sent; all faults are over."""
        began = time.monotonic()
        while time.monotonic() - began < _SETTLE_S:
            jobs, hooks = await num_unfinished(db)
            self._tell(f"settling: {load.num_open} clients ask, {jobs} jobs without an end, {hooks} webhooks to send")
            if not (load.num_open or jobs or hooks):
                break
            await asyncio.sleep(1.0)
        return time.monotonic() - began

    async def _until_ready(self, db: AsyncEngine) -> None:
        async with asyncio.timeout(_READY_S):
            while True:
                async with db.connect() as conn:
                    workers = await conn.scalar(text("SELECT count(*) FROM workers WHERE ended_at IS NULL"))
                if workers == 2 and await asyncio.to_thread(_answers, self._stack.url):
                    return
                self._tell("starting")
                await asyncio.sleep(0.5)

    def _report(self, result: Result, tally: Tally, verdict: Verdict, settled_s: float) -> None:
        deaths = {name: part.statuses for name, part in self._stack.parts.items()}
        result.figures |= {
            "faults": len(self._done),
            "faults by name": dict(by_name(self._done)),
            "faults by kind": dict(Counter(fault.kind for fault in self._done)),
            "faults not made": self._broken,
            "faults that met nothing": [str(fault) for fault in self._missed],
            "requests to submit": tally.num_posts,
            "jobs accepted": len(tally.accepted),
            "webhooks received": tally.num_told,
            "settled after s": settled_s,
            "answers lost": sum(link.num_lost_answers for link in self._stack.links.values()),
            "exit statuses": deaths,
            "refused": tally.refused[:10],
            **asdict(verdict),
        }
        result.tables += [_table_of_faults(self._done), _table_of_jobs(tally, verdict, settled_s)]
        for name, value in (
            ("jobs lost", len(verdict.lost)),
            ("jobs doubled", verdict.num_doubled + max(0, sum(verdict.by_status.values()) - tally.num_keys)),
            ("jobs mangled", len(verdict.mangled)),
            ("jobs dead", sum(verdict.dead.values())),
            ("events told under two ids", len(verdict.told_twice)),
            ("webhooks that never came", verdict.never_told),
            ("clients refused", len(tally.refused)),
            ("audit findings", sum(verdict.findings.values()) + len(verdict.unchecked)),
            ("faults not made", len(self._broken)),
        ):
            result.bars.append(Bar(name, value, 0, ""))
        if len(self._plan) >= 4 * len(dict(by_name([]))):
            missing = [name for name, number in by_name(self._done) if not number]
            result.bars.append(Bar("kinds of faults that didn't come", len(missing), 0, ""))

    def _tell(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)


def _table_of_faults(faults: list[Fault]) -> Table:
    table = Table(title=f"{len(faults)} faults", title_justify="left")
    table.add_column("fault")
    table.add_column("times", justify="right")
    for name, count in by_name(faults):
        table.add_row(name, str(count))
    return table


def _table_of_jobs(tally: Tally, verdict: Verdict, settled_s: float) -> Table:
    table = Table(title="what came of it", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right", overflow="fold")
    rows: dict[str, Any] = {
        "requests to submit": tally.num_posts,
        "jobs accepted": len(tally.accepted),
        **{f"jobs {status}": count for status, count in sorted(verdict.by_status.items())},
        "dead letters": json.dumps(verdict.dead) if verdict.dead else 0,
        "lost": len(verdict.lost),
        "doubled": verdict.num_doubled,
        "mangled": len(verdict.mangled),
        "webhooks received": tally.num_told,
        "webhooks still to send": verdict.untold,
        "audit": json.dumps(verdict.findings | verdict.unchecked) if verdict.findings or verdict.unchecked else "clean",
        "longest from submission to end": f"{verdict.longest_s:.1f} s",
        "settled after": f"{settled_s:.0f} s",
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    return table


async def _make_tenants(db: AsyncEngine, config: Settings) -> dict[str, str]:
    """Tenants with budgets, so that money is watched too; their keys."""
    tokens = {}
    async with db.begin() as conn:
        for tenant in TENANTS:
            await ensure_tenant(conn, tenant)
            _, tokens[tenant] = await create_key(
                conn, tenant, pepper=config.key_pepper.get_secret_value(), actor="chaos"
            )
            for metric, period in (("total_tokens", "day"), ("output_tokens", "minute"), ("requests", "total")):
                await conn.execute(
                    insert(budgets).values(
                        id=new_id(), tenant_id=tenant, metric=metric, period=period, hard_limit=_LIMIT
                    )
                )
    return tokens


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/readyz", timeout=2).is_success
    except httpx.HTTPError:
        return False
