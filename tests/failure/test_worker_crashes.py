"""What becomes of jobs when a worker dies, hangs, is stopped or is asked to go? Real processes, real signals."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine
from app.embedded import EmbeddedPostgres
from app.jobs.cancel import cancel, spread_cancel
from app.jobs.submit import nominate
from app.queue.events import EventLog
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.jobs import POOL, seed, submit
from tests.support.processes import have_ended
from tests.support.refusals import OF_SEVEN, refuse_when
from tests.support.stack import (
    MAINTENANCE,
    NULL_ENGINE,
    SHORT_LEASE,
    WORKER,
    Process,
    assert_exactly_once,
    running,
    wait_for,
    wait_until_ended,
)

SLOW = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.02"}


@pytest.fixture
def maintenance(environment: dict[str, str], tmp_path: Path) -> Iterator[Process]:
    with running(MAINTENANCE, environment, tmp_path) as process:
        yield process


async def submit_many(engine: AsyncEngine, settings: Settings, queue: JobQueue, count: int, **body: object) -> list:
    accepted = await submit(engine, settings, count=count, **({"max_tokens": 40} | body))
    assert await nominate(queue, accepted)
    return [each.job_id for each in accepted]


async def first_token(redis: Redis, job_id: UUID) -> None:
    log = EventLog(redis, ttl_s=60, max_entries=100)
    async with asyncio.timeout(60):
        while not any(each.seq for each in await log.read(job_id)):
            await asyncio.sleep(0.02)


STATUS = "SELECT count(*) >= :n FROM jobs WHERE status = :status"
STARTED = "SELECT count(*) >= :n FROM jobs WHERE attempt > 0"  # and perhaps ended: who looks may be late
SNAIL = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.1"}  # for what mustn't end before something happens to it


async def test_kill_9_of_supervisor_and_engine_in_the_middle_of_50_jobs(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path,
    maintenance: Process,
) -> None:  # fmt: skip
    with running(WORKER, environment, tmp_path, **SLOW, **SHORT_LEASE, PENSTOCK_MAX_NUM_SEQS="16") as first:
        ids = await submit_many(engine, settings, queue, 5, max_tokens=5)
        ids += await submit_many(engine, settings, queue, 45, max_tokens=400)  # 8 s for 16 of them
        await wait_for(engine, STATUS, n=5, status="succeeded")
        await wait_for(engine, STATUS, n=1, status="running")
        first.kill_all()
    async with engine.connect() as conn:
        left = await conn.scalar(text("SELECT count(*) FROM jobs WHERE status = 'running'"))
    assert left, "the kill came too late to show anything"
    with running(WORKER, environment, tmp_path, **NULL_ENGINE):
        assert await wait_until_ended(engine, ids) == {"succeeded": 50}
    await assert_exactly_once(engine, ids)
    await assert_audit_clean(engine, queue.redis)


async def test_kill_9_of_the_supervisor_alone_takes_the_engine_with_it(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path,
    maintenance: Process,
) -> None:  # fmt: skip
    with running(WORKER, environment, tmp_path, **SLOW, **SHORT_LEASE) as first:
        ids = await submit_many(engine, settings, queue, 10, max_tokens=400)
        await wait_for(engine, STATUS, n=10, status="running")
        engines = first.children()
        first.process.kill()
        first.process.wait()
        assert engines
        assert have_ended(engines, 5.0), "long before they would have been done"
    with running(WORKER, environment, tmp_path, **NULL_ENGINE):
        assert await wait_until_ended(engine, ids) == {"succeeded": 10}
    await assert_exactly_once(engine, ids)
    await assert_audit_clean(engine, queue.redis)


async def ended_with_an_engine(engine: AsyncEngine) -> int:
    """How many attempts an engine's death has ended: none, and it has hit nobody."""
    async with engine.connect() as conn:
        count = "SELECT count(*) FROM attempts WHERE outcome IN ('engine_crash', 'bystander')"
        return int(await conn.scalar(text(count)) or 0)


async def test_kill_9_of_the_engine_is_repaired_by_its_supervisor(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    with running(WORKER, environment, tmp_path, **SLOW) as worker:
        ids = await submit_many(engine, settings, queue, 4, max_tokens=150)
        await wait_for(engine, STARTED, n=4)
        for child in worker.children():
            child.kill()
        assert await wait_until_ended(engine, ids) == {"succeeded": 4}
    await assert_exactly_once(engine, ids)
    await assert_audit_clean(engine, queue.redis)
    async with engine.connect() as conn:
        assert await conn.scalar(
            text("SELECT bool_and(engine_crashes <= 1 AND solo_crashes = 0 AND worker_losses = 0) FROM jobs")
        )
    assert await ended_with_an_engine(engine)


async def test_a_hanging_engine_is_killed_and_its_jobs_run_again(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    with running(WORKER, environment, tmp_path, **SLOW, PENSTOCK_ENGINE_HANG_S="2") as worker:
        ids = await submit_many(engine, settings, queue, 3, max_tokens=150)
        await wait_for(engine, STARTED, n=3)
        for child in worker.children():
            child.send_signal(signal.SIGSTOP)
        assert await wait_until_ended(engine, ids) == {"succeeded": 3}
    assert await ended_with_an_engine(engine)
    await assert_exactly_once(engine, ids)
    await assert_audit_clean(engine, queue.redis)


async def test_a_stopped_and_continued_worker_writes_nothing_into_jobs_that_moved_on(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path,
    maintenance: Process,
) -> None:  # fmt: skip
    with running(WORKER, environment, tmp_path, **SNAIL, **SHORT_LEASE) as zombie:
        ids = await submit_many(engine, settings, queue, 10, max_tokens=100)
        await wait_for(engine, STATUS, n=10, status="running")
        zombie.process.send_signal(signal.SIGSTOP)
        try:
            with running(WORKER, environment, tmp_path, **SLOW):
                await wait_for(engine, "SELECT count(*) = 10 FROM jobs WHERE attempt = 2")
                zombie.process.send_signal(signal.SIGCONT)
                assert await wait_until_ended(engine, ids) == {"succeeded": 10}
        finally:
            zombie.process.send_signal(signal.SIGCONT)
        await assert_exactly_once(engine, ids)
        await assert_audit_clean(engine, queue.redis)
        async with engine.connect() as conn:
            assert await conn.scalar(text("SELECT bool_and(attempt = 2) FROM job_results"))
        # It has noticed, and works on under a new name.
        more = await submit_many(engine, settings, queue, 5)
        assert await wait_until_ended(engine, more) == {"succeeded": 5}


@pytest.mark.parametrize(
    "point", ["worker.after_claim", "worker.after_start", "worker.before_finish", "worker.after_finish"]
)
async def test_death_at_each_point_of_the_path_loses_and_doubles_nothing(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path,
    maintenance: Process, point: str,
) -> None:  # fmt: skip
    with running(WORKER, environment, tmp_path, **NULL_ENGINE, **SHORT_LEASE, PENSTOCK_KILL_POINT=point) as first:
        ids = await submit_many(engine, settings, queue, 3)
        assert await asyncio.to_thread(first.process.wait, 60) == -signal.SIGKILL
    with running(WORKER, environment, tmp_path, **NULL_ENGINE):
        assert await wait_until_ended(engine, ids) == {"succeeded": 3}
    await assert_exactly_once(engine, ids)
    await assert_audit_clean(engine, queue.redis)


async def test_sigterm_gives_back_what_cannot_finish_and_exits_0(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    with running(WORKER, environment, tmp_path, **SLOW, PENSTOCK_DRAIN_GRACE_S="2.5") as first:
        short = await submit_many(engine, settings, queue, 5, max_tokens=10)
        long = await submit_many(engine, settings, queue, 5, max_tokens=900)
        await wait_for(engine, STARTED, n=10)
        assert await asyncio.to_thread(first.terminate) == 0
    assert await wait_until_ended(engine, short) == {"succeeded": 5}
    async with engine.connect() as conn:
        rows = (
            await conn.execute(
                text("SELECT status, failures, worker_losses, engine_crashes FROM jobs WHERE id = ANY(:ids)"),
                {"ids": long},
            )
        ).all()
    assert [tuple(row) for row in rows] == [("queued", 0, 0, 0)] * 5, "no penalty for a drain"
    assert await queue.known_gens(long) == [2] * 5, "nominated again at once"
    with running(WORKER, environment, tmp_path, **NULL_ENGINE):
        assert await wait_until_ended(engine, long) == {"succeeded": 5}
    await assert_exactly_once(engine, [*short, *long])
    await assert_audit_clean(engine, queue.redis)


async def test_sigterm_of_an_idle_worker_ends_its_lease(
    engine: AsyncEngine, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    with running(WORKER, environment, tmp_path, **NULL_ENGINE) as worker:
        await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'")
        assert await asyncio.to_thread(worker.terminate) == 0
    await wait_for(engine, "SELECT bool_and(state = 'ended') FROM workers")
    await assert_audit_clean(engine, queue.redis)


@pytest.mark.parametrize("redis_knows", [True, False])
async def test_a_cancel_reaches_a_running_job(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, redis: Redis, environment: dict[str, str], tmp_path: Path,
    redis_knows: bool,
) -> None:  # fmt: skip
    with running(WORKER, environment, tmp_path, **SLOW):
        (job_id,) = await submit_many(engine, settings, queue, 1, max_tokens=1000)
        await first_token(redis, job_id)
        async with engine.begin() as conn:
            cancelled = await cancel(conn, "acme", job_id)
        if redis_knows:
            await spread_cancel(queue, cancelled)
        assert await wait_until_ended(engine, [job_id], timeout_s=15) == {"cancelled": 1}, "it would have taken 20 s"
    async with engine.connect() as conn:
        used = await conn.scalar(text("SELECT completion_tokens FROM usage WHERE kind = 'billed'"))
    assert 0 < used < 1000, "what was computed is billed, no more"
    await assert_audit_clean(engine, queue.redis)


async def test_a_deadline_stops_a_running_job(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    with running(WORKER, environment, tmp_path, **SLOW):
        await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'")
        (job_id,) = await submit_many(engine, settings, queue, 1, max_tokens=1000, deadline_s=2.0)
        assert await wait_until_ended(engine, [job_id]) == {"expired": 1}
    async with engine.connect() as conn:
        late = await conn.scalar(text("SELECT extract(epoch FROM finished_at - deadline_at) FROM jobs"))
        assert await conn.scalar(text("SELECT attempt FROM jobs")) == 1
    assert late < 5.0, "it would have gone on for 18 s"
    await assert_audit_clean(engine, queue.redis)


async def test_a_lost_redis_is_rebuilt_while_work_goes_on(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, redis: Redis, environment: dict[str, str], tmp_path: Path,
    maintenance: Process,
) -> None:  # fmt: skip
    with running(WORKER, environment, tmp_path, **SLOW, PENSTOCK_MAX_NUM_SEQS="4"):
        ids = await submit_many(engine, settings, queue, 30, max_tokens=10)
        await wait_for(engine, STATUS, n=3, status="succeeded")
        await redis.flushdb()
        assert await wait_until_ended(engine, ids) == {"succeeded": 30}
    await assert_exactly_once(engine, ids)
    await assert_audit_clean(engine, queue.redis)


async def test_stop_strings_end_a_job_and_bill_to_the_token(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    with running(WORKER, environment, tmp_path, **NULL_ENGINE):
        (plain,) = await submit_many(engine, settings, queue, 1, seed=5, max_tokens=200)
        assert await wait_until_ended(engine, [plain]) == {"succeeded": 1}
        async with engine.connect() as conn:
            whole = (await conn.scalar(text("SELECT choices FROM job_results")))[0]["text"]
        stop = whole[100:104]
        (job_id,) = await submit_many(engine, settings, queue, 1, seed=5, max_tokens=200, stop=[stop])
        assert await wait_until_ended(engine, [job_id]) == {"succeeded": 1}
    async with engine.connect() as conn:
        choices = await conn.scalar(text("SELECT choices FROM job_results WHERE job_id = :id"), {"id": job_id})
        used = await conn.scalar(text("SELECT completion_tokens FROM usage WHERE job_id = :id"), {"id": job_id})
    assert choices[0] == {"index": 0, "text": whole[: whole.index(stop)], "finish_reason": "stop"}
    assert 0 < used < 200
    await assert_audit_clean(engine, queue.redis)


async def test_a_job_counted_with_another_tokenizer_is_counted_again(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    plain, other = (
        await submit_many(engine, settings, queue, 1, seed=3),
        await submit(engine, settings, seed=3, max_tokens=40),
    )
    async with engine.begin() as conn:
        await conn.execute(
            text("UPDATE job_inputs SET tokenizer_hash = 'older', prompt_ids = '' WHERE job_id = :id"),
            {"id": other[0].job_id},
        )
    await nominate(queue, other)
    with running(WORKER, environment, tmp_path, **NULL_ENGINE):
        assert await wait_until_ended(engine, [*plain, other[0].job_id]) == {"succeeded": 2}
    async with engine.connect() as conn:
        texts = (await conn.execute(text("SELECT choices FROM job_results"))).scalars().all()
        used = (await conn.execute(text("SELECT prompt_tokens FROM usage"))).scalars().all()
    assert texts[0] == texts[1]
    assert used == [16, 16]
    await assert_audit_clean(engine, queue.redis)


async def test_a_job_that_no_worker_understands_fails_alone(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    bad, good = await submit_many(engine, settings, queue, 2)
    async with engine.begin() as conn:
        await conn.execute(
            text("""UPDATE job_inputs SET sampling = '{"max_tokens": 4, "surprise": 1}' WHERE job_id = :id"""),
            {"id": bad},
        )
    with running(WORKER, environment, tmp_path, **NULL_ENGINE):
        assert await wait_until_ended(engine, [bad, good]) == {"succeeded": 1, "failed": 1}
    await assert_audit_clean(engine, queue.redis)


async def test_sigterm_while_the_engine_starts_is_heard(
    queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    with running(WORKER, environment, tmp_path, **NULL_ENGINE) as worker:
        async with asyncio.timeout(60):
            while not worker.children():
                await asyncio.sleep(0.01)
        assert await asyncio.to_thread(worker.terminate) == 0


async def test_a_worker_on_an_empty_database_says_what_to_do(
    empty_database_url: str, environment: dict[str, str], tmp_path: Path
) -> None:
    with running(WORKER, environment | {"DATABASE_URL": empty_database_url}, tmp_path, **NULL_ENGINE) as worker:
        assert await asyncio.to_thread(worker.process.wait, 60) == 1
    assert "penstock migrate" in worker.log.read_text()


async def test_while_postgres_is_away_nobody_claims_and_afterwards_all_ends(
    private_postgres: EmbeddedPostgres, settings: Settings, redis: Redis, environment: dict[str, str], tmp_path: Path
) -> None:
    own = settings.model_copy(update={"database_url": private_postgres.url})
    engine = create_engine(own, application_name="penstock-tests")
    try:
        await seed(engine)
        queue = JobQueue(redis, POOL)
        await queue.open_epoch("test")
        there = environment | {"DATABASE_URL": private_postgres.url}
        with (
            running(WORKER, there, tmp_path, **SLOW, PENSTOCK_MAX_NUM_SEQS="8") as worker,
            running(MAINTENANCE, there, tmp_path),
        ):
            ids = await submit_many(engine, own, queue, 4, max_tokens=5)
            ids += await submit_many(engine, own, queue, 36)
            await wait_for(engine, STATUS, n=4, status="succeeded")
            private_postgres.kill()
            async with asyncio.timeout(30):
                while "claim_failed" not in worker.log.read_text():
                    await asyncio.sleep(0.05)
            claimed = await queue.redis.hlen(queue.keys.running)
            await asyncio.sleep(1)  # more jobs end, and their places are free
            assert await queue.redis.hlen(queue.keys.running) == claimed
            assert (await queue.depth())["standard"].jobs > 0
            private_postgres.start()
            await engine.dispose()
            assert await wait_until_ended(engine, ids) == {"succeeded": 40}
        await assert_exactly_once(engine, ids)
        await assert_audit_clean(engine, queue.redis)
    finally:
        await engine.dispose()


async def test_a_job_that_can_neither_succeed_nor_fail_ends_no_worker(
    engine: AsyncEngine, queue: JobQueue, settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    """Its worker ended, and so did the next ones, until none was left. The trigger stands in for a row of it that is broken."""
    await refuse_when(engine, "attempts", "INSERT", OF_SEVEN, sqlstate="22P05")
    with running(WORKER, environment, tmp_path, **NULL_ENGINE, PENSTOCK_DRAIN_GRACE_S="2") as worker:
        bad = await submit(engine, settings, n=7, max_tokens=1)
        assert await nominate(queue, bad)
        async with asyncio.timeout(30):
            while "job_stuck" not in worker.log.read_text():
                await asyncio.sleep(0.05)
        good = await submit(engine, settings, count=3)
        assert await nominate(queue, good)
        good_ids = [each.job_id for each in good]
        assert await wait_until_ended(engine, good_ids, timeout_s=25) == {"succeeded": 3}, "before it is tried again"
        assert await asyncio.to_thread(worker.terminate) == 0
    async with engine.begin() as conn:
        assert await conn.scalar(text("SELECT status FROM jobs WHERE n = 7")) == "running", "nobody could change that"
        await conn.execute(text("DROP TRIGGER refuse ON attempts"))
    with running(MAINTENANCE, environment, tmp_path, PENSTOCK_AUDIT_EVERY_S="1"):
        await wait_for(engine, "SELECT status = 'queued' FROM jobs WHERE n = 7")
        await assert_audit_clean(engine, queue.redis)


async def test_one_end_that_postgres_never_takes_does_not_hold_up_the_others(
    engine: AsyncEngine, queue: JobQueue, settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    """54000, a result beyond 1 GB, is an OperationalError, and was tried for ever. The trigger stands in for the size."""
    await refuse_when(engine, "job_results", "INSERT", OF_SEVEN, sqlstate="54000")
    with running(WORKER, environment, tmp_path, **NULL_ENGINE):
        bad = await submit(engine, settings, n=7, max_tokens=1)
        assert await nominate(queue, bad)
        await wait_for(engine, "SELECT count(*) = 1 FROM jobs WHERE attempt > 0")
        await asyncio.sleep(1)
        good = await submit(engine, settings, count=3)
        assert await nominate(queue, good)
        assert await wait_until_ended(engine, [each.job_id for each in good]) == {"succeeded": 3}
    await assert_audit_clean(engine, queue.redis)
