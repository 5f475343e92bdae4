"""How does the whole stack start, stay up and stop? Servers, schema, key, processes: up in order, watched, down in reverse."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic

from sqlalchemy.ext.asyncio import AsyncEngine

from app.cli.doctor import model_findings
from app.cli.errors import CommandFailed
from app.cli.folder import DataFolder, process_environment, with_pepper
from app.cli.parts import Part, ProcessPart, ServerPart
from app.cli.watch import TICK_S, Report, Watch, with_log
from app.db import create_engine, database_now
from app.embedded import EmbeddedServers
from app.errors import Misconfigured, Unauthenticated
from app.jobs.live import live_workers
from app.settings import Settings

DEFAULT_TENANT = "default"
STOP_S = 10.0  # grace of what doesn't run jobs
# Maintenance and webhooks say that they are ready in their log only, which a log level may forbid.
READY_UNHEARD_S = 3.0
READY_UNSAID_S = 60.0
MIN_FREE_DISK_MIB = 200
MIN_FREE_MEMORY_MIB = 700


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a running stack: the API's URL, a key of the tenant `default`, and the dashboard."""

    url: str
    api_key: str
    dashboard_url: str  # with a one-time link while no operator has a password


class Stack:
    """Everything that Penstock needs, on this machine.

    `prepare` and `start`, then `watch` until there is a reason to stop, then `stop`, which may be called at any time and also cleans up after
    a start that failed. `hurry` makes a stop that is under way shorter. `throwaway`: its data need not survive a power cut.
    """

    def __init__(
        self, settings: Settings, report: Callable[[Report], None], *, num_workers: int = 1, throwaway: bool = False
    ) -> None:
        self.folder = DataFolder(settings.data_dir.absolute())
        self.settings = settings.model_copy(update={"data_dir": self.folder.path})
        self._report = report
        self._num_workers = num_workers
        self._throwaway = throwaway
        self._hurry = asyncio.Event()
        self._servers: EmbeddedServers | None = None
        self._parts: list[Part] = []
        self._is_announced = False

    @property
    def model_name(self) -> str:
        """The name under which the workers register what they serve."""
        config = self.settings
        if config.model_name or config.model:
            return config.model_name or Path(config.model or "").name
        return "null" if config.engine == "null" else "brook"

    def prepare(self) -> None:
        """What can go wrong before anything is started: no room, a port that is taken, a model that isn't there.

        Raises:
            CommandFailed: the message says what to do.
        """
        self._check_room()
        self._choose_port()
        for finding in model_findings(self.settings):
            if finding.level == "fail":
                raise CommandFailed(f"model: {finding.found}: {finding.advice}")

    async def start(self) -> Access:
        """Bring everything up; return when all parts are ready.

        Raises:
            PenstockError: something can't start; the message says what and what to do. Call `stop`.
        """
        self.folder.make()
        await self._start_servers()
        await self._migrate()
        db = create_engine(self.settings, application_name="penstock-up")
        try:
            key = await self._ensure_key(db)
            link = await self._first_link(db)
            await self._start_processes(db)
        finally:
            await db.dispose()
        url = base_url(self.settings)
        dashboard = f"{self.settings.dashboard_url or url}".rstrip("/") + "/admin" + (f"/link/{link}" if link else "")
        assert self.settings.database_url
        assert self.settings.redis_url
        self._is_announced = True
        self.folder.announce(url, database_url=self.settings.database_url, redis_url=self.settings.redis_url)
        return Access(url, key, dashboard)

    async def watch(self) -> None:
        """Start again what dies, until cancelled.

        Raises:
            CommandFailed: a part died too often too quickly; the message ends with its log.
        """
        await Watch(self._parts, self._report).run()

    async def stop(self) -> None:
        """Drain and stop: first the API, then the workers with their grace, then the rest, the servers last."""
        if self._is_announced:
            self.folder.retract()
        grace_s = self.settings.drain_grace_s + STOP_S
        await self._stop("api", STOP_S)
        await self._stop("worker", grace_s)
        await self._stop("", STOP_S)
        if self._servers is not None:
            await asyncio.to_thread(self._servers.stop)
            self._servers = None
        self._parts.clear()

    def hurry(self) -> None:
        """Don't wait for running jobs: they are given back."""
        self._hurry.set()

    def _check_room(self) -> None:
        import shutil

        import psutil

        folder = next(path for path in (self.folder.path, *self.folder.path.parents) if path.exists())
        free_mib = shutil.disk_usage(folder).free >> 20
        if free_mib < MIN_FREE_DISK_MIB:
            raise CommandFailed(
                f"only {free_mib} MiB are free on the disk of {self.folder.path}: free at least {MIN_FREE_DISK_MIB} MiB, "
                "or choose another place with --data-dir"
            )
        memory_mib = psutil.virtual_memory().available >> 20
        if memory_mib < MIN_FREE_MEMORY_MIB * self._num_workers:
            detail = f"only {memory_mib} MiB of memory are free: a worker may be killed while it loads its model"
            self._report(Report("memory", "warning", 0.0, detail))

    def _choose_port(self) -> None:
        """Take the configured port, or a free one for 0, before anything else is started."""
        host, port = self.settings.api_host, self.settings.api_port
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise CommandFailed(
                f"{host!r} is no address of this machine ({error.strerror}): give another --host"
            ) from error
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except PermissionError as error:
                raise CommandFailed(
                    f"port {port} needs rights that you don't have: give another --port, or PENSTOCK_API_PORT"
                ) from error
            except OSError as error:
                raise CommandFailed(
                    f"port {port} on {host} can't be used ({error.strerror}): stop what listens there, "
                    "or give another --port, or PENSTOCK_API_PORT (0 takes a free one)"
                ) from error
            self.settings = self.settings.model_copy(update={"api_port": probe.getsockname()[1]})

    async def _start_servers(self) -> None:
        began = monotonic()
        servers = EmbeddedServers(self.settings, fast=self._throwaway)
        embedded = [server for server in (servers.postgres, servers.redis) if server is not None]
        for server in embedded:
            self._report(Report(server.name.lower(), "starting"))
        starting = asyncio.ensure_future(asyncio.to_thread(servers.start))
        self._servers = servers
        try:
            urls = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread can't be interrupted; what it started is stopped by `stop`.
            with suppress(Misconfigured):
                await starting
            raise
        for server in embedded:
            self._parts.append(ServerPart(server))
            self._report(Report(server.name.lower(), "ready", monotonic() - began))
        found = {"database_url": urls.database_url, "redis_url": urls.redis_url}
        self.settings = with_pepper(self.settings.model_copy(update=found), self.folder.make_pepper())

    async def _migrate(self) -> None:
        from app.schema import current_revision, migrate

        began = monotonic()
        self._report(Report("schema", "starting"))
        before = await asyncio.to_thread(current_revision, self.settings)
        after = await asyncio.to_thread(migrate, self.settings)
        detail = f"at {after}" if before == after else f"{before or 'empty'} to {after}"
        self._report(Report("schema", "ready", monotonic() - began, detail))

    async def _ensure_key(self, db: AsyncEngine) -> str:
        """The key that the last `up` printed, if it still opens the door; else a new one."""
        from app.quotas.keys import authenticate, create_key, ensure_tenant

        pepper = self.settings.key_pepper.get_secret_value()
        token = self.folder.api_key
        async with db.begin() as conn:
            await ensure_tenant(conn, DEFAULT_TENANT)
            if token is not None:
                with suppress(Unauthenticated):
                    await authenticate(conn, token, pepper=pepper)
                    return token
            _, token = await create_key(conn, DEFAULT_TENANT, pepper=pepper, name="penstock up", actor="cli")
        self.folder.keep_api_key(token)
        return token

    async def _first_link(self, db: AsyncEngine) -> str | None:
        """A one-time link for the first owner, while nobody can log in to the dashboard."""
        from app.operators.links import make_link
        from app.operators.people import ensure_owner

        async with db.begin() as conn:
            owner = await ensure_owner(conn, actor="cli", passwords=self.settings.dashboard_passwords)
            return None if owner is None else await make_link(conn, owner, actor="cli")

    async def _start_processes(self, db: AsyncEngine) -> None:
        config = self.settings
        environment = process_environment(config) | {
            "PENSTOCK_API_HOST": config.api_host,
            "PENSTOCK_API_PORT": str(config.api_port),
            # Earlier runs may have registered other models: jobs that name none get the one that is served now.
            "PENSTOCK_DEFAULT_MODEL": config.default_model or self.model_name,
        }
        names = ["worker"] if self._num_workers == 1 else [f"worker-{i + 1}" for i in range(self._num_workers)]
        modules = {"api": "app.api.main"}
        modules |= dict.fromkeys(names, "workers.generation.main")
        modules |= {"maintenance": "workers.maintenance.main", "webhooks": "workers.webhooks.main"}
        parts = [
            ProcessPart(name, module, environment, self.folder.logs / f"{name}.log") for name, module in modules.items()
        ]
        async with db.connect() as conn:
            since = await database_now(conn)
        for part in parts:
            self._parts.append(part)
            self._report(Report(part.name, "starting"))
            await part.start()
        waits = [asyncio.create_task(self._until_ready(part, db, since)) for part in parts]
        try:
            await asyncio.gather(*waits)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _until_ready(self, part: ProcessPart, db: AsyncEngine, since: datetime) -> None:
        began = monotonic()
        while not await self._is_ready(part, db, since, monotonic() - began):
            reason = part.ended()
            if reason is not None:
                raise CommandFailed(f"{part.name} ended while it started ({reason}){with_log(part)}")
            await asyncio.sleep(TICK_S)
        self._report(Report(part.name, "ready", monotonic() - began))

    async def _is_ready(self, part: ProcessPart, db: AsyncEngine, since: datetime, lived_s: float) -> bool:
        if part.name == "api":
            return await asyncio.to_thread(_is_healthy, base_url(self.settings))
        if part.name.startswith("worker"):
            here = (socket.gethostname(), part.pid)
            async with db.connect() as conn:
                return any(
                    (each.host, each.pid) == here and each.started_at >= since for each in await live_workers(conn)
                )
        may_say_so = self.settings.log_level in {"DEBUG", "INFO"}
        return part.ended() is None and (
            lived_s > (READY_UNSAID_S if may_say_so else READY_UNHEARD_S) or _says_ready(part)
        )

    async def _stop(self, prefix: str, grace_s: float) -> None:
        """Stop the processes whose name begins so, all at once."""
        processes = [part for part in self._parts if isinstance(part, ProcessPart)]
        chosen = [part for part in processes if part.name.startswith(prefix) and part.pid is not None]
        for part in chosen:
            self._report(Report(part.name, "stopping"))
        await asyncio.gather(*(part.stop(grace_s, self._hurry) for part in chosen))


def base_url(settings: Settings) -> str:
    """Where a caller on this machine finds the API."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.api_host, settings.api_host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.api_port}"


def _is_healthy(url: str) -> bool:
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    assert parts.hostname
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=2.0)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _says_ready(part: ProcessPart) -> bool:
    with part.log_file.open("rb") as log:
        log.seek(part.log_start)
        text_so_far = log.read(65_536)
    return any(sign in text_so_far for sign in (b"_ready", b".ready", b"_started", b".started"))
