"""How long does each page of the dashboard take, with a million jobs of ten thousand tenants behind it?

Real servers, a real API process; the pages are asked for one at a time, as one operator would, and timed by who asks on the same
machine, from the request to the last byte of its answer. Each page is opened once before it is measured; that first time is shown, too.
"""

import argparse
import asyncio
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from app.dashboard.assets import PREFIX
from app.db import create_engine
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.operators import passwords
from app.operators.people import create_person, find_person, set_password
from app.redis import create_redis
from app.schema import migrate
from app.settings import Settings
from benchmarks.pages.paths import pages
from benchmarks.pages.seed import Size, fill
from benchmarks.result import Bar, Result

_MOST_MS = 300.0
_PATIENCE_S = 60.0
_NAME, _PASSWORD = "benchmark", "no-password-of-anybody"
_LISTENING = re.compile(r'"event": ?"api\.listening".*?"port": ?(\d+)')


class _Refused(Exception):
    """A page that wasn't shown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--jobs", type=int, default=1_000_000, metavar="N", help="jobs (default 1,000,000)")
    parser.add_argument("--tenants", type=int, default=10_000, metavar="N", help="whose they are (default 10,000)")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="of each page (default 20)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the database here; a full one is used again")


def run(args: argparse.Namespace) -> Result:
    """Fill, start, log in, open every page."""
    result = Result("dashboard", {"jobs": args.jobs, "tenants": args.tenants, "runs": args.runs})
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        data = args.keep or folder
        data.mkdir(parents=True, exist_ok=True)
        with EmbeddedPostgres(data / "postgres") as postgres, EmbeddedRedis(folder / "redis") as redis:
            config = Settings(database_url=postgres.url, redis_url=redis.url)
            migrate(config)
            asyncio.run(_measure(config, args, folder, result))
    return result


async def _measure(config: Settings, args: argparse.Namespace, folder: Path, result: Result) -> None:
    console = Console(stderr=True)
    db = create_engine(config, application_name="penstock-benchmark")
    try:
        began = time.monotonic()
        async with create_redis(config) as redis:
            await fill(db, redis, Size(args.jobs, args.tenants), console.print)
        result.figures["filled in s"] = time.monotonic() - began
        paths = await pages(db)
        async with db.begin() as conn:
            person = await find_person(conn, _NAME) or await create_person(conn, _NAME, "operator", actor="benchmark")
            await set_password(conn, person.id, await passwords.hashed(_PASSWORD), actor="benchmark")
    finally:
        await db.dispose()
    assert config.database_url
    assert config.redis_url
    environment = os.environ | {
        "DATABASE_URL": config.database_url, "REDIS_URL": config.redis_url, "PENSTOCK_API_PORT": "0",
        "PENSTOCK_DASHBOARD_INSECURE_COOKIE": "true",
    }  # fmt: skip
    log = folder / "api.log"
    with log.open("ab") as stream:
        api = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "app.api.main", env=environment, stdout=stream, stderr=stream
        )
    try:
        port = await _port(log)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE_S) as client:
            await _log_in(client)
            console.print(f"{len(paths)} pages, {args.runs} times each")
            await _open_all(client, paths, args.runs, result)
    finally:
        api.terminate()
        await api.wait()


async def _port(log: Path) -> int:
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            if found := _LISTENING.search(await asyncio.to_thread(log.read_text)):
                return int(found[1])
            await asyncio.sleep(0.05)


async def _log_in(client: httpx.AsyncClient) -> None:
    origin = {"Origin": str(client.base_url).rstrip("/")}
    form = {"name": _NAME, "password": _PASSWORD}
    answer = await client.post(f"{PREFIX}/login", data=form, headers=origin)
    assert answer.status_code == 303, f"the log-in was answered with {answer.status_code}"


async def _open_all(client: httpx.AsyncClient, paths: dict[str, str], runs: int, result: Result) -> None:
    table = Table(title=f"milliseconds, of {runs} runs each", title_justify="left")
    table.add_column("page")
    for name in ("p50", "p95", "max", "first", "bytes"):
        table.add_column(name, justify="right")
    for name, path in paths.items():
        try:
            first, size = await _open(client, path)
        except _Refused as error:
            result.failed.append(f"{name}: {error}")
            continue
        times = sorted([(await _open(client, path))[0] for _ in range(runs)])
        figures = _figures(times) | {"first": first, "bytes": size}
        result.figures[name] = figures
        result.bars.append(Bar(name, figures["max"], _MOST_MS, "ms"))
        table.add_row(name, *(f"{figures[each]:,.0f}" for each in ("p50", "p95", "max", "first", "bytes")))
    result.tables.append(table)


async def _open(client: httpx.AsyncClient, path: str) -> tuple[float, int]:
    """(milliseconds, bytes) of one answer."""
    began = time.perf_counter()
    answer = await client.get(PREFIX + path)
    took_ms = (time.perf_counter() - began) * 1000
    if answer.status_code != 200:
        raise _Refused(f"{path} was answered with {answer.status_code}")
    return took_ms, len(answer.content)


def _figures(times: list[float]) -> dict[str, Any]:
    return {
        "p50": statistics.median(times),
        "p95": times[min(len(times) - 1, round(0.95 * (len(times) - 1)))],
        "max": times[-1],
    }
