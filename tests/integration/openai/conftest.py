"""What do the tests of the OpenAI-compatible face stand on? A whole stack, two models: brook, and fake tokens at 50 a second."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import psycopg
import pytest
import redis as sync_redis
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.queue.streams import JobQueue
from app.redis import create_redis
from app.settings import Settings
from tests.support.api import Tenant, make_tenant
from tests.support.api_process import running_process
from tests.support.databases import temporary_database
from tests.support.leftovers import assert_nobody_in_redis
from tests.support.stack import LONG_LEASE, MAINTENANCE, WORKER, running, wait_for

BROOK, FAKE = "brook", "fake"
REDIS_DATABASE = 15  # no test has it for itself (tests/conftest.py)
T = TypeVar("T")


@dataclass
class Stack:
    """An API, two workers, maintenance, and the keys of two tenants."""

    url: str
    settings: Settings
    tenant: Tenant
    other: Tenant

    def client(self, *, max_retries: int = 0, token: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=token or self.tenant.token, max_retries=max_retries, timeout=60
        )

    def on_database(self, work: Callable[[AsyncEngine], Awaitable[T]]) -> T:
        """What `work` gives with a pool on the stack's database."""

        async def run() -> T:
            engine = create_engine(self.settings, application_name="penstock-tests")
            try:
                return await work(engine)
            finally:
                await engine.dispose()

        return asyncio.run(run())

    def new_tenant(self, name: str, **options: Any) -> Tenant:
        """Another tenant with a key of its own."""
        return self.on_database(lambda engine: make_tenant(engine, self.settings, name, **options))

    def status_of(self, job: str) -> str:
        """The status of a job that the stack's tenant can read."""
        answer = httpx.get(f"{self.url}/v1/jobs/{job}", headers=self.tenant.auth, timeout=60)
        return str(answer.json()["status"])


@pytest.fixture(scope="module")
def stack(
    postgres_server: EmbeddedPostgres,
    postgres_admin: psycopg.Connection,
    redis_server: EmbeddedRedis,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("openai")
    redis_url = redis_server.url.removesuffix("/0") + f"/{REDIS_DATABASE}"
    with ExitStack() as held:
        looking = held.enter_context(sync_redis.Redis.from_url(redis_url))
        looking.flushdb()
        held.callback(assert_nobody_in_redis, looking)
        database_url = held.enter_context(temporary_database(postgres_admin, postgres_server.url, template_database))
        settings = Settings(database_url=database_url, redis_url=redis_url, data_dir=folder)
        environment = os.environ | {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "PENSTOCK_DATA_DIR": str(folder),
        }
        fake = {"PENSTOCK_ENGINE": "null", "PENSTOCK_MODEL_NAME": FAKE, "PENSTOCK_NULL_STEP_S": "0.02"}
        brook = {"PENSTOCK_DEVICE": "cpu", "PENSTOCK_MAX_NUM_SEQS": "8", "PENSTOCK_CANARY": "false"}
        held.enter_context(running(WORKER, environment, folder, **LONG_LEASE, **brook))
        held.enter_context(running(WORKER, environment, folder, **LONG_LEASE, **fake))
        # What is held up on its way to Redis is nominated again by it.
        held.enter_context(running(MAINTENANCE, environment, folder))
        api = held.enter_context(running_process(environment, folder))

        async def ready() -> tuple[Tenant, Tenant, str]:
            engine = create_engine(settings, application_name="penstock-tests")
            await wait_for(engine, "SELECT count(*) = 2 FROM models", timeout_s=150)
            async with create_redis(settings) as redis:
                for pool in (BROOK, FAKE):
                    await JobQueue(redis, pool).open_epoch("test")
            acme, rival = [await make_tenant(engine, settings, name) for name in ("acme", "rival")]
            await engine.dispose()
            return acme, rival, await api.url()

        tenant, other, url = asyncio.run(ready())
        yield Stack(url, settings, tenant, other)


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, which tries nothing twice."""
    with stack.client() as client:
        yield client
