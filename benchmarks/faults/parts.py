"""What is the stack that faults happen to? Real servers, real processes, a breakable link from each process to each server."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import redis as sync_redis

from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.embedded.server import EmbeddedServer
from benchmarks.faults.link import Link
from benchmarks.faults.plan import PROCESSES, Fault

MODEL = "chaos"
_MODULES = {
    "api": "app.api.main", "worker": "workers.generation.main", "maintenance": "workers.maintenance.main",
    "webhooks": "workers.webhooks.main",
}  # fmt: skip
# Longer leases than the tests', shorter than the defaults: a fault every few seconds must find the last one repaired.
_SETTINGS = {
    "PENSTOCK_LEASE_TTL_S": "5",
    "PENSTOCK_LEASE_RENEW_S": "1",
    "PENSTOCK_LEASE_FENCE_S": "4",
    "PENSTOCK_REAP_EVERY_S": "1",
    "PENSTOCK_SWEEP_AFTER_S": "3",
    "PENSTOCK_RENOMINATE_AFTER_S": "6",
    "PENSTOCK_AUDIT_EVERY_S": "15",
    "PENSTOCK_ENGINE_HANG_S": "5",
    "PENSTOCK_DRAIN_GRACE_S": "2",
    # The deaths are ours: no sign of a loop, and two engines killed while they try the same job don't convict it.
    "PENSTOCK_CRASH_LOOP_DEATHS": "1000",
    "PENSTOCK_MAX_SOLO_CRASHES": "10",
    "PENSTOCK_WEBHOOK_ALLOW_LOCAL": "true",
    "PENSTOCK_WEBHOOK_TIMEOUT_S": "5",
    "PENSTOCK_WEBHOOK_LEASE_S": "8",
    "PENSTOCK_WEBHOOK_REDISPATCH_S": "10",
    "PENSTOCK_DEFAULT_MODEL": MODEL,
    "PENSTOCK_MODEL_NAME": MODEL,
    "PENSTOCK_MAX_NUM_SEQS": "16",
}
_REQUESTS = {"postgres": b"COMMIT", "redis": b"\r\n"}  # whose answers are lost: any command to Redis
_LOSS_S = 10.0  # in which the process should have asked something whose answer can be lost
_RESTART_S = 0.3
_END_S = 20.0


class Part:
    """One process that is started again whenever it ends, as a service manager would."""

    def __init__(self, name: str, environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._module = _MODULES[name.partition("-")[0]]
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._is_wanted = False
        self.statuses: dict[int, int] = {}  # exit status -> how often

    def start(self) -> None:
        """Start it."""
        self._is_wanted = True
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def look(self) -> None:
        """Start it again if it has ended."""
        if self._process is not None and (status := self._process.poll()) is not None:
            self.statuses[status] = self.statuses.get(status, 0) + 1
            self._process = None
            if self._is_wanted:
                self.start()

    def signal(self, number: signal.Signals) -> bool:
        """To the process alone; whether there was one."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.send_signal(number)
        return True

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._process.pid if self._process is not None else None

    def engines(self) -> list[psutil.Process]:
        """Its children."""
        if self._process is None:
            return []
        with suppress(psutil.Error):
            return list(psutil.Process(self._process.pid).children())
        return []

    def end(self) -> None:
        """SIGTERM, after a while SIGKILL; no new start."""
        self._is_wanted = False
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class FaultyStack:
    """Everything, up to be broken. `folder` gets the servers' data and everybody's log."""

    def __init__(self, folder: Path, port: int, engine: dict[str, str]) -> None:
        self.folder = folder
        self.servers: dict[str, EmbeddedServer] = {
            "postgres": EmbeddedPostgres(folder / "postgres"), "redis": EmbeddedRedis(folder / "redis")
        }  # fmt: skip
        self.links: dict[str, Link] = {}
        self.parts: dict[str, Part] = {}
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._engine = engine
        self._watch: asyncio.Task[None] | None = None

    def start_servers(self) -> None:
        """Postgres and Redis; blocks."""
        for server in self.servers.values():
            server.start()

    async def start_processes(self) -> None:
        """All of ours, each with links of its own."""
        postgres, redis = (self.servers[name].url for name in ("postgres", "redis"))
        for name in PROCESSES:
            links = {server: Link(url) for server, url in (("postgres", postgres), ("redis", redis))}
            self.links |= {f"{name}>{server}": link for server, link in links.items()}
            environment = os.environ | _SETTINGS | self._engine
            environment |= {"DATABASE_URL": links["postgres"].url, "REDIS_URL": links["redis"].url}
            environment |= {"PENSTOCK_DATA_DIR": str(self.folder), "PENSTOCK_API_PORT": str(self._port)}
            self.parts[name] = Part(name, environment, self.folder)
            self.parts[name].start()
        self._watch = asyncio.create_task(self._keep_up())

    async def suffer(self, fault: Fault) -> bool:
        """Let a fault happen; return when it is over: whether there was anything for it to happen to."""
        if ">" in fault.target:
            return await self._break_link(self.links[fault.target], fault)
        if fault.target in self.servers:
            return await self._hurt_server(fault)
        return await self._hurt_process(fault)

    def heal(self) -> None:
        """No fault any more: links whole, everyone awake."""
        for link in self.links.values():
            link.heal()
        for part in self.parts.values():
            part.signal(signal.SIGCONT)
            for engine in part.engines():
                with suppress(psutil.Error):
                    engine.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Everything down, in order."""
        if self._watch is not None:
            self._watch.cancel()
        self.heal()
        for part in self.parts.values():
            await asyncio.to_thread(part.end)
        for link in self.links.values():
            link.close()
        for server in reversed(self.servers.values()):
            await asyncio.to_thread(server.stop)

    async def _keep_up(self) -> None:
        while True:
            for part in self.parts.values():
                part.look()
            await asyncio.sleep(_RESTART_S)

    async def _break_link(self, link: Link, fault: Fault) -> bool:
        if fault.kind == "cut":
            has_any = link.num_connections > 0
            await asyncio.to_thread(link.cut)
            return has_any
        if fault.kind == "lose answer":
            before = link.num_lost_answers
            await asyncio.to_thread(link.lose_answer, _REQUESTS[fault.target.rpartition(">")[2]])
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOSS_S):
                    while link.num_lost_answers == before:  # noqa: ASYNC110 - another thread's counter
                        await asyncio.sleep(0.05)
            return link.num_lost_answers > before
        await asyncio.to_thread(link.refuse if fault.kind == "refuse" else link.hold)
        await asyncio.sleep(fault.lasts_s)
        await asyncio.to_thread(link.heal)
        return True

    async def _hurt_server(self, fault: Fault) -> bool:
        server = self.servers[fault.target]
        if fault.kind == "stop":
            server.pause()
            try:
                await asyncio.sleep(fault.lasts_s)
            finally:
                server.resume()
        elif fault.kind == "FLUSHALL":
            with sync_redis.Redis.from_url(server.url) as client:
                await asyncio.to_thread(client.flushall)
        else:
            await asyncio.to_thread(server.kill if fault.kind == "kill" else server.stop)
            await asyncio.to_thread(server.start)
        return True

    async def _hurt_process(self, fault: Fault) -> bool:
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "restart": signal.SIGTERM}[fault.kind]
        if fault.target.startswith("engine"):
            victims = self.parts[fault.target.replace("engine", "worker")].engines()
            for engine in victims:
                with suppress(psutil.Error):
                    engine.send_signal(number)
            await asyncio.sleep(fault.lasts_s)
            for engine in victims if fault.kind == "stop" else []:
                with suppress(psutil.Error):
                    engine.send_signal(signal.SIGCONT)
            return bool(victims)
        part = self.parts[fault.target]
        was_there = part.signal(number)
        if fault.kind == "stop":
            await asyncio.sleep(fault.lasts_s)
            part.signal(signal.SIGCONT)
        return was_there
