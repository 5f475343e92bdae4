"""What if a server restarts, or comes back as it was some time ago? And if a clock jumps?"""

import asyncio
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.queue.events import EventLog
from app.queue.streams import JobQueue
from app.redis import Redis, create_redis
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.jobs import POOL, seed, submit_and_nominate
from tests.support.stack import (
    MAINTENANCE,
    NULL_ENGINE,
    SHORT_LEASE,
    WORKER,
    assert_exactly_once,
    running,
    wait_for,
    wait_until_ended,
)

SLOW = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.02"}

# What a process's clock shows is moved by the seconds in a file. Waits go by the monotonic clock, which isn't.
SHIFTED_CLOCK = """
import datetime, os, time
_real = time.time
def _shift():
    try:
        return float(open(os.environ["SHIFT_FILE"]).read() or 0)
    except OSError:
        return 0.0
time.time = lambda: _real() + _shift()
time.time_ns = lambda: int((_real() + _shift()) * 1e9)
_datetime = datetime.datetime
class _AnyDatetime(type):
    def __instancecheck__(cls, each):
        return isinstance(each, _datetime)
class _Shifted(_datetime, metaclass=_AnyDatetime):  # makes plain ones: who writes JSON knows no others
    __slots__ = ()
    fromtimestamp = _datetime.fromtimestamp
    def __new__(cls, *parts, **named):
        return _datetime(*parts, **named)
    @classmethod
    def now(cls, tz=None):
        return _datetime.fromtimestamp(time.time(), tz)
    @classmethod
    def utcnow(cls):
        return cls.now(datetime.UTC).replace(tzinfo=None)
datetime.datetime = _Shifted
print("the clock can be shifted", flush=True)
"""


async def test_redis_back_from_an_old_copy_runs_nothing_twice_and_forgets_nothing(
    engine: AsyncEngine, settings: Settings, private_redis: EmbeddedRedis, private_dir: Path,
    environment: dict[str, str], tmp_path: Path,
) -> None:  # fmt: skip
    await seed(engine)
    there = environment | {"REDIS_URL": private_redis.url}
    own = settings.model_copy(update={"redis_url": private_redis.url})
    data, copy = private_dir / "redis" / "data", private_dir / "copy"
    async with create_redis(own) as redis:
        queue = JobQueue(redis, POOL)
        await queue.open_epoch("test")
        early = await submit_and_nominate(engine, settings, queue, 5)
    private_redis.stop()
    shutil.copytree(data, copy, ignore=shutil.ignore_patterns("*.sock"))
    private_redis.start()
    with running(MAINTENANCE, there, tmp_path) as keeper:
        with running(WORKER, there, tmp_path, **NULL_ENGINE):
            assert await wait_until_ended(engine, early) == {"succeeded": 5}
        async with create_redis(own) as redis:
            late = await submit_and_nominate(engine, settings, JobQueue(redis, POOL), 5)
        private_redis.kill()
        shutil.rmtree(data)
        shutil.copytree(copy, data)
        private_redis.start()
        async with create_redis(own) as redis:
            old = JobQueue(redis, POOL)
            assert await old.has_epoch()
            with running(WORKER, there, tmp_path, **NULL_ENGINE):
                assert await wait_until_ended(engine, late) == {"succeeded": 5}
            async with engine.connect() as conn:
                assert await conn.scalar(text("SELECT bool_and(attempt = 1) FROM jobs")), "nothing ran twice"
            await assert_exactly_once(engine, [*early, *late])
            await assert_audit_clean(engine, redis)
        assert keeper.process.poll() is None


@pytest.mark.parametrize("how", [pytest.param("restart", marks=pytest.mark.long), "crash"])
async def test_postgres_restarts_in_the_middle_of_the_work(
    private_postgres: EmbeddedPostgres, settings: Settings, redis: Redis, environment: dict[str, str], tmp_path: Path,
    how: str,
) -> None:  # fmt: skip
    own = settings.model_copy(update={"database_url": private_postgres.url})
    engine = create_engine(own, application_name="penstock-tests")
    try:
        await seed(engine)
        queue = JobQueue(redis, POOL)
        await queue.open_epoch("test")
        there = environment | {"DATABASE_URL": private_postgres.url}
        with running(WORKER, there, tmp_path, **SLOW), running(MAINTENANCE, there, tmp_path):
            ids = await submit_and_nominate(engine, own, queue, 30, max_tokens=60)
            await wait_for(engine, "SELECT count(*) > 10 FROM jobs WHERE attempt > 0")
            if how == "restart":
                private_postgres.stop()
            else:
                private_postgres.kill()
            private_postgres.start()
            await engine.dispose()
            assert await wait_until_ended(engine, ids) == {"succeeded": 30}
        async with engine.connect() as conn:
            assert await conn.scalar(text("SELECT bool_and(worker_losses = 0 AND failures = 0) FROM jobs"))
        await assert_exactly_once(engine, ids)
        await assert_audit_clean(engine, redis)
    finally:
        await engine.dispose()


async def test_postgres_is_away_for_longer_than_the_fence_and_what_ran_goes_on_from_its_tokens(
    private_postgres: EmbeddedPostgres, settings: Settings, redis: Redis, environment: dict[str, str], tmp_path: Path
) -> None:
    own = settings.model_copy(update={"database_url": private_postgres.url})
    engine = create_engine(own, application_name="penstock-tests")
    events = EventLog(redis, ttl_s=60, max_entries=10_000)
    try:
        await seed(engine)
        queue = JobQueue(redis, POOL)
        await queue.open_epoch("test")
        there = environment | {"DATABASE_URL": private_postgres.url}
        with (
            running(WORKER, there, tmp_path, **SLOW, **SHORT_LEASE) as worker,
            running(MAINTENANCE, there, tmp_path),
        ):
            ids = await submit_and_nominate(engine, own, queue, 6, max_tokens=300)
            await wait_for(engine, "SELECT count(*) = 6 FROM jobs WHERE status = 'running'")
            private_postgres.stop()
            async with asyncio.timeout(30):
                while "lease_lost" not in worker.log.read_text():
                    await asyncio.sleep(0.05)
            told = {job_id: (await events.read(job_id))[-1].seq for job_id in ids}
            private_postgres.start()
            await engine.dispose()
            assert await wait_until_ended(engine, ids) == {"succeeded": 6}
        async with engine.connect() as conn:
            counted = await conn.execute(text("SELECT DISTINCT attempt, worker_losses, failures FROM jobs"))
            assert [tuple(row) for row in counted] == [(2, 1, 0)], "one lost worker, and nothing else, for each"
        for job_id in ids:
            starts = [each for each in await events.read(job_id) if each.event.kind in {"started", "restarted"}]
            assert [each.event.kind for each in starts] == ["started", "started"]
            assert starts[1].seq >= told[job_id] > 0, "from its tokens"
        await assert_exactly_once(engine, ids)
        await assert_audit_clean(engine, redis)
    finally:
        await engine.dispose()


async def test_a_workers_clock_jumps_by_an_hour_and_nothing_happens(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    shift = tmp_path / "shift"
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(SHIFTED_CLOCK)
    shifted = environment | {"PYTHONPATH": str(tmp_path / "clock"), "SHIFT_FILE": str(shift)}
    with running(MAINTENANCE, environment, tmp_path), running(WORKER, shifted, tmp_path, **SLOW) as worker:
        ids = await submit_and_nominate(engine, settings, queue, 4, max_tokens=200, deadline_s=600)
        await wait_for(engine, "SELECT count(*) = 4 FROM jobs WHERE status = 'running'")
        for seconds in (3600, -3600):
            shift.write_text(str(seconds))
            await wait_for(
                engine,
                "SELECT max(renewed_at) > CAST(:since AS timestamptz) + interval '1 s' FROM workers",
                since=await _now(engine),
            )
        assert await wait_until_ended(engine, ids) == {"succeeded": 4}
        log = worker.log.read_text()
        assert "the clock can be shifted" in log
        assert "Logging error" not in log, "what follows would look at a log that isn't one"
        assert "lease_lost" not in log
        before_drain = len(worker.log.read_text().splitlines())
        assert await asyncio.to_thread(worker.terminate) == 0
        last_words = [json.loads(line) for line in worker.log.read_text().splitlines()[before_drain:]]
    # Without this a clock that nobody sees would pass, too.
    assert last_words
    for each in last_words:
        assert datetime.fromisoformat(each["at"]) < datetime.now(UTC) - timedelta(minutes=50), each
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT bool_and(attempt = 1) FROM jobs"))
        assert await conn.scalar(text("SELECT count(*) FROM workers")) == 1
    await assert_exactly_once(engine, ids)
    await assert_audit_clean(engine, queue.redis)


async def _now(engine: AsyncEngine) -> object:
    async with engine.connect() as conn:
        return await conn.scalar(text("SELECT clock_timestamp()"))
