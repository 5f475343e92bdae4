"""What happens at five times the capacity? Real servers and processes on the null engine; clients who come back when they were told to."""

import argparse
import asyncio
import contextlib
import os
import socket
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.jobs.states import TIERS
from app.quotas.keys import create_key, ensure_tenant
from app.schema import migrate
from app.settings import Settings
from benchmarks.faults.parts import Part
from benchmarks.overload_report import CEILINGS_S, Play, Refused, Tally, report
from benchmarks.result import Result

_TENANTS = ("acme", "globex", "initech")
_MIX = {"interactive": 0.5, "standard": 0.3, "batch": 0.2}  # of the jobs that are submitted
_PROMPT = "tell me, in a few words, of the river and the mill"
_MAX_TOKENS = 64
_WARM_UP_JOBS = 96
_READY_S = 60.0
_DRAIN_S = 180.0
_TIMEOUT_S = 20.0
_MODEL = "overload"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--seconds", type=float, default=60.0, help="how long jobs are submitted (default 60)")
    parser.add_argument("--factor", type=float, default=5.0, help="of the measured capacity (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="which jobs, and when (default 1)")
    parser.add_argument("--step-s", type=float, default=0.04, help="seconds a step of the null engine (default 0.04)")
    parser.add_argument("--slots", type=int, default=16, help="sequences that the engine runs at once (default 16)")


def run(args: argparse.Namespace) -> Result:
    """Measure the capacity, pass it, look."""
    settings = {name: getattr(args, name) for name in ("seconds", "factor", "seed", "step_s", "slots")}
    result = Result("overload", settings | {"ceilings_s": CEILINGS_S, "max_tokens": _MAX_TOKENS})
    with tempfile.TemporaryDirectory(prefix="penstock-overload-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        try:
            asyncio.run(_Overload(args, Path(name)).run(result))
        except TimeoutError as error:
            result.failed.append(str(error) or "something took too long")
    return result


class _Overload:
    """One run."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args = args
        self._folder = folder
        self._console = Console(stderr=True)
        self._port = _free_port()
        self._parts: dict[str, Part] = {}
        self._tally = Tally()
        self._memory: dict[str, list[float]] = {}
        self._ends_at = 0.0

    async def run(self, result: Result) -> None:
        """Up, measure, overload, drain, judge, down."""
        with (
            EmbeddedPostgres(self._folder / "postgres", fast=True) as postgres,
            EmbeddedRedis(self._folder / "redis") as redis,
        ):
            config = Settings(database_url=postgres.url, redis_url=redis.url)
            await asyncio.to_thread(migrate, config)
            db = create_engine(config, application_name="penstock-overload")
            try:
                tokens = await _make_tenants(db, config)
                self._start(postgres.url, redis.url)
                await self._run(db, tokens, result)
            finally:
                await db.dispose()
                for part in self._parts.values():
                    await asyncio.to_thread(part.end)

    def _start(self, postgres: str, redis: str) -> None:
        environment = os.environ | {
            "DATABASE_URL": postgres,
            "REDIS_URL": redis,
            "PENSTOCK_DATA_DIR": str(self._folder),
            "PENSTOCK_API_PORT": str(self._port),
            "PENSTOCK_ENGINE": "null",
            "PENSTOCK_NULL_STEP_S": str(self._args.step_s),
            "PENSTOCK_MAX_NUM_SEQS": str(self._args.slots),
            "PENSTOCK_MODEL_NAME": _MODEL,
            "PENSTOCK_PREFIX_CACHE": "false",
            **{f"PENSTOCK_MAX_WAIT_{tier.upper()}_S": str(limit) for tier, limit in CEILINGS_S.items()},
        }
        for name in ("api", "worker", "maintenance"):
            self._parts[name] = Part(name, environment, self._folder)
            self._parts[name].start()

    async def _run(self, db: AsyncEngine, tokens: dict[str, str], result: Result) -> None:
        limits = httpx.Limits(max_connections=400, max_keepalive_connections=100)
        url = f"http://127.0.0.1:{self._port}"
        async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=limits) as client:
            await self._until_ready(db, client)
            capacity = await self._measure(db, client, tokens)
            self._tell(
                f"capacity: {capacity:.1f} jobs a second; {self._args.factor:g} x that come for {self._args.seconds:g} s"
            )
            watching = asyncio.create_task(self._watch_memory())
            began = await _now(db)
            try:
                await self._overload(client, tokens, capacity * self._args.factor)
                await self._until_drained(db)
            finally:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching
            play = Play(self._args.factor, capacity, began, self._ends_at)
            await report(db, result, play, self._tally, self._memory)

    async def _measure(self, db: AsyncEngine, client: httpx.AsyncClient, tokens: dict[str, str]) -> float:
        """Jobs a second of the full engine, by its ends in the middle of a burst; returns when the lease knows it, too."""
        auth = {"Authorization": f"Bearer {tokens[_TENANTS[0]]}"}
        body = {"prompt": _PROMPT, "max_tokens": _MAX_TOKENS, "ignore_eos": True}
        for number in range(_WARM_UP_JOBS):
            # Of all tiers, as in any installation that has been up for a while: a tier's share is known once it has had work.
            tier = TIERS[-1] if number % 8 else TIERS[number // 8 % 2]
            answer = await client.post("/v1/jobs", json=body | {"tier": tier}, headers=auth)
            assert answer.status_code == 202, answer.text
        await self._until_drained(db)
        async with db.connect() as conn:
            per_s = await conn.scalar(
                text("""
                    WITH ends AS (SELECT finished_at, row_number() OVER (ORDER BY finished_at) AS place FROM jobs)
                    SELECT (:high - :low) / extract(epoch FROM max(finished_at) - min(finished_at))::float8
                    FROM ends WHERE place IN (:low, :high)
                """),
                {"low": self._args.slots, "high": _WARM_UP_JOBS - self._args.slots},
            )
        async with asyncio.timeout(_READY_S):
            while True:
                async with db.connect() as conn:
                    known = await conn.scalar(
                        text("SELECT max(stats->>'drain_tokens_per_s') FROM workers WHERE ended_at IS NULL")
                    )
                if known is not None:
                    self._tell(f"the lease says: {known} tokens a second")
                    await asyncio.sleep(1.5)  # until the API has read it
                    return float(per_s or 0.0)
                await asyncio.sleep(0.5)

    async def _overload(self, client: httpx.AsyncClient, tokens: dict[str, str], rate: float) -> None:
        """Clients come at this rate, at random moments; each comes back when it was told, until the time is over."""
        random = Random(self._args.seed)
        began = time.monotonic()
        self._ends_at = began + self._args.seconds
        clients: set[asyncio.Task[None]] = set()
        due = began
        while (due := due + random.expovariate(rate)) < self._ends_at:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            number = self._tally.num_clients
            self._tally.num_clients += 1
            tenant = _TENANTS[number % len(_TENANTS)]
            tier = random.choices(list(_MIX), list(_MIX.values()))[0]
            task = asyncio.create_task(self._use(client, number, tokens[tenant], tier))
            clients.add(task)
            task.add_done_callback(clients.discard)
            if number % 500 == 0:
                self._tell(f"{time.monotonic() - began:5.1f} s: {number} clients, {len(self._tally.in_at)} accepted")
        await asyncio.gather(*clients)

    async def _use(self, client: httpx.AsyncClient, number: int, token: str, tier: str) -> None:
        body = {
            "prompt": _PROMPT, "max_tokens": _MAX_TOKENS, "ignore_eos": True, "tier": tier,
            "metadata": {"client": str(number)},
        }  # fmt: skip
        tally = self._tally
        while True:
            tally.num_posts += 1
            sent = time.monotonic()
            try:
                answer = await client.post("/v1/jobs", json=body, headers={"Authorization": f"Bearer {token}"})
            except httpx.HTTPError as error:
                tally.others.append(type(error).__name__)
                return
            now = time.monotonic()
            if answer.status_code == 202:
                tally.accepted_ms.append((now - sent) * 1000)
                tally.in_at[number] = now
                tally.note_forecast(answer.json())
                return
            if answer.status_code not in {429, 503} or "reason" not in answer.json():
                tally.others.append(f"{answer.status_code}: {answer.text[:200]}")
                return
            tally.refusals_ms.append((now - sent) * 1000)
            reason = f"{answer.status_code} {answer.json()['reason']}"
            tally.reasons[reason] = tally.reasons.get(reason, 0) + 1
            told = answer.headers.get("retry-after")
            if told is None:
                tally.num_without_retry_after += 1
                return
            tally.first.setdefault(number, Refused(now, float(told), tier))
            if now + float(told) > self._ends_at:
                return
            await asyncio.sleep(float(told))

    async def _watch_memory(self) -> None:
        while True:
            for name, part in self._parts.items():
                if part.pid is not None:
                    with contextlib.suppress(psutil.Error):
                        process = psutil.Process(part.pid)
                        total = sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])
                        self._memory.setdefault(name, []).append(total / 2**20)
            await asyncio.sleep(1.0)

    async def _until_ready(self, db: AsyncEngine, client: httpx.AsyncClient) -> None:
        async with asyncio.timeout(_READY_S):
            while True:
                async with db.connect() as conn:
                    workers = await conn.scalar(text("SELECT count(*) FROM workers WHERE ended_at IS NULL"))
                with contextlib.suppress(httpx.HTTPError):
                    if workers and (await client.get("/readyz")).is_success:
                        return
                await asyncio.sleep(0.3)

    async def _until_drained(self, db: AsyncEngine) -> None:
        async with asyncio.timeout(_DRAIN_S):
            while True:
                async with db.connect() as conn:
                    left = await conn.scalar(text("SELECT count(*) FROM jobs WHERE finished_at IS NULL"))
                if not left:
                    return
                await asyncio.sleep(0.3)

    def _tell(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)


async def _now(db: AsyncEngine) -> Any:
    async with db.connect() as conn:
        return await conn.scalar(text("SELECT clock_timestamp()"))


async def _make_tenants(db: AsyncEngine, config: Settings) -> dict[str, str]:
    tokens = {}
    async with db.begin() as conn:
        for tenant in _TENANTS:
            await ensure_tenant(conn, tenant)
            pepper = config.key_pepper.get_secret_value()
            _, tokens[tenant] = await create_key(conn, tenant, pepper=pepper, actor="overload")
    return tokens


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
