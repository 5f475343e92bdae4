"""What becomes of a call of the OpenAI-compatible face whose job is promised when Postgres goes away for a while?"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine
from app.embedded import EmbeddedPostgres
from app.queue.events import EventLog, announce_end
from app.redis import Redis
from app.settings import Settings
from tests.support.api import HandWorker, Tenant, job_id_of, make_tenant, register_bytes, until
from tests.support.streams import Served, Writer, serving

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Once"}], "max_completion_tokens": 64}


@pytest.fixture
def settings(private_postgres: EmbeddedPostgres, settings: Settings) -> Settings:
    """With a Postgres that may go away."""
    return settings.model_copy(update={"database_url": private_postgres.url, "database_timeout_s": 3.0})


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(settings, application_name="test")
    yield engine
    await engine.dispose()


@pytest.fixture
async def tenant(engine: AsyncEngine, settings: Settings) -> Tenant:
    return await make_tenant(engine, settings, "acme")


@pytest.fixture
async def served(settings: Settings, engine: AsyncEngine, tenant: Tenant) -> AsyncIterator[Served]:
    await register_bytes(engine)
    async with serving(settings) as served:
        yield served


class Calls:
    """Two calls of the face, one of them in a stream, and their jobs."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.tasks: list[asyncio.Task[httpx.Response]] = []
        self.jobs: list[dict[str, Any]] = []

    async def begin(self, known: list[dict[str, Any]]) -> None:
        """Both, after the `known` jobs."""
        for is_stream in (False, True):
            body = CHAT | {"stream": is_stream}
            self.tasks.append(asyncio.create_task(self.client.post("/v1/chat/completions", json=body)))
            while len(jobs := (await self.client.get("/v1/jobs")).json()["data"]) == len(known) + len(self.jobs):
                await asyncio.sleep(0.01)
            self.jobs.append(jobs[0])


async def test_who_waits_gets_the_answer_after_it_and_who_leaves_takes_his_job_with_him(
    served: Served, client: httpx.AsyncClient, tenant: Tenant, private_postgres: EmbeddedPostgres, engine: AsyncEngine, redis: Redis,
    log: EventLog,
) -> None:  # fmt: skip
    worker, waiting = HandWorker(engine, redis, "bytes"), Calls(client)
    await waiting.begin([])
    async with served.client(tenant) as other:
        leaving = Calls(other)
        await leaving.begin(waiting.jobs)
        await until(lambda: (served.runtime.watch.num_seated, served.hub.num_topics) == (2, 2))
        writers = [Writer(log, job_id_of(job)) for job in waiting.jobs]
        for job in waiting.jobs:
            await worker.start(job)
        await engine.dispose()
        await asyncio.to_thread(private_postgres.stop)
        await announce_end(redis, [(writer.job_id, "succeeded") for writer in writers])  # so that it looks
        for task in leaving.tasks:
            task.cancel()
        await asyncio.gather(*leaving.tasks, return_exceptions=True)
        await until(lambda: len(served.runtime.errands) == 2)
    assert not any(task.done() for task in waiting.tasks)
    await asyncio.to_thread(private_postgres.start)
    for job, writer in zip(waiting.jobs, writers, strict=True):
        writer.deltas("Once upon", reasons={0: "stop"})
        await worker.finish(job | {"status": "running"}, **writer.result())
    async with asyncio.timeout(20):
        for answer in await asyncio.gather(*waiting.tasks):
            assert answer.status_code == 200, answer.text
            assert "Once upon" in answer.text
            assert "error" not in answer.text
        for job in leaving.jobs:
            while (await client.get(job["urls"]["self"])).json()["status"] != "cancelled":
                await asyncio.sleep(0.05)
    await until(lambda: len(served.runtime.errands) == 0)
