"""Where is the control plane measured? Real servers that survive a power cut, real processes, one of each."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.looks import Looks
from app.quotas.keys import create_key, ensure_tenant
from app.schema import migrate
from app.settings import Settings
from benchmarks.control.client import Client, Refused
from benchmarks.faults.parts import Part

MODEL = "bench"
_READY_S = 120.0
_PEPPER = "only-for-this-benchmark-0123456789"


@dataclass
class ControlStack:
    """Servers up, a tenant with a key; processes come and go as they are asked for."""

    folder: Path
    config: Settings
    db: AsyncEngine
    token: str
    port: int
    parts: dict[str, Part] = field(default_factory=dict)
    looks: Looks = field(init=False)

    def __post_init__(self) -> None:
        """Looks are to take as little as they can from what is measured."""
        self.looks = Looks(self.db)

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Client:
        """A client with the tenant's key."""
        return Client(self.url, self.token)

    async def start(self, *names: str, **settings: str) -> None:
        """Start processes and wait until they take work."""
        assert self.config.database_url
        assert self.config.redis_url
        environment = os.environ | {
            "DATABASE_URL": self.config.database_url,
            "REDIS_URL": self.config.redis_url,
            "PENSTOCK_DATA_DIR": str(self.folder),
            "PENSTOCK_API_PORT": str(self.port),
            "PENSTOCK_KEY_PEPPER": _PEPPER,
            "PENSTOCK_MODEL_NAME": MODEL,
            "PENSTOCK_WEBHOOK_ALLOW_LOCAL": "true",
            "PENSTOCK_LOG_LEVEL": "WARNING",
            **settings,
        }
        for name in names:
            self.parts[name] = Part(name, environment, self.folder)
            self.parts[name].start()
        async with asyncio.timeout(_READY_S):
            if "worker" in names:
                await self.until("SELECT EXISTS (SELECT 1 FROM workers WHERE ended_at IS NULL AND state = 'ready')")
            if "api" in names:
                await self._until_api_answers()

    async def stop(self, *names: str) -> None:
        """End these processes, or all."""
        for name in names or tuple(self.parts):
            await asyncio.to_thread(self.parts.pop(name).end)

    async def until(self, query: str, *, every_s: float = 0.02) -> None:
        """Until the query gives true."""
        while True:
            [found] = await self.looks.rows(text(query))
            if found[0]:
                return
            await asyncio.sleep(every_s)

    async def until_all_ended(self, *, every_s: float = 0.02) -> None:
        """Until no job waits or runs."""
        await self.until(
            "SELECT NOT EXISTS (SELECT 1 FROM jobs WHERE status = 'queued') "
            "AND NOT EXISTS (SELECT 1 FROM jobs WHERE status = 'running')",
            every_s=every_s,
        )

    async def _until_api_answers(self) -> None:
        async with self.client() as client:
            while True:
                try:
                    await client.get("/readyz")
                    return
                except (OSError, Refused, asyncio.IncompleteReadError):
                    await asyncio.sleep(0.1)


@asynccontextmanager
async def control_stack(folder: Path) -> AsyncIterator[ControlStack]:
    """Postgres and Redis for one benchmark, and whatever is started on them, gone at the end."""
    await asyncio.to_thread(folder.chmod, 0o711)
    with (
        EmbeddedPostgres(folder / "postgres") as postgres,
        EmbeddedRedis(folder / "redis") as redis,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        port = free.getsockname()[1]
        free.close()
        config = Settings(database_url=postgres.url, redis_url=redis.url)
        await asyncio.to_thread(migrate, config)
        db = create_engine(config, application_name="penstock-benchmark")
        try:
            async with db.begin() as conn:
                await ensure_tenant(conn, "acme")
                _, token = await create_key(conn, "acme", pepper=_PEPPER, actor="benchmark")
            stack = ControlStack(folder, config, db, token, port)
            try:
                async with stack.looks:
                    yield stack
            finally:
                await stack.stop()
        finally:
            await db.dispose()


def now() -> float:
    """Seconds on the clock of all measurements."""
    return time.perf_counter()
