"""Are nominations found again whose keys in Redis were lost one by one, while `idx` still names them?"""

import asyncio
from random import Random

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.ids import new_id
from app.queue.streams import Depth, JobQueue, Nomination
from app.redis import Redis
from app.settings import Settings
from tests.support.jobs import POOL, nominations, seed, submit
from workers.maintenance.keeper import Keeper


def nominate(tenant: str = "acme", tier: str = "standard", cost: int = 100) -> Nomination:
    return Nomination(new_id(), 1, tier, tenant, cost)


@pytest.fixture
async def queue(redis: Redis) -> JobQueue:
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    return queue


async def mend(queue: JobQueue, jobs: list[Nomination]) -> int:
    return await queue.mend([job.job_id for job in jobs], page=2)


async def claim_all(queue: JobQueue, worker: str = "w") -> list[Nomination]:
    return await queue.claim(worker, max_jobs=100, room=10**9)


async def everything(redis: Redis) -> dict[bytes, bytes]:
    return {key: await redis.dump(key) async for key in redis.scan_iter("*")}


async def test_what_is_in_order_is_left_alone(queue: JobQueue, redis: Redis) -> None:
    waiting, claimed = [nominate() for _ in range(3)], [nominate("other", "batch") for _ in range(2)]
    await queue.enqueue(claimed)
    assert await claim_all(queue) == claimed
    await queue.enqueue(waiting)
    before = await everything(redis)
    assert await mend(queue, [*waiting, *claimed, nominate()]) == 0
    assert not await queue.recount()
    assert await everything(redis) == before


async def test_a_deleted_stream_comes_back_in_order_with_the_same_gens(queue: JobQueue, redis: Redis) -> None:
    jobs = [nominate() for _ in range(7)]
    await queue.enqueue(jobs)
    await redis.delete(queue.keys.stream("standard", "acme"))
    assert await claim_all(queue) == []
    assert await mend(queue, jobs) == 7
    assert await mend(queue, jobs) == 0
    assert await queue.depth() == {"interactive": Depth(0, 0), "standard": Depth(7, 700), "batch": Depth(0, 0)}
    assert await claim_all(queue) == jobs
    assert await queue.ack([(job.job_id, 1) for job in jobs]) == 7
    assert (await queue.depth())["standard"] == Depth(0, 0)
    assert not await redis.exists(queue.keys.stream("standard", "acme"))


async def test_a_stream_and_its_tenants_place_lost_at_once_come_back(queue: JobQueue, redis: Redis) -> None:
    jobs = [nominate(f"t{i}") for i in range(4)]
    await queue.enqueue(jobs)
    await redis.delete(queue.keys.active("standard"), *[queue.keys.stream("standard", f"t{i}") for i in range(4)])
    assert await mend(queue, jobs) == 4
    assert sorted(await claim_all(queue), key=str) == sorted(jobs, key=str)


async def test_a_tenant_that_was_lost_from_act_is_served_again(queue: JobQueue, redis: Redis) -> None:
    jobs = [nominate(f"t{i % 2}") for i in range(6)]
    await queue.enqueue(jobs)
    await redis.delete(queue.keys.active("standard"))
    assert await claim_all(queue) == []
    assert await mend(queue, jobs) == 2, "one for each tenant"
    assert sorted(await claim_all(queue), key=str) == sorted(jobs, key=str)


async def test_a_single_lost_entry_comes_back_and_the_others_stay(queue: JobQueue, redis: Redis) -> None:
    jobs = [nominate() for _ in range(4)]
    await queue.enqueue(jobs)
    stream = queue.keys.stream("standard", "acme")
    entry = (await redis.xrange(stream))[1][0]
    await redis.xdel(stream, entry)
    assert await mend(queue, jobs) == 1
    assert await claim_all(queue) == [jobs[0], jobs[2], jobs[3], jobs[1]]


async def test_a_group_that_was_lost_does_not_stop_all_claims(queue: JobQueue, redis: Redis) -> None:
    jobs = [nominate() for _ in range(2)]
    await queue.enqueue(jobs)
    await redis.xgroup_destroy(queue.keys.stream("standard", "acme"), "workers")
    await mend(queue, jobs)
    assert await claim_all(queue) == jobs


async def test_a_lost_depth_is_counted_anew(queue: JobQueue, redis: Redis) -> None:
    jobs = [nominate("a", "interactive", 10), nominate("b", "batch", 5), nominate("b", "batch", 7)]
    await queue.enqueue(jobs)
    await redis.delete(queue.keys.depth)
    assert await queue.recount()
    assert not await queue.recount()
    assert await queue.depth() == {"interactive": Depth(1, 10), "standard": Depth(0, 0), "batch": Depth(2, 12)}


async def test_a_new_entry_that_has_the_id_of_a_lost_one_is_not_taken_for_it(queue: JobQueue, redis: Redis) -> None:
    jobs = [nominate() for _ in range(2)]
    await queue.enqueue(jobs)
    first, second = [str(job.job_id.hex) for job in jobs]
    stream, known = queue.keys.stream("standard", "acme"), await redis.hmget(queue.keys.idx, [first, second])
    (_, _), (last, _) = await redis.xrange(stream)
    await redis.delete(stream)
    # What a mending within the same millisecond, or after a step back of the clock, writes for the first.
    await redis.xgroup_create(stream, "workers", "0", mkstream=True)
    await redis.xadd(stream, {"j": first, "g": "1", "c": "100"}, id=last)
    await redis.hset(queue.keys.idx, first, known[1])
    assert await mend(queue, jobs) == 1
    assert await mend(queue, jobs) == 0
    assert await claim_all(queue) == jobs


async def test_a_depth_that_was_lost_under_way_is_counted_anew(queue: JobQueue, redis: Redis) -> None:
    jobs = [nominate() for _ in range(3)]
    await queue.enqueue(jobs)
    await redis.delete(queue.keys.depth)
    await queue.ack([(jobs[0].job_id, 1)])
    assert (await queue.depth())["standard"].jobs == -1
    assert await queue.recount()
    assert (await queue.depth())["standard"] == Depth(2, 200)


@pytest.mark.parametrize("lost", ["stream", "act", "entry", "depth", "pend", "consumer"])
async def test_while_a_claim_is_pending_nothing_is_lost_and_each_job_is_decided_once(
    queue: JobQueue, redis: Redis, lost: str
) -> None:
    first, second = nominate(), nominate()
    await queue.enqueue([first, second])
    assert await queue.claim("slow", max_jobs=1, room=10**9) == [first]
    stream = queue.keys.stream("standard", "acme")
    if lost == "entry":
        await redis.xdel(stream, (await redis.xrange(stream))[0][0])
    elif lost == "consumer":  # and with it, what it had in hand
        await redis.xgroup_delconsumer(stream, "workers", "slow")
    else:
        keys = queue.keys
        await redis.delete(
            {"stream": stream, "act": keys.active("standard"), "depth": keys.depth, "pend": keys.pend}[lost]
        )
    await mend(queue, [first, second])
    await queue.recount()
    assert await mend(queue, [first, second]) == 0
    assert (await queue.depth())["standard"] == Depth(2, 200)

    claimed = await claim_all(queue, "quick")
    is_lost = lost in {"stream", "entry", "consumer"}
    assert sorted(claimed, key=str) == sorted([first, second] if is_lost else [second], key=str)
    # Both workers ack what they decided, as often as they like: one nomination a job, taken out once.
    acks = [await queue.ack([(job.job_id, 1)]) for job in [second, second, first, first]]
    assert sum(acks) == 2
    assert await queue.renominate(idle_s=0) == 0
    assert await claim_all(queue) == []
    assert (await queue.depth())["standard"] == Depth(0, 0)


@pytest.mark.parametrize("lost", ["pend", "stream", "consumer"])
async def test_a_claim_whose_worker_died_comes_back_though_its_traces_are_lost(
    queue: JobQueue, redis: Redis, lost: str
) -> None:
    job = nominate()
    await queue.enqueue([job])
    await queue.claim("dead", max_jobs=1, room=10**9)
    stream = queue.keys.stream("standard", "acme")
    if lost == "consumer":
        await redis.xgroup_delconsumer(stream, "workers", "dead")
    else:
        await redis.delete(queue.keys.pend if lost == "pend" else stream)
    await mend(queue, [job])
    await redis.zadd(queue.keys.pend, {stream: 1}, xx=True)  # long ago
    await queue.renominate(idle_s=0)
    assert await claim_all(queue) == [job]


async def test_mending_beside_claims_hands_no_nomination_to_nobody(queue: JobQueue, redis: Redis) -> None:
    jobs = [nominate(f"t{i % 3}") for i in range(120)]
    await queue.enqueue(jobs)
    await redis.delete(*[queue.keys.stream("standard", f"t{i}") for i in range(2)], queue.keys.active("standard"))
    decided: list[Nomination] = []
    mending = asyncio.create_task(mend(queue, jobs))
    while len(decided) < 120:
        claimed = await queue.claim("w", max_jobs=3, room=10**9)
        decided += [job for job in claimed if await queue.ack([(job.job_id, job.gen)])]
        await asyncio.sleep(0)
    await mending
    assert len({job.job_id for job in decided}) == 120
    assert await mend(queue, jobs) == 0
    assert await claim_all(queue) == []
    assert (await queue.depth())["standard"] == Depth(0, 0)


async def test_a_stream_that_renominate_empties_leaves_no_tenant_behind(queue: JobQueue, redis: Redis) -> None:
    job = nominate()
    await queue.enqueue([job])
    await queue.claim("dead", max_jobs=1, room=10**9)
    await redis.hdel(queue.keys.idx, job.job_id.hex)
    await redis.zadd(queue.keys.pend, {queue.keys.stream("standard", "acme"): 1})
    await queue.renominate(idle_s=0)
    assert not await redis.exists(queue.keys.stream("standard", "acme"), queue.keys.active("standard"))


async def test_the_keepers_audit_finds_all_of_it(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, redis: Redis
) -> None:
    await seed(engine, "one", "two")
    jobs = nominations(
        [*await submit(engine, settings, tenant="one", count=3), *await submit(engine, settings, tenant="two")]
    )
    await queue.enqueue(jobs)
    await redis.delete(queue.keys.stream("standard", "one"), queue.keys.active("standard"), queue.keys.depth)
    keeper = Keeper(settings.model_copy(update={"sweep_after_s": 0.0}), SystemClock(), engine, redis, Random(1))
    assert await keeper.audit() == 5, "three entries, one more tenant, the depth"
    assert await keeper.audit() == 0
    assert [job for job in await claim_all(queue) if job.tenant == "one"] == jobs[:3]
