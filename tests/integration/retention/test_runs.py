"""Is there one run at a time, handed over by RQ, bounded, visible, and whole whatever kills it?"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest
from redis import Redis as SyncRedis
from rq.serializers import JSONSerializer
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.looks import Looks
from app.redis import Redis
from app.retention import runs
from app.retention.dispatch import FUNCTION, QUEUE_NAME, enqueue_run, open_queue
from app.retention.run import run_retention
from app.settings import Settings
from app.webhooks.dispatch import connect_rq
from tests.support.audit import assert_audit_clean
from tests.support.jobs import seed
from tests.support.retention import age, count, live, open_budgets, retain
from workers.maintenance.retention import RetentionKeeper


@pytest.fixture(autouse=True)
async def world(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine, "acme")
    await open_budgets(engine)
    await live(engine, settings, "succeeded")
    await age(engine, 31)


@pytest.fixture
def rq(settings: Settings) -> Iterator[SyncRedis]:
    with connect_rq(settings) as client:
        yield client


async def test_of_many_that_begin_at_once_one_runs(engine: AsyncEngine, redis: Redis, settings: Settings) -> None:
    short = settings.model_copy(update={"retention_days": 30})
    found = await asyncio.gather(
        *[run_retention(short, SystemClock(), engine, redis, asked_by=str(n)) for n in range(4)]
    )
    ran = [each for each in found if each is not None]
    assert len(ran) == 1
    assert ran[0].rows["jobs"] == 1
    assert await count(engine, "retention_runs") == 1


async def test_the_place_of_a_run_whose_process_died_is_taken_over(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    async with engine.begin() as conn:
        dead = await runs.begin(conn, asked_by="dead", host="x")
        assert dead is not None
        assert await runs.begin(conn, asked_by="early", host="x") is None
        await conn.execute(text("UPDATE retention_runs SET leased_until = now() - interval '1 s'"))
    assert (await retain(engine, redis, settings, retention_days=30)).rows["jobs"] == 1
    async with engine.begin() as conn:
        assert await conn.scalar(text("SELECT outcome FROM retention_runs WHERE id = :id"), {"id": dead}) == "lost"
        with pytest.raises(runs.RunLost):
            await runs.progress(conn, dead, "jobs", runs.Counter())


async def test_a_run_that_has_had_its_time_leaves_the_rest_to_the_next(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    first = await retain(engine, redis, settings, retention_days=30, retention_run_s=1e-9)
    assert (first.outcome, first.rows) == ("more", {})
    assert (await retain(engine, redis, settings, retention_days=30)).outcome == "done"
    assert await count(engine, "jobs") == 0


async def test_what_a_run_deletes_is_counted_with_it_and_in_all(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    run = await retain(engine, redis, settings, retention_days=30)
    assert run.rows["jobs"] == 1
    assert run.rows["ledger"] == 9
    async with engine.connect() as conn:
        assert await runs.totals(conn) == run.rows
        assert (await runs.newest(conn, limit=5))[0] == run


async def test_a_failure_is_written_down_and_what_was_done_before_stays(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("ALTER TABLE batches RENAME TO away"))
    run = await retain(engine, redis, settings, retention_days=30)
    assert (run.outcome, run.rows["jobs"], run.step) == ("failed", 1, "batches")
    assert "UndefinedTable" in (run.error or "")


async def test_the_schedule_goes_through_rq_and_comes_once_an_interval(
    engine: AsyncEngine, redis: Redis, settings: Settings, rq: SyncRedis
) -> None:
    short = settings.model_copy(update={"retention_days": 30, "retention_every_s": 3600.0})
    keepers = [RetentionKeeper(short, SystemClock(), engine, redis, rq) for _ in range(2)]
    deleted = [await keeper.round() for keeper in keepers for _ in range(2)]
    assert deleted == [await rows_deleted(engine), 0, 0, 0]
    assert await count(engine, "retention_runs") == 1
    (seen, last) = await runs.look(Looks(engine), every_s=3600), await newest(engine)
    assert not seen.is_due
    assert (await runs.look(Looks(engine), every_s=1e-6)).is_due
    assert (seen.totals, seen.last_outcome, seen.last_ended_at) == (last.rows, last.outcome, last.ended_at)
    assert rq.keys(f"rq:*{QUEUE_NAME}*") in ([], [f"rq:queue:{QUEUE_NAME}".encode()])


async def test_before_the_first_run_one_is_due_and_there_is_nothing_to_show(engine: AsyncEngine) -> None:
    assert await runs.look(Looks(engine), every_s=3600) == runs.Look(True, {}, None, None)


async def newest(engine: AsyncEngine) -> runs.Run:
    async with engine.connect() as conn:
        (found,) = await runs.newest(conn, limit=1)
    return found


async def rows_deleted(engine: AsyncEngine) -> int:
    async with engine.connect() as conn:
        return sum((await runs.totals(conn)).values())


async def test_an_operators_wish_is_made_next_and_bears_his_name(
    engine: AsyncEngine, redis: Redis, settings: Settings, rq: SyncRedis
) -> None:
    await retain(engine, redis, settings)
    queue = open_queue(rq)
    assert enqueue_run(queue, "cli:ann")
    job = queue.jobs[0]
    assert (job.func_name, list(job.args)) == (FUNCTION, ["cli:ann"])
    await RetentionKeeper(settings, SystemClock(), engine, redis, rq).round()
    async with engine.connect() as conn:
        assert [each.asked_by for each in await runs.newest(conn, limit=5)] == ["cli:ann", "test"]


async def test_a_stranger_in_the_queue_is_not_obeyed(
    engine: AsyncEngine, redis: Redis, settings: Settings, rq: SyncRedis
) -> None:
    await retain(engine, redis, settings)
    open_queue(rq).enqueue_call("os.system", args=("touch /tmp/penstock-was-here",))
    assert await RetentionKeeper(settings, SystemClock(), engine, redis, rq).round() == 0
    assert await count(engine, "retention_runs") == 1


async def test_an_rq_worker_of_rqs_own_makes_a_run(
    engine: AsyncEngine, environment: dict[str, str], rq: SyncRedis
) -> None:
    enqueue_run(open_queue(rq), "cli:ann")
    url = environment["REDIS_URL"]
    command = [
        sys.executable,
        "-m",
        "rq.cli",
        "worker",
        "--burst",
        "--url",
        url,
        "--serializer",
        JSONSerializer.__module__ + ".JSONSerializer",
        QUEUE_NAME,
    ]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env=environment | {"PENSTOCK_RETENTION_DAYS": "30"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert await count(engine, "jobs") == 0, done.stderr


async def test_killed_in_the_middle_it_has_done_whole_transactions(
    engine: AsyncEngine, redis: Redis, environment: dict[str, str], settings: Settings
) -> None:
    killed = environment | {"PENSTOCK_RETENTION_DAYS": "30", "PENSTOCK_KILL_POINT": "retention.rolled_up"}
    code = "from workers.maintenance.retention import retain; retain('test')"
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], env=killed, timeout=60)
    assert done.returncode == -9
    assert await count(engine, "jobs") == 1
    await assert_audit_clean(engine, None)
    async with engine.begin() as conn:  # its lease runs out
        await conn.execute(text("UPDATE retention_runs SET leased_until = now() - interval '1 s'"))
    assert (await retain(engine, redis, settings, retention_days=30)).rows["jobs"] == 1
    await assert_audit_clean(engine, None)
