"""Does a job go on where its dead worker left it? Real workers, real kills, the reader's view of the stream."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.submit import nominate
from app.queue.checkpoints import assemble
from app.queue.events import EventLog, StoredEvent
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.jobs import submit
from tests.support.stack import (
    MAINTENANCE,
    NULL_ENGINE,
    SHORT_LEASE,
    WORKER,
    assert_exactly_once,
    running,
    wait_until_ended,
)

SLOW = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.02"}
SNAIL = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.05"}  # for what mustn't end before something happens to it
BODY: dict[str, object] = {"max_tokens": 150, "n": 2, "seed": 11, "temperature": 1.0}


@pytest.fixture(autouse=True)
def maintenance(environment: dict[str, str], tmp_path: Path) -> Iterator[None]:
    with running(MAINTENANCE, environment, tmp_path):
        yield


@pytest.fixture
def log(redis: Redis) -> EventLog:
    return EventLog(redis, ttl_s=600, max_entries=10_000)


async def submit_one(engine: AsyncEngine, settings: Settings, queue: JobQueue) -> UUID:
    (accepted,) = await submit(engine, settings, **BODY)
    await nominate(queue, [accepted])
    return accepted.job_id


async def until_tokens(log: EventLog, job_id: UUID, count: int) -> list[StoredEvent]:
    async with asyncio.timeout(60):
        while True:
            entries = await log.read(job_id)
            if entries and entries[-1].seq >= count:
                return entries
            await asyncio.sleep(0.01)


async def choices_of(engine: AsyncEngine, job_id: UUID) -> object:
    async with engine.connect() as conn:
        found = await conn.scalar(text("SELECT choices FROM job_results WHERE job_id = :id"), {"id": job_id})
    return json.loads(found) if isinstance(found, str) else found


async def usage_of(engine: AsyncEngine, job_id: UUID) -> list[tuple[int, str, int]]:
    async with engine.connect() as conn:
        rows = await conn.execute(
            text("SELECT attempt, kind, completion_tokens FROM usage WHERE job_id = :id ORDER BY attempt, kind"),
            {"id": job_id},
        )
        return [(row[0], row[1], row[2]) for row in rows]


def starts(entries: list[StoredEvent]) -> list[StoredEvent]:
    return [each for each in entries if each.event.kind in {"started", "restarted"}]


@pytest.mark.parametrize("how", ["killed", "drained"])
async def test_the_next_worker_goes_on_from_the_tokens_that_readers_have(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, log: EventLog, environment: dict[str, str], tmp_path: Path,
    how: str,
) -> None:  # fmt: skip
    lease = SHORT_LEASE if how == "killed" else {}
    with running(WORKER, environment, tmp_path, **SNAIL, **lease, PENSTOCK_DRAIN_GRACE_S="0.1") as first:
        job_id = await submit_one(engine, settings, queue)
        before = await until_tokens(log, job_id, 20)
        if how == "killed":
            first.kill_all()
        else:
            assert first.terminate() == 0
    before = await log.read(job_id)
    with running(WORKER, environment, tmp_path, **SLOW):
        assert await wait_until_ended(engine, [job_id]) == {"succeeded": 1}
        undisturbed = await submit_one(engine, settings, queue)
        assert await wait_until_ended(engine, [undisturbed]) == {"succeeded": 1}
    await assert_exactly_once(engine, [job_id, undisturbed])
    await assert_audit_clean(engine, queue.redis)
    assert await choices_of(engine, job_id) == await choices_of(engine, undisturbed)

    entries = await log.read(job_id)
    second = starts(entries)[1]
    assert (second.event.kind, second.event.attempt, second.place.run) == ("started", 2, 1)
    assert second.seq == before[-1].seq >= 20
    checkpoint = assemble(entries, 2)  # a reader's view: no gap, and no other token in the same place
    assert checkpoint is not None
    assert checkpoint.num_tokens == 300
    later = [delta for each in entries if each.place.attempt == 2 for delta in each.event.deltas]
    assert sum(len(delta.token_ids) for delta in later) == 300 - second.seq, "nothing was told twice"
    told = ["".join(d.text for each in entries for d in each.event.deltas if d.choice == i) for i in range(2)]
    assert told == [choice["text"] for choice in await choices_of(engine, job_id)]  # type: ignore[attr-defined]
    assert (2, "billed", 300) in await usage_of(engine, job_id)
    if how == "drained":
        assert (1, "wasted", 0) in await usage_of(engine, job_id)


async def test_without_its_stream_a_job_starts_over_and_says_so(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, log: EventLog, redis: Redis, environment: dict[str, str],
    tmp_path: Path,
) -> None:  # fmt: skip
    with running(WORKER, environment, tmp_path, **SNAIL, PENSTOCK_DRAIN_GRACE_S="0.1") as first:
        job_id = await submit_one(engine, settings, queue)
        seen = (await until_tokens(log, job_id, 20))[-1]
        assert first.terminate() == 0
    await redis.delete(f"ev:{job_id.hex}")
    with running(WORKER, environment, tmp_path, **SLOW):
        assert await wait_until_ended(engine, [job_id]) == {"succeeded": 1}
    await assert_exactly_once(engine, [job_id])
    await assert_audit_clean(engine, queue.redis)
    entries = await log.read(job_id, after=seen.place.entry_id)
    assert (entries[0].event.kind, entries[0].place.run, entries[0].seq) == ("restarted", 2, 0)
    checkpoint = assemble(entries, 2)
    assert checkpoint is not None
    assert checkpoint.num_tokens == 300
