"""Do 1,000 readers of one API process get every token once, soon, and cheaply, while that process is restarted under them?

A fake engine writes one token at a time for as many jobs as there are readers; each reader holds a connection of its own. The API is
stopped or killed and started again in between. All run on this machine's cores, the API in one process.
"""

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

import httpx
import msgspec
import psutil

from app.db import create_engine
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.ids import job_name
from app.jobs.models import Model, TokenizerFiles, register_model
from app.jobs.prepare import prepare
from app.jobs.request import JobRequest
from app.jobs.submit import Caller, accept
from app.jobs.tokenizing import PromptEncoder, tokenizer_digest
from app.quotas.keys import create_key, ensure_tenant
from app.schema import migrate
from app.settings import Settings
from benchmarks.result import Bar, Result
from benchmarks.streaming.readers import Crowd, Heard
from benchmarks.streaming.writer import POOL, Task, Wrote
from workers.engine.tokenizer import byte_bundle

_PEPPER = "only-for-this-benchmark-0123456789"
_LEAD_S = 15.0  # for processes to come up and readers to connect, before the first token
_SETTLED_S = 5.0  # after a restart, until latencies count again: what was written meanwhile comes late by nature
_START_S = 60.0
_PAGE = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--readers", type=int, default=1_000, metavar="N", help="each of a job of its own (default 1,000)"
    )
    parser.add_argument(
        "--rate", type=float, default=20.0, metavar="R", help="tokens a second of each job (default 20)"
    )
    parser.add_argument("--seconds", type=float, default=80.0, metavar="S", help="how long tokens come (default 80)")
    parser.add_argument(
        "--restarts", type=int, default=3, metavar="N", help="of the API (default 3), every other a kill -9"
    )


def run(args: argparse.Namespace) -> Result:
    """Write, read, restart, count."""
    result = Result("streams", {name: getattr(args, name) for name in ("readers", "rate", "seconds", "restarts")})
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with EmbeddedPostgres(folder / "postgres") as postgres, EmbeddedRedis(folder / "redis") as redis:
            config = Settings(database_url=postgres.url, redis_url=redis.url)
            migrate(config)
            jobs, token = asyncio.run(_seed(config, args.readers))
            assert redis.process is not None
            _Run(args, config, folder, jobs, token, result, redis.process.pid).measure()
    return result


class _Run:
    """One API, a writer, a crowd of readers."""

    def __init__(
        self,
        args: argparse.Namespace,
        config: Settings,
        folder: Path,
        jobs: list[UUID],
        token: str,
        result: Result,
        redis_pid: int,
    ) -> None:
        self._args, self._config, self._jobs, self._token, self._result = args, config, jobs, token, result
        self._log, self._heard, self._wrote = folder / "api.log", folder / "heard", folder / "wrote"
        self._redis_pid = redis_pid
        self._api_s = 0.0  # what the API processes have spent on it, those that have ended
        self._tokens = int(args.seconds * args.rate)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        assert config.database_url
        assert config.redis_url
        self._environment = os.environ | {
            "DATABASE_URL": config.database_url,
            "REDIS_URL": config.redis_url,
            "PENSTOCK_KEY_PEPPER": _PEPPER,
            "PENSTOCK_API_PORT": str(self._port),
        }

    def measure(self) -> None:
        """All of it."""
        api = self._start_api()
        empty = _memory(api)
        starts_at = time.monotonic() + _LEAD_S
        task = Task(self._jobs, self._args.rate, self._tokens, starts_at)
        crowd = Crowd("127.0.0.1", self._port, self._token, [job_name(job) for job in self._jobs], self._tokens)
        writer = self._spawn("benchmarks.streaming.writer", task, self._wrote)
        readers = self._spawn("benchmarks.streaming.readers", crowd, self._heard)
        disturbed: list[tuple[float, float]] = []
        try:
            _sleep_until(starts_at)
            spent, redis_spent = _spent_s(api.pid), _spent_s(self._redis_pid)
            phase_s = self._args.seconds / (self._args.restarts + 1)
            for place in range(self._args.restarts + 1):
                _sleep_until(starts_at + place * phase_s + phase_s * 0.95)
                self._tell_process(api, place, empty)
                if place == self._args.restarts:
                    break
                began = time.monotonic()
                self._api_s += _spent_s(api.pid) - spent
                api.send_signal(signal.SIGKILL if place % 2 else signal.SIGTERM)
                api.wait()
                api = self._start_api()
                spent = _spent_s(api.pid)
                disturbed.append((began, time.monotonic() + _SETTLED_S))
            if readers.wait(90) or writer.wait(60):
                self._result.failed.append("the writer or the readers ended with an error")
                return
            heard = msgspec.msgpack.decode(self._heard.read_bytes(), type=Heard)
            wrote = msgspec.msgpack.decode(self._wrote.read_bytes(), type=Wrote)
            self._tell(heard, starts_at, disturbed)
            self._tell_costs(
                {
                    "API": self._api_s + _spent_s(api.pid) - spent,
                    "Redis": _spent_s(self._redis_pid) - redis_spent,
                    "writer": wrote.processor_s,
                    "readers": heard.processor_s,
                }
            )
        finally:
            for process in (api, writer, readers):
                process.kill()
                process.wait()

    def _start_api(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            api = subprocess.Popen(
                [sys.executable, "-m", "app.api.main"], env=self._environment, stdout=log, stderr=log
            )
        until = time.monotonic() + _START_S
        while time.monotonic() < until and api.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{self._port}/readyz").status_code == httpx.codes.OK:
                    return api
            except httpx.HTTPError:
                time.sleep(0.05)
        raise FileNotFoundError(f"the API process doesn't answer: {self._log.read_text()[-2000:]}")

    def _spawn(self, module: str, what: msgspec.Struct, told: Path) -> "subprocess.Popen[bytes]":
        with told.open("wb") as stdout:
            process = subprocess.Popen(
                [sys.executable, "-m", module], env=self._environment, stdin=subprocess.PIPE, stdout=stdout
            )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(what))
        process.stdin.close()
        process.stdin = None
        return process

    def _tell_process(self, api: "subprocess.Popen[bytes]", place: int, empty: int) -> None:
        """What the API process holds and spends with all its readers."""
        process = psutil.Process(api.pid)
        spent, at = process.cpu_times(), time.monotonic()
        time.sleep(0.5)
        now = process.cpu_times()
        share = (now.user + now.system - spent.user - spent.system) / (time.monotonic() - at)
        self._result.figures[f"life {place + 1}: KiB a reader"] = (_memory(api) - empty) / 1024 / self._args.readers
        self._result.figures[f"life {place + 1}: processor"] = share

    def _tell_costs(self, spent_s: dict[str, float]) -> None:
        """Processor time (user and system) of each process, of all tokens and what is done around them."""
        num_tokens = self._tokens * len(self._jobs)
        for name, seconds in spent_s.items():
            self._result.figures[f"{name}: processor time a token, us"] = seconds / num_tokens * 1e6

    def _tell(self, heard: Heard, starts_at: float, disturbed: list[tuple[float, float]]) -> None:
        figures = self._result.figures
        took = sorted(
            took / 1000
            for made, took in zip(heard.made_us, heard.took_us, strict=True)
            if not any(begin <= made / 1e6 <= end for begin, end in disturbed)
        )
        late = max(heard.took_us, default=0) / 1e6
        figures |= {
            "events": heard.events, "tokens written": self._tokens * len(self._jobs), "connections": heard.connections,
            "refused": heard.refused, "finished": heard.finished, "lost": heard.lost, "repeated": heard.repeated,
            "events that count for latency": len(took), "latency p50, ms": _quantile(took, 0.5),
            "latency p95, ms": _quantile(took, 0.95), "latency p99, ms": _quantile(took, 0.99),
            "latest, over a restart, s": late, "events a second": heard.events / (time.monotonic() - starts_at),
        }  # fmt: skip
        memory = max(value for name, value in figures.items() if name.endswith("KiB a reader"))
        self._result.bars += [
            Bar("readers that heard the end", heard.finished, len(self._jobs), "readers", at_most=False),
            Bar("lost tokens", heard.lost, 0, "tokens"),
            Bar("repeated tokens", heard.repeated, 0, "tokens"),
            Bar("added latency, p50", _quantile(took, 0.5), 25, "ms"),
            Bar("memory a reader", memory, 100, "KiB"),
        ]


def _memory(api: "subprocess.Popen[bytes]") -> int:
    return int(psutil.Process(api.pid).memory_info().rss)


def _spent_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))


async def _seed(config: Settings, count: int) -> tuple[list[UUID], str]:
    """A model, a tenant, its jobs, which wait; the token of its key."""
    bundle = byte_bundle(512)
    raw = bundle.tokenizer_json.encode()
    files = TokenizerFiles(
        tokenizer_digest(raw, bundle.chat_template), raw, bundle.chat_template, bundle.special_tokens
    )
    model = Model(POOL, POOL, files.hash, "none", 100_000, 512)
    encoder = PromptEncoder(files.tokenizer_json, files.chat_template, files.special_tokens)
    wanted = JobRequest.model_validate({"prompt": "once", "max_tokens": 50_000})
    db = create_engine(config, application_name="penstock-benchmark")
    try:
        async with db.begin() as conn:
            await register_model(conn, model, files)
            await ensure_tenant(conn, "acme")
            _, token = await create_key(conn, "acme", pepper=_PEPPER, actor="benchmark")
        jobs: list[UUID] = []
        for at in range(0, count, _PAGE):
            async with db.begin() as conn:
                page = [prepare(wanted, model, encoder, config) for _ in range(min(_PAGE, count - at))]
                accepted = await accept(conn, Caller("acme", None), page)
                jobs += [each.job_id for each in accepted]
    finally:
        await db.dispose()
    return jobs, token
