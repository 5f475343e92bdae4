"""How fast does a batch go through, and does each of its lines come out once? Real processes, the null engine, workers killed in the middle."""

import argparse
import asyncio
import json
import os
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.audit.auditor import audit
from app.clock import SystemClock
from app.db import create_engine
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.embedded.server import EmbeddedServer
from app.ids import new_id
from app.quotas.keys import create_key, ensure_tenant
from app.quotas.tables import budgets
from app.redis import create_redis
from app.schema import migrate
from app.settings import Settings
from benchmarks.faults.parts import MODEL, Part
from benchmarks.result import Bar, Result
from benchmarks.spent import Spent

_ENDPOINT = "/v1/chat/completions"
_READY_S = 60.0
_END_S = 600.0
_READY_LOOK_S = 0.1
_LOOK_S = 0.25  # at the batch: whoever waits for one wouldn't ask more often
_AUDIT_WITHIN_S = 20.0
_CLAIM_S = 35.0
_BUDGET = 10**12
_ENDED = {"completed", "failed", "expired", "cancelled"}
_SYSTEM = "You answer questions about the catalogue of shop {shop}, shortly and to the point. " * 4
# Short leases, so that what a killed worker had runs again within seconds; deaths are ours, and convict nobody.
_SETTINGS = {
    "PENSTOCK_ENGINE": "null",
    "PENSTOCK_MODEL_NAME": MODEL,
    "PENSTOCK_DEFAULT_MODEL": MODEL,
    "PENSTOCK_LEASE_TTL_S": "3",
    "PENSTOCK_LEASE_RENEW_S": "0.5",
    "PENSTOCK_LEASE_FENCE_S": "2",
    "PENSTOCK_REAP_EVERY_S": "0.5",
    "PENSTOCK_SWEEP_AFTER_S": "2",
    "PENSTOCK_RENOMINATE_AFTER_S": "3",
    "PENSTOCK_AUDIT_EVERY_S": "10",
    "PENSTOCK_MAX_WORKER_LOSSES": "1000",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--lines", type=int, default=20_000, metavar="N", help="of the batch (default 20,000)")
    parser.add_argument("--kills", type=int, default=5, metavar="N", help="SIGKILLs of workers (default 5)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="generation workers (default 2)")
    parser.add_argument("--max-num-seqs", type=int, default=256, metavar="N", help="of each worker (default 256)")
    parser.add_argument("--max-tokens", type=int, default=4, metavar="N", help="of each line (default 4)")
    parser.add_argument("--window", type=int, default=2000, metavar="N", help="batch_window_lines (default 2,000)")


def run(args: argparse.Namespace) -> Result:
    """Upload, run, kill, download, compare."""
    names = ("lines", "kills", "workers", "max_num_seqs", "max_tokens", "window")
    result = Result("batches", {name: getattr(args, name) for name in names} | {"cores": os.cpu_count()})
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with EmbeddedPostgres(folder / "postgres") as postgres, EmbeddedRedis(folder / "redis") as redis:
            config = Settings(database_url=postgres.url, redis_url=redis.url)
            migrate(config)
            try:
                servers = {"Postgres": postgres, "Redis": redis}
                asyncio.run(_Run(args, config, folder, servers, result).measure())
            except TimeoutError as error:
                result.failed.append(str(error) or "something took too long")
    return result


@dataclass(slots=True)
class _Run:
    """One batch through the whole stack."""

    args: argparse.Namespace
    config: Settings
    folder: Path
    servers: Mapping[str, EmbeddedServer]
    result: Result
    parts: dict[str, Part] = field(default_factory=dict)
    num_killed: int = 0
    console: Console = field(default_factory=Console)

    async def measure(self) -> None:
        """Everything; the figures stand in the result."""
        db = create_engine(self.config, application_name="penstock-benchmark")
        token = await _make_tenant(db, self.config)
        url = self._start()
        try:
            headers = {"Authorization": f"Bearer {token}"}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:
                await self._until_ready(client, db)
                await self._go(client, db)
        finally:
            for part in self.parts.values():
                await asyncio.to_thread(part.end)
            await db.dispose()

    def _start(self) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = os.environ | _SETTINGS
        environment |= {
            "DATABASE_URL": str(self.config.database_url), "REDIS_URL": str(self.config.redis_url),
            "PENSTOCK_DATA_DIR": str(self.folder), "PENSTOCK_API_PORT": str(port),
            "PENSTOCK_MAX_NUM_SEQS": str(self.args.max_num_seqs), "PENSTOCK_BATCH_WINDOW_LINES": str(self.args.window),
        }  # fmt: skip
        for name in ("api", "maintenance", *(f"worker-{n}" for n in range(1, self.args.workers + 1))):
            self.parts[name] = Part(name, environment, self.folder)
            self.parts[name].start()
        return f"http://127.0.0.1:{port}"

    async def _until_ready(self, client: httpx.AsyncClient, db: AsyncEngine) -> None:
        async with asyncio.timeout(_READY_S):
            while True:
                async with db.connect() as conn:
                    ready = await conn.scalar(text("SELECT count(*) FROM workers WHERE state = 'ready'"))
                try:
                    if ready == self.args.workers and (await client.get("/readyz")).is_success:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(_READY_LOOK_S)

    async def _go(self, client: httpx.AsyncClient, db: AsyncEngine) -> None:
        figures = self.result.figures
        wanted = [f"line-{n}" for n in range(self.args.lines)]
        content = _input_of(wanted, self.args.max_tokens)
        spent, began = Spent(self.parts, self.servers), time.perf_counter()
        answer = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
        answer.raise_for_status()
        figures["upload s"] = time.perf_counter() - began
        body = {"input_file_id": answer.json()["id"], "endpoint": _ENDPOINT, "completion_window": "24h"}
        began = time.perf_counter()
        created = await client.post("/v1/batches", json=body)
        created.raise_for_status()
        batch = await self._watch(client, created.json(), began, spent)
        whole_s = time.perf_counter() - began
        figures |= spent.figures(self.args.lines, "line")
        figures["load average at the end"] = os.getloadavg()[0]
        figures["batch s"] = whole_s
        figures["lines a second"] = self.args.lines / whole_s
        figures["status"] = batch["status"]
        figures["request_counts"] = batch["request_counts"]
        figures["workers killed"] = self.num_killed
        await self._judge(client, db, batch, wanted)

    async def _watch(
        self, client: httpx.AsyncClient, batch: dict[str, Any], began: float, spent: Spent
    ) -> dict[str, Any]:
        """Until it ends; workers die when so many parts of it are done, the last kill well before the end."""
        due = [(n + 1) / (self.args.kills + 2) for n in range(self.args.kills)]
        async with asyncio.timeout(_END_S):
            while batch["status"] not in _ENDED:
                await asyncio.sleep(_LOOK_S)
                spent.look()
                for part in self.parts.values():
                    part.look()  # a service manager would start again what has died
                batch = (await client.get(f"/v1/batches/{batch['id']}")).raise_for_status().json()
                counts = batch["request_counts"]
                if batch["status"] != "validating" and "validation s" not in self.result.figures:
                    self.result.figures["validation s"] = time.perf_counter() - began
                if due and counts["total"] and counts["completed"] >= due[0] * counts["total"]:
                    del due[0]
                    victim = self.parts[f"worker-{self.num_killed % self.args.workers + 1}"]
                    self.num_killed += victim.signal(signal.SIGKILL)
                    self.console.print(f"{counts['completed']} lines done: a worker is killed", highlight=False)
        return batch

    async def _judge(
        self, client: httpx.AsyncClient, db: AsyncEngine, batch: dict[str, Any], wanted: list[str]
    ) -> None:
        found: Counter[str] = Counter()
        for name in ("output_file_id", "error_file_id"):
            if batch[name] is not None:
                answer = (await client.get(f"/v1/files/{batch[name]}/content")).raise_for_status()
                found.update(json.loads(line)["custom_id"] for line in answer.content.splitlines())
        async with create_redis(self.config) as redis:
            report = await audit(db, redis, SystemClock(), within_s=_AUDIT_WITHIN_S, claim_s=_CLAIM_S, most=5)
        async with db.connect() as conn:
            again = await conn.scalar(text("SELECT count(*) FROM attempts WHERE outcome = 'worker_lost'"))
        figures, counts = self.result.figures, batch["request_counts"]
        figures["attempts lost with workers"] = again
        figures["audit findings"] = {each.check: each.total for each in report.findings} | report.unchecked
        self.result.bars += [
            Bar("lines a second", figures["lines a second"], 1000, "/s", at_most=False),
            Bar("lines missing in the files", (Counter(wanted) - found).total(), 0, ""),
            Bar("lines too many in the files", (found - Counter(wanted)).total(), 0, ""),
            Bar("lines not completed", self.args.lines - counts["completed"], 0, ""),
            Bar("workers killed", self.num_killed, self.args.kills, "", at_most=False),
            Bar("audit findings", len(figures["audit findings"]), 0, ""),
        ]


def _input_of(custom_ids: list[str], max_tokens: int) -> bytes:
    """Lines of twenty shops, in turn: each shop's begin alike."""
    lines = []
    for place, custom_id in enumerate(custom_ids):
        messages = [
            {"role": "system", "content": _SYSTEM.format(shop=place % 20)},
            {"role": "user", "content": f"Is article {place} on stock?"},
        ]
        body = {"model": MODEL, "messages": messages, "max_tokens": max_tokens}
        lines.append(json.dumps({"custom_id": custom_id, "method": "POST", "url": _ENDPOINT, "body": body}))
    return "\n".join(lines).encode()


async def _make_tenant(db: AsyncEngine, config: Settings) -> str:
    """With a budget, so that the money is audited, too; the token of its key."""
    async with db.begin() as conn:
        await ensure_tenant(conn, "acme")
        pepper = config.key_pepper.get_secret_value()
        _, token = await create_key(conn, "acme", pepper=pepper, actor="benchmark")
        row = {"id": new_id(), "tenant_id": "acme", "metric": "total_tokens", "period": "total", "hard_limit": _BUDGET}
        await conn.execute(budgets.insert().values(row))
    return token
