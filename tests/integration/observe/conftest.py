"""A whole stack of real processes, seen from outside."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.settings import Settings
from tests.support.api import Tenant, make_tenant
from tests.support.api_process import running_process
from tests.support.stack import LONG_LEASE, MAINTENANCE, NULL_ENGINE, QUICK, WORKER, Process, running, wait_for

WEBHOOKS = "workers.webhooks.main"
EXTRA = {"PENSTOCK_PROBE_PORT": "0", "PENSTOCK_WEBHOOK_ALLOW_LOCAL": "true", "OTEL_BSP_SCHEDULE_DELAY": "50"}


@dataclass
class Stack:
    """Where its processes answer, and a tenant that may use it."""

    urls: dict[str, str]  # process -> where /metrics is
    processes: dict[str, Process]
    client: httpx.AsyncClient
    tenant: Tenant


Started = Callable[..., AbstractAsyncContextManager[Stack]]


async def probe_url(process: Process) -> str:
    """Where the process answers probes."""
    async with asyncio.timeout(30):
        while True:
            for line in process.log.read_text().splitlines():
                if '"probe_listening"' in line:
                    return f"http://127.0.0.1:{json.loads(line)['port']}"
            await asyncio.sleep(0.05)


@pytest.fixture
def stack(engine: AsyncEngine, settings: Settings, environment: dict[str, str], tmp_path: Path) -> Started:
    """`async with stack(PENSTOCK_X="y") as it:` starts API, worker, maintenance and webhooks."""

    @asynccontextmanager
    async def start(**changes: str) -> AsyncIterator[Stack]:
        tenant = await make_tenant(engine, settings, "acme")
        changes = NULL_ENGINE | LONG_LEASE | EXTRA | changes
        with ExitStack() as running_now:
            processes = {
                name: running_now.enter_context(running(module, environment, tmp_path, **changes))
                for name, module in (("worker", WORKER), ("maintenance", MAINTENANCE), ("webhooks", WEBHOOKS))
            }
            api = running_now.enter_context(running_process(environment | QUICK, tmp_path, **changes))
            await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'")
            urls = {name: await probe_url(process) for name, process in processes.items()} | {"api": await api.url()}
            async with httpx.AsyncClient(base_url=urls["api"], timeout=60, headers=tenant.auth) as client:
                yield Stack(urls, processes, client, tenant)

    return start
