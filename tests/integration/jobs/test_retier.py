"""Does a job that waits change its tier, once, wherever the queue knows it, and does nothing else?"""

import asyncio
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.errors import NotFound, TenantSuspended, TierNotAllowed
from app.ids import job_name, new_id
from app.jobs import store
from app.jobs.resync import SweepCursor, sweep
from app.jobs.retier import Retiered, TierNotChangeable, change_tier
from app.jobs.states import Tier
from app.looks import Looks
from app.queue.streams import JobQueue, Nomination
from app.redis import Redis, RedisError
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.jobs import POOL, open_lease, seed, submit, submit_and_nominate


@pytest.fixture
async def queue(engine: AsyncEngine, redis: Redis) -> JobQueue:
    await seed(engine)
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    return queue


async def retier(engine: AsyncEngine, queue: JobQueue, job_id: UUID, tier: Tier) -> Retiered:
    return await change_tier(engine.begin, lambda _: queue, job_id, tier, actor="operator:ann", reason="urgent")


async def tier_of(engine: AsyncEngine, job_id: UUID) -> str:
    async with engine.connect() as conn:
        return str(await conn.scalar(text("SELECT tier FROM jobs WHERE id = :id"), {"id": job_id}))


async def test_it_waits_in_the_other_tier_and_nowhere_else(
    engine: AsyncEngine, settings: Settings, queue: JobQueue
) -> None:
    (job_id,) = await submit_and_nominate(engine, settings, queue, 1, tier="batch")
    assert await retier(engine, queue, job_id, "interactive") == Retiered(
        job_id, "batch", "interactive", is_nominated=True
    )
    depth = await queue.depth()
    assert (depth["batch"].jobs, depth["interactive"].jobs) == (0, 1)
    await assert_audit_clean(engine, queue.redis)
    (claimed,) = await queue.claim("w", max_jobs=5, room=10**6)
    assert (claimed.job_id, claimed.place) == (job_id, "interactive")
    async with engine.connect() as conn:
        act = (await conn.execute(text("SELECT actor, action, target, detail FROM audit_log"))).one()
    assert tuple(act) == (
        "operator:ann", "job.tier", job_name(job_id), {"tenant": "acme", "before": "batch", "after": "interactive", "reason": "urgent"},
    )  # fmt: skip


async def test_the_same_tier_changes_nothing(engine: AsyncEngine, settings: Settings, queue: JobQueue) -> None:
    (job_id,) = await submit_and_nominate(engine, settings, queue, 1)
    await retier(engine, queue, job_id, "standard")
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM audit_log")) == 0
    await assert_audit_clean(engine, queue.redis)


async def test_what_is_ahead_of_it_in_the_other_tier_stays_ahead_also_after_a_rebuild(
    engine: AsyncEngine, settings: Settings, queue: JobQueue
) -> None:
    (job_id,) = await submit_and_nominate(engine, settings, queue, 1, tier="batch")
    (first,) = await submit_and_nominate(engine, settings, queue, 1, tier="interactive")
    await retier(engine, queue, job_id, "interactive")
    await queue.redis.flushdb()
    await sweep(Looks(engine), queue, SweepCursor(), grace_s=0, force=True)
    await queue.open_epoch("again")
    claimed = [(await queue.claim("w", max_jobs=1, room=10**6))[0].job_id for _ in range(2)]
    assert claimed == [first, job_id]


async def test_a_running_or_ended_job_is_refused(engine: AsyncEngine, settings: Settings, queue: JobQueue) -> None:
    (job_id,) = await submit_and_nominate(engine, settings, queue, 1)
    async with engine.begin() as conn:
        await store.start(conn, await open_lease(conn), [Nomination(job_id, 1, "standard", "acme", 1)])
    with pytest.raises(TierNotChangeable) as refused:
        await retier(engine, queue, job_id, "batch")
    assert refused.value.extra == {"job_status": "running"}
    assert await tier_of(engine, job_id) == "standard"
    with pytest.raises(NotFound):
        await retier(engine, queue, new_id(), "batch")


async def test_a_tenant_gets_no_tier_that_it_may_not_use(
    engine: AsyncEngine, settings: Settings, queue: JobQueue
) -> None:
    (job_id,) = await submit_and_nominate(engine, settings, queue, 1, tier="batch")
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET tiers = '{batch,standard}'"))
    with pytest.raises(TierNotAllowed):
        await retier(engine, queue, job_id, "interactive")
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET suspended_at = now()"))
    with pytest.raises(TenantSuspended):
        await retier(engine, queue, job_id, "standard")
    assert await tier_of(engine, job_id) == "batch"
    await assert_audit_clean(engine, queue.redis)


async def test_a_claim_that_is_quicker_runs_the_job_and_the_change_is_refused(
    engine: AsyncEngine, settings: Settings, queue: JobQueue
) -> None:
    """The claim took the nomination before it left Redis; its start commits between the look and the change."""
    (job_id,) = await submit_and_nominate(engine, settings, queue, 1, tier="batch")
    (claimed,) = await queue.claim("w", max_jobs=1, room=10**6)
    taken_out = queue.ack

    async def ack_then_start(decided: list) -> int:
        found = await taken_out(decided)
        async with engine.begin() as conn:
            assert await store.start(conn, await open_lease(conn), [claimed])
        return found

    queue.ack = ack_then_start  # type: ignore[method-assign]
    with pytest.raises(TierNotChangeable):
        await retier(engine, queue, job_id, "interactive")
    assert await tier_of(engine, job_id) == "batch"


async def test_two_who_change_it_at_once_leave_one_tier_and_one_nomination(
    engine: AsyncEngine, settings: Settings, queue: JobQueue
) -> None:
    (job_id,) = await submit_and_nominate(engine, settings, queue, 1, tier="standard")
    both = (retier(engine, queue, job_id, "interactive"), retier(engine, queue, job_id, "batch"))
    done = await asyncio.gather(*both, return_exceptions=True)
    assert any(isinstance(each, Retiered) for each in done)
    assert len(await queue.claim("w", max_jobs=5, room=10**6)) == 1


async def test_without_redis_nothing_is_changed(engine: AsyncEngine, settings: Settings, queue: JobQueue) -> None:
    (job_id,) = await submit_and_nominate(engine, settings, queue, 1, tier="batch")

    async def away(decided: list) -> int:
        raise RedisError("away")

    queue.ack = away  # type: ignore[method-assign]
    with pytest.raises(RedisError):
        await retier(engine, queue, job_id, "interactive")
    assert await tier_of(engine, job_id) == "batch"


async def test_a_nomination_that_is_lost_after_the_commit_comes_by_the_sweep(
    engine: AsyncEngine, settings: Settings, queue: JobQueue
) -> None:
    """Also where the sweep had compared the job before: it became eligible anew."""
    (job_id,) = await submit_and_nominate(engine, settings, queue, 1, tier="batch")
    cursor = SweepCursor()
    assert await sweep(Looks(engine), queue, cursor, grace_s=0) == 0
    told = queue.enqueue

    async def lost(nominations: list, **_: object) -> int:
        raise RedisError("away")

    queue.enqueue = lost  # type: ignore[method-assign]
    assert not (await retier(engine, queue, job_id, "interactive")).is_nominated
    queue.enqueue = told  # type: ignore[method-assign]
    assert await sweep(Looks(engine), queue, cursor, grace_s=0) == 1
    await assert_audit_clean(engine, queue.redis)


async def test_a_held_job_changes_its_tier_and_isnt_nominated(
    engine: AsyncEngine, settings: Settings, queue: JobQueue
) -> None:
    (job,) = await submit(engine, settings, tier="batch")
    async with engine.begin() as conn:
        await conn.execute(
            text("UPDATE jobs SET reservation = 0, held_by = gen_random_uuid(), not_before = now() + interval '1 h'")
        )
    await retier(engine, queue, job.job_id, "standard")
    assert await tier_of(engine, job.job_id) == "standard"
    assert await queue.known_gens([job.job_id]) == [None]
