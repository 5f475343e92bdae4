"""Is a job that kills engines found, and nobody else harmed? Real engines, real deaths."""

import asyncio
import json
from pathlib import Path
from random import Random
from uuid import UUID

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.submit import Caller, accept, nominate
from app.queue.events import EventLog
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.failure.test_worker_crashes import ended_with_an_engine, first_token
from tests.support.audit import assert_audit_clean
from tests.support.jobs import prepared
from tests.support.stack import NULL_ENGINE, WORKER, Process, assert_exactly_once, running, wait_for, wait_until_ended

POISON = 300
PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="whether an engine lives is seen in /proc")
SLOW = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.02"}


def null_options(**options: object) -> dict[str, str]:
    return NULL_ENGINE | {"PENSTOCK_ENGINE_OPTIONS": json.dumps(options)}


async def submit_mixed(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, count: int, num_poison: int, max_tokens: int = 20
) -> tuple[list[UUID], list[UUID]]:
    """Poison among innocents, at any place; (innocents, poison)."""
    places = set(Random(num_poison).sample(range(count), num_poison))
    prompts = [[POISON, 65] if i in places else [65, 66] for i in range(count)]
    async with engine.begin() as conn:
        jobs = [prepared(settings, prompt=prompt, max_tokens=max_tokens) for prompt in prompts]
        accepted = await accept(conn, Caller("acme", None), jobs)
    assert await nominate(queue, accepted)
    ids = [each.job_id for each in accepted]
    return [ids[i] for i in range(count) if i not in places], [ids[i] for i in sorted(places)]


async def assert_convicted(engine: AsyncEngine, innocents: list[UUID], poison: list[UUID]) -> None:
    await assert_exactly_once(engine, innocents)
    async with engine.connect() as conn:
        rows = await conn.execute(
            text("""
                SELECT id, status, error ->> 'code' AS code, failures, worker_losses, engine_crashes, solo_crashes FROM jobs
            """)
        )
        jobs = {row.id: row for row in rows}
        deaths = await conn.scalar(
            text("SELECT count(DISTINCT incarnation) FROM attempts WHERE outcome IN ('engine_crash', 'bystander')")
        )
        letters = {row.job_id: row.evidence for row in await conn.execute(text("SELECT * FROM dead_letters"))}
    for job_id in innocents:
        job = jobs[job_id]
        assert (job.status, job.failures, job.worker_losses, job.solo_crashes) == ("succeeded", 0, 0, 0)
    for job_id in poison:
        assert (jobs[job_id].status, jobs[job_id].code) == ("dead", "engine_crashes")
        assert jobs[job_id].engine_crashes <= 3, "with the death that convicted it"
        assert jobs[job_id].solo_crashes == 2
        assert letters[job_id]["attempts"][-1]["detail"]["flight"]["num_members"] == 1, "the evidence: it was alone"
    assert letters.keys() == set(poison)
    # One death may find several poison jobs, where one step took them in; each one's own two come after it.
    assert deaths <= 3 * len(poison)


@pytest.mark.parametrize("num_poison", [0, pytest.param(1, marks=pytest.mark.long), 3])
async def test_poison_among_32_is_convicted_and_nobody_else_dies(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path,
    num_poison: int,
) -> None:  # fmt: skip
    innocents, poison = await submit_mixed(engine, settings, queue, 32, num_poison)
    with running(WORKER, environment, tmp_path, **null_options(poison_token=POISON)):
        found = await wait_until_ended(engine, [*innocents, *poison])
    expected = {"succeeded": 32 - num_poison, "dead": num_poison}
    assert found == {status: count for status, count in expected.items() if count}
    await assert_convicted(engine, innocents, poison)
    await assert_audit_clean(engine, queue.redis)


async def test_poison_that_is_taken_in_by_several_steps_costs_three_engines_each_at_most(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    innocents, poison = await submit_mixed(engine, settings, queue, 32, 3)
    small_steps = {"PENSTOCK_MAX_NUM_SEQS": "8", "PENSTOCK_MAX_BATCH_TOKENS": "16"}
    with running(WORKER, environment, tmp_path, **null_options(poison_token=POISON), **small_steps):
        assert await wait_until_ended(engine, [*innocents, *poison]) == {"succeeded": 29, "dead": 3}
    await assert_convicted(engine, innocents, poison)
    await assert_audit_clean(engine, queue.redis)


async def test_poison_that_strikes_in_the_middle_of_its_output_is_convicted_from_its_checkpoint(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    options = null_options(poison_token=POISON, poison_at=10) | {"PENSTOCK_NULL_STEP_S": "0.02"}
    innocents, poison = await submit_mixed(engine, settings, queue, 8, 1)
    with running(WORKER, environment, tmp_path, **options):
        assert await wait_until_ended(engine, [*innocents, *poison]) == {"succeeded": 7, "dead": 1}
    await assert_convicted(engine, innocents, poison)
    await assert_audit_clean(engine, queue.redis)


async def test_poison_that_hangs_the_engine_is_convicted_too(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    options = null_options(poison_token=POISON, poison_hangs=True) | {"PENSTOCK_ENGINE_HANG_S": "2.5"}
    innocents, poison = await submit_mixed(engine, settings, queue, 8, 1)
    with running(WORKER, environment, tmp_path, **options):
        assert await wait_until_ended(engine, [*innocents, *poison]) == {"succeeded": 7, "dead": 1}
    await assert_convicted(engine, innocents, poison)
    await assert_audit_clean(engine, queue.redis)


async def test_more_suspects_than_can_run_one_by_one_are_halved(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    # All of 64 prompts fit into one step, so that its death leaves 64 suspects: two groups of 32, then one by one.
    innocents, poison = await submit_mixed(engine, settings, queue, 64, 1, max_tokens=4)
    with running(WORKER, environment, tmp_path, **null_options(poison_token=POISON)):
        assert await wait_until_ended(engine, [*innocents, *poison]) == {"succeeded": 63, "dead": 1}
    async with engine.connect() as conn:
        crashes = await conn.scalar(text("SELECT engine_crashes FROM jobs WHERE id = :id"), {"id": poison[0]})
        solo = await conn.scalar(text("SELECT count(*) FROM attempts WHERE job_id = :id"), {"id": poison[0]})
    assert crashes <= 4, "with the death that convicted it"
    assert solo <= 4, "one more than with 32"
    await assert_exactly_once(engine, innocents)
    await assert_audit_clean(engine, queue.redis)


async def test_poison_with_two_workers(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    options = null_options(poison_token=POISON)
    with running(WORKER, environment, tmp_path, **options), running(WORKER, environment, tmp_path, **options):
        innocents, poison = await submit_mixed(engine, settings, queue, 32, 3)
        assert await wait_until_ended(engine, [*innocents, *poison]) == {"succeeded": 29, "dead": 3}
    await assert_convicted(engine, innocents, poison)
    await assert_audit_clean(engine, queue.redis)


def garble_while_it_lives(garble: Path, process: psutil.Process) -> None:
    """The file is there until the process has gone, so that its successor finds none, however late we look."""
    garble.symlink_to(f"/proc/{process.pid}/stat")
    assert garble.exists()


async def has_new_engine(worker: Process, old: psutil.Process) -> psutil.Process:
    """The worker's engine that isn't `old`, once there is one."""
    async with asyncio.timeout(30):
        while True:
            for child in worker.children():
                if child.pid != old.pid and child.status() != psutil.STATUS_ZOMBIE:
                    return child
            await asyncio.sleep(0.05)


async def token_of_any(redis: Redis, job_ids: list[UUID], *, attempt: int) -> None:
    """Until this attempt of one of the jobs has brought a token."""
    log = EventLog(redis, ttl_s=60, max_entries=1000)
    async with asyncio.timeout(30):
        while True:
            events = [each.event for job_id in job_ids for each in await log.read(job_id)]
            if any(event.attempt == attempt and event.deltas for event in events):
                return
            await asyncio.sleep(0.02)


@PROC
async def test_an_idle_engine_that_fails_its_self_test_is_replaced(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    garble = tmp_path / "garble"
    options = null_options(garble_file=str(garble)) | {"PENSTOCK_CANARY_EVERY_S": "0.2"}
    with running(WORKER, environment, tmp_path, **options) as worker:
        await wait_for(engine, "SELECT count(*) = 1 FROM canaries")
        (old,) = worker.children()
        garble_while_it_lives(garble, old)
        await wait_for(engine, "SELECT bool_or(ended_at IS NOT NULL) FROM workers")
        await has_new_engine(worker, old)
        innocents, _ = await submit_mixed(engine, settings, queue, 4, 0)
        assert await wait_until_ended(engine, innocents) == {"succeeded": 4}
    await assert_exactly_once(engine, innocents)
    await assert_audit_clean(engine, queue.redis)


async def test_a_machine_whose_engines_all_fail_their_self_test_gives_up_and_takes_no_job(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    garble = tmp_path / "garble"
    options = null_options(garble_file=str(garble))
    with running(WORKER, environment, tmp_path, **options):
        await wait_for(engine, "SELECT count(*) = 1 FROM canaries")
    garble.touch()
    await submit_mixed(engine, settings, queue, 4, 0)
    with running(WORKER, environment, tmp_path, **options) as worker:
        assert await asyncio.to_thread(worker.process.wait, 60) == 1
        assert "3 engines in a row were unfit" in worker.log.read_text()
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT bool_and(status = 'queued' AND attempt = 0) FROM jobs"))
    await assert_audit_clean(engine, queue.redis)


@PROC
async def test_a_suspect_is_not_tried_by_an_engine_that_fails_its_self_test(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    """The engine breaks while it tries the first suspect: that is no mark against the second."""
    garble = tmp_path / "garble"
    options = null_options(garble_file=str(garble)) | {"PENSTOCK_NULL_STEP_S": "0.02"}
    with running(WORKER, environment, tmp_path, **options) as worker:
        suspects, _ = await submit_mixed(engine, settings, queue, 2, 0, max_tokens=100)
        for each in suspects:  # both have passed their prompt, so neither is the likelier cause
            await first_token(queue.redis, each)
        (first,) = worker.children()
        first.kill()
        await token_of_any(queue.redis, suspects, attempt=2)  # the self-test before it is over
        garble_while_it_lives(garble, await has_new_engine(worker, first))
        await wait_for(engine, "SELECT count(*) = 2 FROM workers WHERE ended_at IS NOT NULL")
        assert await wait_until_ended(engine, suspects) == {"succeeded": 2}
    async with engine.connect() as conn:
        outcomes = (await conn.scalars(text("SELECT outcome FROM attempts ORDER BY ended_at"))).all()
        assert await conn.scalar(text("SELECT bool_and(solo_crashes = 0) FROM jobs"))
    assert sorted(outcomes) == ["engine_crash", "engine_crash", "engine_unfit", "succeeded", "succeeded"]
    await assert_exactly_once(engine, suspects)
    await assert_audit_clean(engine, queue.redis)


async def test_an_engine_that_grows_too_large_is_replaced_and_costs_its_jobs_nothing(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    options = null_options(leak_mib_per_step=4) | {
        "PENSTOCK_ENGINE_MEMORY_MIB": "320", "PENSTOCK_DRAIN_GRACE_S": "0.5", "PENSTOCK_NULL_STEP_S": "0.02",
    }  # fmt: skip
    with running(WORKER, environment, tmp_path, **options) as worker:
        await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'")
        innocents, _ = await submit_mixed(engine, settings, queue, 8, 0, max_tokens=250)
        assert await wait_until_ended(engine, innocents) == {"succeeded": 8}
        assert "engine_too_large" in worker.log.read_text()
    async with engine.connect() as conn:
        assert await conn.scalar(
            text("SELECT bool_and(failures + worker_losses + engine_crashes = 0 AND attempt > 1) FROM jobs")
        )
    await assert_exactly_once(engine, innocents)
    await assert_audit_clean(engine, queue.redis)


async def test_the_engine_that_stands_by_takes_over(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    with running(WORKER, environment, tmp_path, **SLOW, PENSTOCK_STANDBY_ENGINE="true") as worker:
        innocents, _ = await submit_mixed(engine, settings, queue, 3, 0, max_tokens=150)
        await wait_for(engine, "SELECT count(*) = 3 FROM jobs WHERE attempt > 0")
        async with asyncio.timeout(30):
            while len(worker.children()) < 2:
                await asyncio.sleep(0.05)
        first, second = sorted(worker.children(), key=lambda each: each.create_time())
        first.kill()
        assert await wait_until_ended(engine, innocents) == {"succeeded": 3}
        assert await ended_with_an_engine(engine)
        assert second in worker.children(), "it serves now"
        assert await has_new_engine(worker, second), "and there is another that stands by"
        assert await asyncio.to_thread(worker.terminate) == 0
    await assert_exactly_once(engine, innocents)
    await assert_audit_clean(engine, queue.redis)
