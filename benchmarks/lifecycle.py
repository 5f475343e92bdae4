"""What does a job cost Postgres, an API process and Redis' event streams? Processor time, log, disk and memory, on real servers, without workers."""

import argparse
import asyncio
import os
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.ids import new_id
from app.jobs import leases, store
from app.jobs.finish import Ending, finish
from app.jobs.leases import Incarnation
from app.jobs.models import Model, TokenizerFiles, register_model
from app.jobs.notices import Used
from app.jobs.tokenizing import tokenizer_digest
from app.queue.events import ChoiceDelta, EventLog, JobEvent, Publication
from app.queue.streams import JobQueue, Nomination
from app.quotas.keys import create_key, ensure_tenant
from app.redis import create_redis
from app.schema import migrate
from app.settings import Settings
from benchmarks.result import Result
from workers.engine.tokenizer import byte_bundle

_POOL = "bench"
_RENEWALS = 500
_EVENT_JOBS, _EVENTS_A_JOB, _EVENTS_A_TRIP = 80, 500, 8
_PEPPER = "only-for-this-benchmark-0123456789"
_START_S = 30.0
_QUEUED = text("SELECT id, gen, tenant_id FROM jobs WHERE status = 'queued' ORDER BY id")
_SIZES = text("SELECT pg_current_wal_insert_lsn() - '0/0' AS log, pg_database_size(current_database()) AS disk")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--jobs", type=int, default=2_000, metavar="N", help="jobs (default 2,000)")
    parser.add_argument("--prompt", type=int, default=1_000, metavar="N", help="characters of a prompt (default 1,000)")
    parser.add_argument("--output", type=int, default=500, metavar="N", help="tokens of a result (default 500)")
    parser.add_argument("--clients", type=int, default=16, metavar="N", help="that submit at once (default 16)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="jobs a start and a finish (default 1)")


def run(args: argparse.Namespace) -> Result:
    """Submit over HTTP, start, finish."""
    names = ("jobs", "prompt", "output", "clients", "batch")
    result = Result("lifecycle", {name: getattr(args, name) for name in names})
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with EmbeddedPostgres(folder / "postgres") as postgres, EmbeddedRedis(folder / "redis") as redis:
            config = Settings(database_url=postgres.url, redis_url=redis.url)
            migrate(config)
            assert postgres.process is not None
            assert redis.process is not None
            asyncio.run(_measure(config, args, psutil.Process(postgres.process.pid), folder, result))
            asyncio.run(_publish(config, psutil.Process(redis.process.pid), result))
    return result


async def _measure(
    config: Settings, args: argparse.Namespace, postgres: psutil.Process, folder: Path, result: Result
) -> None:
    db = create_engine(config, application_name="penstock-benchmark")
    try:
        async with create_redis(config) as redis:
            token = await _seed(db)
            await JobQueue(redis, _POOL).open_epoch("bench")
            with _api(config, folder) as (api, url):
                meter = await Meter.read(db, postgres, api)
                await _submit(url, token, args)
                meter = await meter.tell(result, "submit", args.jobs, db)
            async with db.connect() as conn:
                queued = [
                    Nomination(row.id, row.gen, "standard", row.tenant_id, 1) for row in await conn.execute(_QUEUED)
                ]
            if len(queued) != args.jobs:
                result.failed.append(f"{args.jobs - len(queued)} jobs weren't accepted")
            incarnation = new_id()
            async with db.begin() as conn:
                await leases.register(
                    conn,
                    Incarnation(incarnation, _POOL, _POOL, socket.gethostname(), 1, "cpu", "none"),
                    ttl_s=3600,
                )
            meter = await Meter.read(db, postgres, None)
            for i in range(0, len(queued), args.batch):
                async with db.begin() as conn:
                    await store.start(conn, incarnation, queued[i : i + args.batch])
            meter = await meter.tell(result, "start", args.jobs, db)
            choices = [{"index": 0, "text": _text(4 * args.output), "finish_reason": "stop"}]
            for i in range(0, len(queued), args.batch):
                batch = [
                    Ending(each.job_id, 1, "succeeded", choices, used=Used(args.prompt, 0, args.output))
                    for each in queued[i : i + args.batch]
                ]
                async with db.begin() as conn:
                    await finish(conn, batch)
            meter = await meter.tell(result, "finish", args.jobs, db)
            for _ in range(_RENEWALS):
                async with db.begin() as conn:
                    await leases.renew(conn, incarnation, ttl_s=3600, state="ready", stats={"jobs": 0})
            await meter.tell(result, "renewal", _RENEWALS, db)
    finally:
        await db.dispose()


async def _publish(config: Settings, server: psutil.Process, result: Result) -> None:
    """Events of one token each, for some jobs in one round trip, as a worker publishes them."""
    async with create_redis(config) as redis:
        log = EventLog(redis, ttl_s=config.event_ttl_s, max_entries=config.event_max_entries)
        jobs = [new_id() for _ in range(_EVENT_JOBS)]
        memory, spent = (await redis.info("memory"))["used_memory"], _own_s(server)
        for seq in range(1, _EVENTS_A_JOB + 1):
            event = JobEvent(
                kind="tokens",
                attempt=1,
                deltas=[ChoiceDelta(choice=0, offset=seq - 1, token_ids=[seq], text=" word")],
            )
            for i in range(0, len(jobs), _EVENTS_A_TRIP):
                await log.publish([Publication(job, seq, event) for job in jobs[i : i + _EVENTS_A_TRIP]])
        count = _EVENTS_A_JOB * len(jobs)
        result.figures["event: Redis us of a processor"] = (_own_s(server) - spent) / count * 1e6
        result.figures["event: bytes of Redis"] = ((await redis.info("memory"))["used_memory"] - memory) / count


class Meter:
    """Processor time of Postgres' processes and of one other, log and disk, since they were read."""

    def __init__(self, postgres: psutil.Process, api: psutil.Process | None) -> None:
        self._postgres, self._api = postgres, api
        self._at = time.perf_counter()
        self._cpu: dict[str, float] = {}
        self._sizes: Any = None

    @classmethod
    async def read(cls, db: AsyncEngine, postgres: psutil.Process, api: psutil.Process | None) -> "Meter":
        """From now on."""
        meter = cls(postgres, api)
        async with db.connect() as conn:
            meter._sizes = (await conn.execute(_SIZES)).one()
        meter._cpu = meter._processor_s()
        return meter

    async def tell(self, result: Result, what: str, count: int, db: AsyncEngine) -> "Meter":
        """Write down what each of so many took since; return the next meter."""
        took_s = time.perf_counter() - self._at
        new = await Meter.read(db, self._postgres, self._api)
        result.figures[f"{what}: a second"] = count / took_s
        for name, seconds in new._cpu.items():
            result.figures[f"{what}: {name} ms of a processor, each"] = (seconds - self._cpu[name]) / count * 1000
        for name, unit in (("log", "bytes of log"), ("disk", "bytes on disk")):
            amount = float(getattr(new._sizes, name) - getattr(self._sizes, name))
            result.figures[f"{what}: {unit}, each"] = amount / count
        new._at = time.perf_counter()
        return new

    def _processor_s(self) -> dict[str, float]:
        """Of processes that live now; connections are pooled, so theirs live on, and the postmaster counts those that ended."""
        family = [self._postgres, *self._postgres.children(recursive=True)]
        ended = self._postgres.cpu_times()
        spent = {"Postgres": sum(_own_s(each) for each in family) + ended.children_user + ended.children_system}
        return spent | ({"API": _own_s(self._api)} if self._api else {})


def _own_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


async def _seed(db: AsyncEngine) -> str:
    """A model, a tenant; the token of its key."""
    bundle = byte_bundle(512)
    raw = bundle.tokenizer_json.encode()
    files = TokenizerFiles(
        tokenizer_digest(raw, bundle.chat_template), raw, bundle.chat_template, bundle.special_tokens
    )
    async with db.begin() as conn:
        await register_model(conn, Model(_POOL, _POOL, files.hash, "none", 8192, 512), files)
        await ensure_tenant(conn, "acme")
        _, token = await create_key(conn, "acme", pepper=_PEPPER, actor="benchmark")
    return token


@contextmanager
def _api(config: Settings, folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """One API process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert config.database_url
    assert config.redis_url
    environment = os.environ | {
        "DATABASE_URL": config.database_url,
        "REDIS_URL": config.redis_url,
        "PENSTOCK_KEY_PEPPER": _PEPPER,
        "PENSTOCK_API_PORT": str(port),
    }
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "app.api.main"], env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        _until_ready(url, process)
        yield psutil.Process(process.pid), url
    finally:
        process.terminate()
        process.wait()


def _until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise FileNotFoundError("the API process doesn't answer")


def _text(length: int) -> str:
    """Letters without a pattern, so that compression saves little; a real text takes less."""
    return "".join(Random(1).choices(string.ascii_lowercase + " ", k=length))


async def _submit(url: str, token: str, args: argparse.Namespace) -> None:
    left = iter(range(args.jobs))
    body = {"model": _POOL, "prompt": _text(args.prompt), "max_tokens": args.output, "tier": "standard"}

    async def submit_on(client: httpx.AsyncClient) -> None:
        for _ in left:
            reply = await client.post("/v1/jobs", json=body)
            reply.raise_for_status()

    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client, asyncio.TaskGroup() as group:
        for _ in range(args.clients):
            group.create_task(submit_on(client))
