"""What if a link breaks, or an answer is lost on it? Real processes, a link between them that breaks when it is told to."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.queue.streams import JobQueue
from app.settings import Settings
from benchmarks.faults.link import Link
from tests.support.api import job_id_of, make_tenant
from tests.support.api_process import running_process
from tests.support.audit import assert_audit_clean
from tests.support.jobs import submit_and_nominate
from tests.support.stack import (
    MAINTENANCE,
    NULL_ENGINE,
    QUICK,
    SHORT_LEASE,
    WORKER,
    assert_exactly_once,
    running,
    wait_for,
    wait_until_ended,
)

SLOW = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.02"}
SNAIL = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.1"}  # for what mustn't end before something happens to it


@pytest.fixture
def to_postgres(settings: Settings) -> Iterator[Link]:
    """A link to the database for one process; everybody else goes directly."""
    assert settings.database_url
    with Link(settings.database_url) as link:
        yield link


@pytest.fixture
def to_redis(settings: Settings) -> Iterator[Link]:
    """A link to Redis for one process."""
    assert settings.redis_url
    with Link(settings.redis_url) as link:
        yield link


async def attempts_of(engine: AsyncEngine, job_ids: list[UUID]) -> list[int]:
    async with engine.connect() as conn:
        found = await conn.scalars(text("SELECT attempt FROM jobs WHERE id = ANY(:ids) ORDER BY id"), {"ids": job_ids})
        return list(found)


async def wait_until_told(queue: JobQueue, started: list[UUID]) -> None:
    """Until the worker has told Redis what it has started: a job's start is in Postgres before that."""
    async with asyncio.timeout(30):
        while any(gen is not None for gen in await queue.known_gens(started)):
            await asyncio.sleep(0.01)


async def test_an_api_killed_before_its_commit_leaves_nothing_and_the_key_makes_the_job(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    tenant = await make_tenant(engine, settings, "globex")
    body = {"prompt": "Once", "max_tokens": 8, "model": "tiny"}
    headers = tenant.auth | {"Idempotency-Key": "k"}
    with running_process(environment, tmp_path, PENSTOCK_KILL_POINT="api.before_commit") as api:
        async with httpx.AsyncClient(base_url=await api.url(), timeout=60) as client:
            with pytest.raises(httpx.TransportError):
                await client.post("/v1/jobs", json=body, headers=headers)
        assert await api.exit_code() == -signal.SIGKILL
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM jobs")) == 0
        assert await conn.scalar(text("SELECT count(*) FROM idempotency_keys")) == 0
    with running_process(environment, tmp_path) as api:
        async with httpx.AsyncClient(base_url=await api.url(), timeout=60) as client:
            answer = await client.post("/v1/jobs", json=body, headers=headers)
            again = await client.post("/v1/jobs", json=body, headers=headers)
    assert (answer.status_code, answer.headers.get("Idempotency-Replayed")) == (202, None), "it is made, not found"
    assert (again.status_code, again.headers.get("Idempotency-Replayed")) == (202, "true")
    job_id = job_id_of(answer.json())
    assert job_id_of(again.json()) == job_id
    with running(WORKER, environment, tmp_path, **NULL_ENGINE):
        assert await wait_until_ended(engine, [job_id]) == {"succeeded": 1}
    await assert_exactly_once(engine, [job_id])
    await assert_audit_clean(engine, queue.redis)


async def test_an_enqueue_whose_answer_is_lost_is_no_second_nomination(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path,
    to_redis: Link,
) -> None:  # fmt: skip
    tenant = await make_tenant(engine, settings, "globex")
    body = {"prompt": "Once", "max_tokens": 8, "model": "tiny"}
    there = environment | {"REDIS_URL": to_redis.url}
    with running(MAINTENANCE, environment, tmp_path), running_process(there, tmp_path) as api:
        async with httpx.AsyncClient(base_url=await api.url(), timeout=60) as client:
            first = await client.post("/v1/jobs", json=body, headers=tenant.auth)
            to_redis.lose_answer(b"EVALSHA", b"globex")
            second = await client.post("/v1/jobs", json=body, headers=tenant.auth)
            assert (first.status_code, second.status_code) == (202, 202), "the sweeper would find it"
        assert to_redis.num_lost_answers == 1
        assert (await queue.depth())["standard"].jobs == 2
        await asyncio.sleep(2 * float(QUICK["PENSTOCK_SWEEP_AFTER_S"]))  # the sweep has looked at both meanwhile
        assert (await queue.depth())["standard"].jobs == 2
        ids = [job_id_of(first.json()), job_id_of(second.json())]
        with running(WORKER, environment, tmp_path, **NULL_ENGINE):
            assert await wait_until_ended(engine, ids) == {"succeeded": 2}
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT bool_and(attempt = 1 AND gen = 1) FROM jobs"))
    await assert_exactly_once(engine, ids)
    await assert_audit_clean(engine, queue.redis)


async def test_a_start_whose_commit_was_answered_to_nobody_is_adopted(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path,
    to_postgres: Link,
) -> None:  # fmt: skip
    with running(WORKER, environment | {"DATABASE_URL": to_postgres.url}, tmp_path, **SLOW) as worker:
        await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'")
        to_postgres.lose_answer(b"SET status = 'running'", b"COMMIT")
        ids = await submit_and_nominate(engine, settings, queue, 3, max_tokens=10)
        assert await wait_until_ended(engine, ids) == {"succeeded": 3}
        assert to_postgres.num_lost_answers == 1
        assert "jobs_adopted" in worker.log.read_text()
    assert await attempts_of(engine, ids) == [1, 1, 1], "nobody had to start them again"
    await assert_exactly_once(engine, ids)
    # Nobody acked the claim: maintenance would. Its rounds are others' tests.
    async with engine.connect() as conn:
        gens = [1] * len(ids)
        assert await queue.ack(list(zip(ids, gens, strict=True))) in {0, 3}
        assert await conn.scalar(text("SELECT count(*) FROM workers WHERE state = 'lost'")) == 0
    await assert_audit_clean(engine, queue.redis)


async def test_a_finish_whose_commit_was_answered_to_nobody_is_done_once(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path,
    to_postgres: Link,
) -> None:  # fmt: skip
    with running(WORKER, environment | {"DATABASE_URL": to_postgres.url}, tmp_path, **SLOW) as worker:
        to_postgres.lose_answer(b'"job_results"', b"COMMIT")  # by INSERT or by COPY
        ids = await submit_and_nominate(engine, settings, queue, 5, max_tokens=10)
        assert await wait_until_ended(engine, ids) == {"succeeded": 5}
        assert to_postgres.num_lost_answers == 1
        more = await submit_and_nominate(engine, settings, queue, 2, max_tokens=10)
        assert await wait_until_ended(engine, more) == {"succeeded": 2}, "the worker has let go of the first"
        assert "finish_failed" in worker.log.read_text()
        assert "finish_fenced" not in worker.log.read_text(), "it has found its own ends"
    assert await attempts_of(engine, [*ids, *more]) == [1] * 7
    await assert_exactly_once(engine, [*ids, *more])
    await assert_audit_clean(engine, queue.redis)


async def test_a_worker_cut_from_postgres_fences_itself_and_its_jobs_run_elsewhere(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path,
    to_postgres: Link,
) -> None:  # fmt: skip
    with running(MAINTENANCE, environment, tmp_path):
        there = environment | {"DATABASE_URL": to_postgres.url}
        # Between its fence and its lease's end there is time to say that it has given up.
        with running(WORKER, there, tmp_path, **SNAIL, **(SHORT_LEASE | {"PENSTOCK_LEASE_TTL_S": "4"})) as cut_off:
            ids = await submit_and_nominate(engine, settings, queue, 6, max_tokens=150)
            await wait_for(engine, "SELECT count(*) = 6 FROM jobs WHERE status = 'running'")
            to_postgres.hold()
            with running(WORKER, environment, tmp_path, **SLOW):
                await wait_for(engine, "SELECT count(*) = 6 FROM jobs WHERE attempt = 2")
                assert "lease_lost" in cut_off.log.read_text(), "it gave them up before others took them"
                to_postgres.heal()
                assert await wait_until_ended(engine, ids) == {"succeeded": 6}
            more = await submit_and_nominate(engine, settings, queue, 2)
            assert await wait_until_ended(engine, more) == {"succeeded": 2}, "it works again, under another name"
    assert await attempts_of(engine, ids) == [2] * 6
    await assert_exactly_once(engine, [*ids, *more])
    await assert_audit_clean(engine, queue.redis)


async def test_a_worker_cut_from_redis_finishes_what_it_has_through_postgres(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path,
    to_redis: Link,
) -> None:  # fmt: skip
    with running(WORKER, environment | {"REDIS_URL": to_redis.url}, tmp_path, **SLOW):
        ids = await submit_and_nominate(engine, settings, queue, 5, max_tokens=200)
        await wait_for(engine, "SELECT count(*) = 5 FROM jobs WHERE attempt > 0")
        # Between the two a cut leaves nominations of running jobs, for maintenance to find.
        await wait_until_told(queue, ids)
        to_redis.refuse()
        async with engine.connect() as conn:
            assert await conn.scalar(text("SELECT count(*) FROM jobs WHERE status = 'running'")), "it has something"
        assert await wait_until_ended(engine, ids) == {"succeeded": 5}
        waiting = await submit_and_nominate(engine, settings, queue, 2)
        to_redis.heal()
        assert await wait_until_ended(engine, waiting) == {"succeeded": 2}
    assert await attempts_of(engine, [*ids, *waiting]) == [1] * 7
    await assert_exactly_once(engine, [*ids, *waiting])
    await assert_audit_clean(engine, queue.redis)


async def test_an_api_cut_from_redis_takes_jobs_and_tells_their_end(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path,
    to_redis: Link,
) -> None:  # fmt: skip
    tenant = await make_tenant(engine, settings, "globex")
    body = {"prompt": "Once", "max_tokens": 8, "model": "tiny"}
    with (
        running(MAINTENANCE, environment, tmp_path) as keeper,
        running(WORKER, environment, tmp_path, **NULL_ENGINE),
        running_process(environment | {"REDIS_URL": to_redis.url}, tmp_path) as api,
    ):
        await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'")
        async with httpx.AsyncClient(base_url=await api.url(), headers=tenant.auth, timeout=60) as client:
            to_redis.refuse()
            taken = await client.post("/v1/jobs", json=body)
            assert taken.status_code == 202
            ended = await client.get(taken.json()["urls"]["self"], headers={"Prefer": "wait=30"})
        assert (ended.status_code, ended.json()["status"]) == (200, "succeeded")
        async with asyncio.timeout(30):  # nobody else nominated it; the word comes a moment after the deed
            while '"round":"sweep"' not in keeper.log.read_text():
                await asyncio.sleep(0.05)
    await assert_exactly_once(engine, [job_id_of(taken.json())])
    await assert_audit_clean(engine, queue.redis)
