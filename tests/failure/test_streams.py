"""Does a reader of the API see each token once while workers die under the job? Real workers, real kills, the wire's view."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import job_name
from app.jobs.submit import nominate
from app.queue.streams import JobQueue
from app.settings import Settings
from tests.support.api import Tenant, make_tenant
from tests.support.jobs import submit
from tests.support.stack import MAINTENANCE, NULL_ENGINE, SHORT_LEASE, WORKER, running, wait_until_ended
from tests.support.streams import Heard, Served, read_to_end, serving, watching

SLOW = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.02"}
SNAIL = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.05"}  # for what mustn't end before something happens to it
BODY: dict[str, object] = {"max_tokens": 100, "n": 2, "seed": 11, "temperature": 1.0}


@pytest.fixture(autouse=True)
def maintenance(environment: dict[str, str], tmp_path: Path) -> Iterator[None]:
    with running(MAINTENANCE, environment, tmp_path):
        yield


@pytest.fixture
async def tenant(engine: AsyncEngine, settings: Settings, queue: JobQueue) -> Tenant:
    return await make_tenant(engine, settings, "acme")


async def submit_one(engine: AsyncEngine, settings: Settings, queue: JobQueue) -> UUID:
    (accepted,) = await submit(engine, settings, **BODY)
    await nominate(queue, [accepted])
    return accepted.job_id


async def texts_of(engine: AsyncEngine, job_id: UUID) -> list[str]:
    async with engine.connect() as conn:
        found = await conn.scalar(text("SELECT choices FROM job_results WHERE job_id = :id"), {"id": job_id})
    choices = json.loads(found) if isinstance(found, str) else found
    return [choice["text"] for choice in choices]


async def until_heard(heard: Heard, characters: int) -> None:
    async with asyncio.timeout(60):
        while len(heard.text(0)) < characters:
            await asyncio.sleep(0.01)


async def replayed(served: Served, tenant: Tenant, job_id: UUID, heard: Heard) -> None:
    """From Postgres, from each place at which the reader has been, the same comes."""
    async with served.client(tenant) as client:
        for place in range(0, len(heard.events), 5):
            again = Heard(heard.events[:place])
            await read_to_end(client, job_name(job_id), again)
            assert [again.text(0), again.text(1)] == [heard.text(0), heard.text(1)]
            assert again.events[-1] == heard.events[-1]


async def test_a_reader_sees_neither_gap_nor_repeat_when_the_worker_is_killed_and_the_job_goes_on(
    engine: AsyncEngine,
    settings: Settings,
    queue: JobQueue,
    environment: dict[str, str],
    tmp_path: Path,
    tenant: Tenant,
) -> None:
    heard = Heard()
    async with serving(settings) as served, served.client(tenant) as client:
        with running(WORKER, environment, tmp_path, **SNAIL, **SHORT_LEASE) as first:
            job_id = await submit_one(engine, settings, queue)
            reading = asyncio.create_task(read_to_end(client, job_name(job_id), heard))
            await until_heard(heard, 20)
            first.kill_all()
        with running(WORKER, environment, tmp_path, **SLOW):
            assert await wait_until_ended(engine, [job_id]) == {"succeeded": 1}
        await reading
        assert [heard.text(0), heard.text(1)] == await texts_of(engine, job_id)
        assert heard.kinds.count("started") == heard.kinds.count("finished") == 1
        assert "restarted" not in heard.kinds
        await queue.redis.delete(f"ev:{job_id.hex}")
        await replayed(served, tenant, job_id, heard)


@pytest.mark.long
async def test_a_job_that_starts_over_tells_its_readers_to_begin_anew(
    engine: AsyncEngine,
    settings: Settings,
    queue: JobQueue,
    environment: dict[str, str],
    tmp_path: Path,
    tenant: Tenant,
) -> None:
    heard = Heard()
    async with serving(settings) as served, served.client(tenant) as client:
        with running(WORKER, environment, tmp_path, **SNAIL, **SHORT_LEASE) as first:
            job_id = await submit_one(engine, settings, queue)
            async with watching(client, job_name(job_id), heard) as events:
                while len(heard.text(0)) < 20:
                    await anext(events)
            first.kill_all()
        await queue.redis.delete(f"ev:{job_id.hex}")
        with running(WORKER, environment, tmp_path, **SLOW):
            await read_to_end(client, job_name(job_id), heard)
            assert await wait_until_ended(engine, [job_id]) == {"succeeded": 1}
        assert [heard.text(0), heard.text(1)] == await texts_of(engine, job_id)
        assert heard.kinds.count("restarted") == 1
