"""Does a queue forget tenants that are long gone, a few at a time, and does nobody else notice?"""

from dataclasses import dataclass

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import new_id
from app.jobs.quiet import quiet_tenants
from app.queue.memory import MemoryCursor, next_remembered
from app.queue.places import PLACES
from app.queue.streams import JobQueue, Nomination, Work
from app.redis import Redis
from app.settings import Settings
from tests.support.jobs import POOL, seed, submit
from workers.maintenance.tidying import Tidier

PLENTY = 10**9
TENANTS = ["ann", "bob", "cem", "dan", "eve"]


@dataclass(frozen=True)
class Step:
    """`what` happens to a tenant, with so much work."""

    what: str
    tenant: str
    amount: int


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["enqueue", "enqueue", "claim", "claim", "end", "sweep"]),
        st.sampled_from(TENANTS),
        st.integers(1, 400),
    ),
    max_size=60,
)


async def opened(redis: Redis, pool: str) -> JobQueue:
    queue = JobQueue(redis, pool, now=lambda: 1000.0)
    await queue.open_epoch("test")
    return queue


async def standing(queue: JobQueue) -> dict[bytes, float]:
    """Tenants with work -> counter."""
    return dict(await queue.redis.zrange(queue.keys.active("standard"), 0, -1, withscores=True))


async def idle(queue: JobQueue) -> set[str]:
    """Tenants whose counter is remembered."""
    return {name.decode() for name in await queue.redis.hkeys(queue.keys.remembered("standard"))} - {":now"}


@given(STEPS, st.sampled_from([0, 300, 2000]))
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_claim_differs_from_a_queues_that_never_forgets(redis: Redis, steps: list[Step], credit: int) -> None:
    """Two queues get the same; one forgets tenants now and then. All is the same in both until somebody who was forgotten returns with a
    counter ahead of where the idle are lifted to: it then begins there, and not behind.
    """
    await redis.flushdb()
    kept, swept = await opened(redis, "kept"), await opened(redis, "swept")
    running: list[Nomination] = []
    forgotten: set[str] = set()
    for step in steps:
        if step.what == "enqueue":
            job = Nomination(new_id(), 1, "standard", step.tenant, step.amount)
            assert await kept.enqueue([job]) == await swept.enqueue([job]) == 1
            if step.tenant in forgotten:
                forgotten.remove(step.tenant)
                name = step.tenant.encode()
                mine, others = (await standing(swept))[name], (await standing(kept))[name]
                assert mine <= others
                if mine < others:
                    return
        elif step.what == "claim":
            claimed = await kept.claim("w", max_jobs=1, room=PLENTY, credit=credit)
            assert await swept.claim("w", max_jobs=1, room=PLENTY, credit=credit) == claimed
            for queue in (kept, swept):
                await queue.ack([(job.job_id, job.gen) for job in claimed])
            running += claimed
        elif step.what == "end" and running:
            job = running.pop(step.amount % len(running))
            for queue in (kept, swept):
                # As much as it may cost: then what is expected is the same of all.
                assert await queue.true_up([Work(job.job_id, job.cost)]) == 1
        elif step.what == "sweep":
            before = await idle(swept)
            await swept.forget_tenants([step.tenant])
            forgotten |= before - await idle(swept)
        assert await standing(kept) == await standing(swept)
        assert await idle(kept) == await idle(swept) | forgotten


async def test_who_was_forgotten_behind_the_others_returns_where_it_would_have_anyway(redis: Redis) -> None:
    orders = []
    early = Nomination(new_id(), 1, "standard", "ann", 100)
    flood = [Nomination(new_id(), 1, "standard", "bob", 100) for _ in range(10)]
    late = [Nomination(new_id(), 1, "standard", "ann", 100) for _ in range(3)]
    for pool in ("kept", "swept"):
        queue = await opened(redis, pool)
        await queue.enqueue([early])
        (claimed,) = await queue.claim("w", max_jobs=1, room=PLENTY, credit=150)
        await queue.ack([(claimed.job_id, claimed.gen)])
        await queue.true_up([Work(claimed.job_id, 100)])
        await queue.enqueue(flood)
        for job in await queue.claim("w", max_jobs=6, room=PLENTY, credit=150):
            await queue.ack([(job.job_id, job.gen)])
        assert "ann" in await idle(queue)
        if pool == "swept":
            assert await queue.forget_tenants(["ann", "bob"]) == 1
            assert "ann" not in await idle(queue)
        await queue.enqueue(late)
        orders.append(
            [(each.tenant, each.level) for each in await queue.claim("w", max_jobs=7, room=PLENTY, credit=150)]
        )
    assert orders[0] == orders[1]
    assert {tenant for tenant, _ in orders[0]} == {"ann", "bob"}


async def test_who_has_anything_here_is_not_forgotten(redis: Redis) -> None:
    queue = await opened(redis, "tiny")
    jobs = {name: Nomination(new_id(), 1, "standard", name, 10) for name in ("waits", "runs", "ended")}
    await queue.enqueue([jobs["runs"], jobs["ended"]])
    claimed = await queue.claim("w", max_jobs=2, room=PLENTY)
    await queue.ack([(job.job_id, job.gen) for job in claimed])
    await queue.true_up([Work(jobs["ended"].job_id, 5)])
    await queue.enqueue([jobs["waits"]])
    await redis.hset(queue.keys.mean, mapping={"waits": "0.5", "runs": "0.5"})
    await redis.hset(queue.keys.remembered("standard"), ":now", "10")
    assert await queue.forget_tenants([*jobs, "stranger", ":all", ":now"]) == 1
    assert set(await redis.hkeys(queue.keys.mean)) == {b"waits", b"runs", b":all"}
    assert await idle(queue) == {"runs"}
    assert await redis.hexists(queue.keys.remembered("standard"), ":now")


async def test_all_that_is_remembered_comes_by_in_bounded_steps(redis: Redis) -> None:
    queue = await opened(redis, "tiny")
    names = [f"tenant-{n}" for n in range(3000)]
    await redis.hset(queue.keys.mean, mapping=dict.fromkeys(names, "1") | {":all": "1"})
    await redis.hset(queue.keys.remembered("batch"), mapping=dict.fromkeys(names[:1000], "1") | {":now": "1"})
    cursor, found, most, steps = MemoryCursor(), [], 0, 0
    while steps == 0 or cursor != MemoryCursor():
        page = await next_remembered(queue, cursor, page=100)
        found += page
        most, steps = max(most, len(page)), steps + 1
    assert set(found) == set(names)
    assert len(found) >= 4000
    assert most < 300
    assert steps > 20 + len(PLACES) - 1


async def test_quiet_is_who_has_nothing_waiting_and_nothing_that_ended_lately(
    settings: Settings, engine: AsyncEngine, redis: Redis
) -> None:
    await seed(engine, "waits", "lately", "gone")
    for name in ("waits", "lately", "gone"):
        await submit(engine, settings, tenant=name)
    async with engine.begin() as conn:
        await conn.execute(
            text("""
                UPDATE jobs SET status = 'cancelled', finished_at = now() - make_interval(days => ended.days)
                FROM (VALUES ('lately', 6), ('gone', 8)) AS ended (tenant, days) WHERE tenant_id = ended.tenant
            """)
        )
        assert sorted(await quiet_tenants(conn, ["waits", "lately", "gone", "deleted"])) == ["deleted", "gone"]
    queue = await opened(redis, POOL)
    everybody = ["waits", "lately", "gone", "deleted"]
    await redis.hset(queue.keys.mean, mapping=dict.fromkeys([*everybody, ":all"], "0.5"))
    await redis.hset(queue.keys.remembered("standard"), mapping=dict.fromkeys([*everybody, ":now"], "7"))
    assert await Tidier(engine, redis, page=2).round() == 2
    assert set(await redis.hkeys(queue.keys.mean)) == {b"waits", b"lately", b":all"}
    assert await idle(queue) == {"waits", "lately"}
