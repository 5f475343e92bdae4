"""Does `max_running_jobs` hold, over all pools and whatever Redis believes, and does nothing of it leak?"""

import asyncio
from random import Random

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.jobs import store
from app.jobs.caps import keep_shares, read_shares, within_caps
from app.jobs.finish import Ending, finish
from app.jobs.rescue import give_back
from app.jobs.store import Fate, GivenBack
from app.looks import Looks
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.jobs import POOL, nominations, open_lease, seed, submit
from workers.maintenance.keeper import Keeper

PLENTY = 10**9


@pytest.fixture
async def queue(redis: Redis) -> JobQueue:
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    return queue


@pytest.fixture
def keeper(settings: Settings, engine: AsyncEngine, redis: Redis) -> Keeper:
    return Keeper(settings, SystemClock(), engine, redis, Random(1))


async def set_terms(engine: AsyncEngine, *, cap: int | None, weight: int = 1, tenant: str = "acme") -> None:
    async with engine.begin() as conn:
        await conn.execute(
            text("UPDATE tenants SET max_running_jobs = :cap, weight = :weight WHERE id = :tenant"),
            {"cap": cap, "weight": weight, "tenant": tenant},
        )


async def num_running(engine: AsyncEngine) -> int:
    async with engine.connect() as conn:
        return int(await conn.scalar(text("SELECT count(*) FROM jobs WHERE status = 'running'")) or 0)


async def test_many_workers_that_start_at_once_never_pass_the_cap(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    await set_terms(engine, cap=5)
    jobs = nominations(await submit(engine, settings, count=24))

    async def start(mine: list) -> int:
        async with engine.begin() as conn:
            incarnation = await open_lease(conn)
        async with engine.begin() as conn:
            return len(await store.start(conn, incarnation, await within_caps(conn, mine)))

    assert sum(await asyncio.gather(*[start(jobs[i::8]) for i in range(8)])) == 5
    assert await num_running(engine) == 5


async def test_others_start_beside_a_tenant_at_its_cap(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine, "acme", "other")
    await set_terms(engine, cap=0)
    capped = nominations(await submit(engine, settings, count=3))
    free = nominations(await submit(engine, settings, tenant="other", count=3))
    async with engine.begin() as conn:
        assert await within_caps(conn, [*capped, *free]) == free


async def test_maintenance_brings_weights_and_caps_to_redis(
    engine: AsyncEngine, queue: JobQueue, keeper: Keeper
) -> None:
    await seed(engine)
    await set_terms(engine, cap=7, weight=4)
    await keeper.share()
    assert await queue.redis.hget(queue.keys.terms, "acme") == b"4:7"
    await set_terms(engine, cap=None)
    await keeper.share()
    assert await queue.redis.hget(queue.keys.terms, "acme") is None


async def test_what_ended_unsaid_leaves_no_place_taken(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, keeper: Keeper
) -> None:
    """A worker that is killed after its commit tells nobody."""
    await seed(engine)
    await set_terms(engine, cap=2)
    await keeper.share()
    jobs = nominations(await submit(engine, settings, count=4))
    await queue.enqueue(jobs)
    claimed = await queue.claim("w", max_jobs=8, room=PLENTY)
    assert len(claimed) == 2
    async with engine.begin() as conn:
        incarnation = await open_lease(conn)
        started = await store.start(conn, incarnation, await within_caps(conn, claimed))
    await queue.ack([(job.job_id, job.gen) for job in claimed])
    async with engine.begin() as conn:
        await finish(conn, [Ending(started[0].job_id, 1, "failed", billed=False)])
    assert await queue.claim("w", max_jobs=8, room=PLENTY) == []
    await keeper.share()
    assert await queue.claim("w", max_jobs=8, room=PLENTY) == [jobs[2]]


async def test_a_redis_that_forgot_everything_counts_what_runs_again(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, keeper: Keeper
) -> None:
    await seed(engine)
    await set_terms(engine, cap=2, weight=3)
    await keeper.share()
    jobs = nominations(await submit(engine, settings, count=4))
    await queue.enqueue(jobs)
    claimed = await queue.claim("w", max_jobs=1, room=PLENTY)
    async with engine.begin() as conn:
        await store.start(conn, await open_lease(conn), await within_caps(conn, claimed))
    await queue.redis.flushdb()
    await keeper.rebuild()
    assert await queue.redis.hget(queue.keys.terms, "acme") == b"3:2"
    assert await queue.claim("w", max_jobs=8, room=PLENTY) == [jobs[1]], "one runs, so one more may"


async def test_jobs_that_were_given_back_before_they_were_adopted_take_no_place(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, keeper: Keeper
) -> None:
    """A round looks at Postgres; then the lease of a dead worker runs out, and its jobs wait again; then the round tells Redis what ran.
    Were they believed to run for ever, a tenant at its cap would wait for ever."""
    await seed(engine)
    await set_terms(engine, cap=2)
    jobs = nominations(await submit(engine, settings, count=4))
    async with engine.begin() as conn:
        incarnation = await open_lease(conn)
        started = await store.start(conn, incarnation, await within_caps(conn, jobs[:2]))
    async with Looks(engine) as looks:
        shares = await read_shares(looks)
    fate = Fate.of(settings)
    back = [GivenBack(job.job_id, job.attempt, "drained") for job in started]
    async with engine.begin() as conn:
        rescued = await give_back(conn, back, fate, Random(1))
    await queue.enqueue([*rescued.nominations[POOL], *jobs[2:]])
    await keep_shares(engine, queue, shares, recount=True)
    assert await queue.claim("w", max_jobs=8, room=PLENTY) == [], "adopted too late"
    assert await keeper.share() > 0
    claimed = await queue.claim("w", max_jobs=8, room=PLENTY)
    assert len(claimed) == 2
    await keeper.share()
    assert await queue.redis.hget(queue.keys.busy, "acme") == b"2", (
        "what a claim has taken stays, though nothing of it runs yet"
    )
    assert await keeper.share() == 0


async def test_a_cap_holds_over_pools(engine: AsyncEngine, settings: Settings, queue: JobQueue, keeper: Keeper) -> None:
    await seed(engine)
    await set_terms(engine, cap=3)
    jobs = nominations(await submit(engine, settings, count=6))
    async with engine.begin() as conn:
        await store.start(conn, await open_lease(conn), await within_caps(conn, jobs[:2]))
        await conn.execute(text("UPDATE jobs SET pool = 'elsewhere' WHERE status = 'running'"))
    await queue.enqueue(jobs[2:])
    await keeper.share()
    assert await queue.claim("w", max_jobs=8, room=PLENTY) == [jobs[2]]
