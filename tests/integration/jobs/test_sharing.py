"""Is identical work done once, where its tenant wants that, and does nobody wait for a leader that gives nothing?"""

import asyncio
from random import Random
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.ids import new_id
from app.jobs import rescue, store
from app.jobs.cancel import cancel
from app.jobs.finish import Ending, finish
from app.jobs.notices import Used
from app.jobs.read import JobView, get_job
from app.jobs.sharing import hand_on, work_key
from app.jobs.store import Fate, GivenBack, StartedJob
from app.jobs.submit import Accepted, nominate
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.jobs import POOL, nominations, open_lease, seed, submit
from workers.maintenance.keeper import Keeper

GREEDY: dict[str, object] = {"temperature": 0}
CHOICES = [{"index": 0, "text": "the end", "finish_reason": "stop"}]
FATE = Fate(max_attempts=1, max_worker_losses=1, max_solo_crashes=1, retry_base_s=60, retry_cap_s=300)


@pytest.fixture
async def sharing(engine: AsyncEngine, redis: Redis) -> JobQueue:
    """A tenant `acme` that wants it, with a budget, and an open queue."""
    await seed(engine, "acme", "globex")
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET share_identical_s = 600 WHERE id = 'acme'"))
        await conn.execute(
            text("""
                INSERT INTO budgets (id, tenant_id, metric, period, hard_limit)
                VALUES (gen_random_uuid(), 'acme', 'output_tokens', 'total', 10000)
            """)
        )
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    return queue


@pytest.fixture
def keeper(engine: AsyncEngine, redis: Redis, settings: Settings) -> Keeper:
    return Keeper(settings, SystemClock(), engine, redis, Random(1))


async def view(engine: AsyncEngine, job_id: UUID, tenant: str = "acme") -> JobView:
    async with engine.connect() as conn:
        job = await get_job(conn, tenant, job_id)
    assert job is not None
    return job


async def start(engine: AsyncEngine, queue: JobQueue, accepted: list[Accepted]) -> list[StartedJob]:
    """Nominated, claimed, started and acked, as a worker does."""
    assert await nominate(queue, accepted)
    async with engine.begin() as conn:
        incarnation = await open_lease(conn)
        started = await store.start(conn, incarnation, nominations(accepted))
    await queue.ack([(each.job_id, each.gen) for each in started])
    return started


async def succeed(engine: AsyncEngine, job: StartedJob) -> None:
    async with engine.begin() as conn:
        assert await finish(conn, [Ending(job.job_id, job.attempt, "succeeded", CHOICES, used=Used(16, 0, 3))])


async def used(engine: AsyncEngine) -> tuple[int, int]:
    async with engine.connect() as conn:
        return tuple((await conn.execute(text("SELECT used, reserved FROM budget_windows"))).one())  # type: ignore[return-value]


async def test_work_that_is_under_way_is_joined_and_its_result_shared(
    engine: AsyncEngine, redis: Redis, settings: Settings, sharing: JobQueue, keeper: Keeper
) -> None:
    first = await submit(engine, settings, **GREEDY)
    (job,) = await start(engine, sharing, first)
    second = (await submit(engine, settings, **GREEDY))[0]
    assert second.nomination is None
    assert (await view(engine, second.job_id)).shared_from == job.job_id
    for round_of in (keeper.sweep, keeper.audit, keeper.wake):
        await round_of()
    assert await sharing.known_gens([second.job_id]) == [None], "nobody nominates it"
    assert await keeper.hand_on() == 0
    assert await used(engine) == (0, 16)
    await succeed(engine, job)
    assert await keeper.hand_on() == 1
    ended = await view(engine, second.job_id)
    assert (ended.status, ended.choices, ended.attempt) == ("succeeded", CHOICES, 1)
    assert (ended.cached_tokens, ended.completion_tokens) == (16, 3)
    assert await used(engine) == (6, 0)
    await assert_audit_clean(engine, redis)


async def test_what_was_computed_lately_is_there_at_once_and_too_old_a_result_is_not(
    engine: AsyncEngine, redis: Redis, settings: Settings, sharing: JobQueue
) -> None:
    (job,) = await start(engine, sharing, await submit(engine, settings, **GREEDY))
    await succeed(engine, job)
    again = (await submit(engine, settings, **GREEDY))[0]
    ended = await view(engine, again.job_id)
    assert (ended.status, ended.choices, again.nomination) == ("succeeded", CHOICES, None)
    third = (await submit(engine, settings, **GREEDY))[0]
    assert (await view(engine, third.job_id)).shared_from == job.job_id, "the one that computed it, not one that shares"
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE jobs SET finished_at = finished_at - interval '601 s'"))
    late = await submit(engine, settings, **GREEDY)
    assert (await view(engine, late[0].job_id)).status == "queued"
    await start(engine, sharing, late)
    await assert_audit_clean(engine, redis)


async def test_shared_work_is_free_where_the_tenant_is_not_billed_for_it(
    engine: AsyncEngine, redis: Redis, settings: Settings, sharing: JobQueue
) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET bill_shared = false"))
    (job,) = await start(engine, sharing, await submit(engine, settings, **GREEDY))
    await succeed(engine, job)
    free = await view(engine, (await submit(engine, settings, **GREEDY))[0].job_id)
    assert (free.status, free.completion_tokens) == ("succeeded", 0)
    assert await used(engine) == (3, 0)
    await assert_audit_clean(engine, redis)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (GREEDY, GREEDY | {"max_tokens": 9}),
        (GREEDY, GREEDY | {"prompt": "once upon a day"}),
        (GREEDY, GREEDY | {"stop": ["."]}),
        ({"temperature": 1}, {"temperature": 1}),
        ({"temperature": 1, "seed": 1}, {"temperature": 1, "seed": 2}),
        (GREEDY, GREEDY | {"tenant": "globex"}),
        (GREEDY | {"tier": "batch"}, GREEDY | {"tier": "interactive"}),
    ],
    ids=["length", "prompt", "stop", "chance", "seed", "tenant", "a leader that waits in a lower tier"],
)
async def test_other_work_is_not_shared(
    engine: AsyncEngine, settings: Settings, sharing: JobQueue, one: dict, other: dict
) -> None:
    await submit(engine, settings, **one)
    assert (await submit(engine, settings, **other))[0].nomination is not None


@pytest.mark.parametrize("body", [GREEDY | {"seed": 1}, {"temperature": 1, "seed": 5}], ids=["greedy", "own seed"])
async def test_identical_work_has_one_leader_however_many_ask_at_once(
    engine: AsyncEngine, settings: Settings, sharing: JobQueue, body: dict
) -> None:
    accepted = await asyncio.gather(
        *[submit(engine, settings, **body) for _ in range(12)], submit(engine, settings, count=3, **body)
    )
    jobs = [each for one in accepted for each in one]
    assert sum(each.nomination is not None for each in jobs) == 1


async def test_a_tenant_that_did_not_ask_for_it_shares_nothing(
    engine: AsyncEngine, settings: Settings, sharing: JobQueue
) -> None:
    accepted = await submit(engine, settings, tenant="globex", count=2, **GREEDY)
    assert all(each.nomination for each in accepted)


async def test_when_the_leader_gives_nothing_the_most_urgent_leads_and_the_others_follow_it(
    engine: AsyncEngine, redis: Redis, settings: Settings, sharing: JobQueue, keeper: Keeper
) -> None:
    (job,) = await start(engine, sharing, await submit(engine, settings, **GREEDY, tier="batch"))
    slow, fast, other = [
        (await submit(engine, settings, **GREEDY, tier=tier))[0] for tier in ("batch", "interactive", "standard")
    ]
    async with engine.begin() as conn:
        await cancel(conn, "acme", job.job_id)
        assert await finish(conn, [Ending(job.job_id, job.attempt, "cancelled", billed=False)])
    assert await keeper.hand_on() == 1
    assert [await sharing.known_gens([each.job_id]) for each in (slow, fast, other)] == [[None], [1], [None]]
    assert {(await view(engine, each.job_id)).shared_from for each in (slow, other)} == {fast.job_id}
    async with engine.begin() as conn:
        (claimed,) = await sharing.claim("w", max_jobs=5, room=10_000)
        (second,) = await store.start(conn, await open_lease(conn), [claimed])
    await sharing.ack([(second.job_id, second.gen)])
    await succeed(engine, second)
    assert await keeper.hand_on() == 2
    assert {(await view(engine, each.job_id)).status for each in (slow, fast, other)} == {"succeeded"}
    await assert_audit_clean(engine, redis)


async def test_who_follows_poison_runs_alone_first(
    engine: AsyncEngine, redis: Redis, settings: Settings, sharing: JobQueue, keeper: Keeper
) -> None:
    (job,) = await start(engine, sharing, await submit(engine, settings, **GREEDY))
    follower = (await submit(engine, settings, **GREEDY))[0]
    async with engine.begin() as conn:
        await rescue.give_back(conn, [GivenBack(job.job_id, job.attempt, "transient_error")], FATE, Random(1))
    assert (await view(engine, job.job_id)).status == "dead"
    await keeper.hand_on()
    (claimed,) = await sharing.claim("w", max_jobs=5, room=10_000)
    assert (claimed.job_id, claimed.place) == (follower.job_id, "solo")
    await sharing.renominate(idle_s=0)
    await assert_audit_clean(engine, redis)


async def test_a_follower_can_be_cancelled_and_its_deadline_holds(
    engine: AsyncEngine, redis: Redis, settings: Settings, sharing: JobQueue, keeper: Keeper
) -> None:
    (job,) = await start(engine, sharing, await submit(engine, settings, **GREEDY))
    one = (await submit(engine, settings, **GREEDY))[0]
    other = (await submit(engine, settings, **GREEDY, deadline_s=0.01))[0]
    async with engine.begin() as conn:
        assert (await cancel(conn, "acme", one.job_id)).ended
    await asyncio.sleep(0.02)
    assert await keeper.expire() == 1
    await succeed(engine, job)
    assert await keeper.hand_on() == 0
    assert [(await view(engine, each.job_id)).status for each in (one, other)] == ["cancelled", "expired"]
    assert await used(engine) == (3, 0)
    await assert_audit_clean(engine, redis)


async def test_a_leader_whose_result_was_deleted_holds_nobody(
    engine: AsyncEngine, settings: Settings, sharing: JobQueue, keeper: Keeper
) -> None:
    (job,) = await start(engine, sharing, await submit(engine, settings, **GREEDY))
    follower = (await submit(engine, settings, **GREEDY))[0]
    await succeed(engine, job)
    async with engine.begin() as conn:
        await conn.execute(text("DELETE FROM job_results"))
    assert await keeper.hand_on() == 1
    assert await sharing.known_gens([follower.job_id]) == [1]


async def test_a_leader_that_is_gone_holds_nobody(
    engine: AsyncEngine, settings: Settings, sharing: JobQueue, keeper: Keeper
) -> None:
    (only,) = await submit(engine, settings, **GREEDY)
    async with engine.begin() as conn:
        await conn.execute(
            text("UPDATE jobs SET shared_from = :gone, not_before = now() + interval '1 day'"), {"gone": new_id()}
        )
    assert await keeper.hand_on() == 1
    assert await sharing.known_gens([only.job_id]) == [1]


async def test_jobs_of_one_submission_wait_for_one_leader(
    engine: AsyncEngine, settings: Settings, sharing: JobQueue
) -> None:
    accepted = await submit(engine, settings, count=10, **GREEDY)
    (leader,) = [each for each in accepted if each.nomination]
    found = {(await view(engine, each.job_id)).shared_from for each in accepted if each is not leader}
    assert found == {leader.job_id}


async def test_a_leader_that_came_back_to_a_slower_queue_is_not_waited_for(
    engine: AsyncEngine, redis: Redis, settings: Settings, sharing: JobQueue, keeper: Keeper
) -> None:
    (job,) = await start(engine, sharing, await submit(engine, settings, **GREEDY, tier="batch"))
    urgent = (await submit(engine, settings, **GREEDY, tier="interactive"))[0]
    equal = (await submit(engine, settings, **GREEDY, tier="batch"))[0]
    async with engine.begin() as conn:
        rescued = await rescue.give_back(conn, [GivenBack(job.job_id, job.attempt, "drained")], FATE, Random(1))
    await sharing.enqueue(rescued.nominations[POOL])
    assert await keeper.hand_on() == 1
    assert await sharing.known_gens([urgent.job_id, equal.job_id]) == [1, None]
    assert (await view(engine, equal.job_id)).shared_from == urgent.job_id, "it follows who is sooner"
    await assert_audit_clean(engine, redis)


async def test_who_follows_poison_bears_its_solo_crashes(
    engine: AsyncEngine, settings: Settings, sharing: JobQueue, keeper: Keeper
) -> None:
    (job,) = await start(engine, sharing, await submit(engine, settings, **GREEDY))
    follower = (await submit(engine, settings, **GREEDY))[0]
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE jobs SET lane = 'solo', solo_crashes = 1 WHERE id = :id"), {"id": job.job_id})
        await rescue.give_back(conn, [GivenBack(job.job_id, job.attempt, "engine_crash")], FATE, Random(1))
    assert (await view(engine, job.job_id)).status == "dead"
    assert await keeper.hand_on() == 1
    async with engine.connect() as conn:
        found = await conn.execute(text("SELECT lane, solo_crashes FROM jobs WHERE id = :id"), {"id": follower.job_id})
        assert tuple(found.one()) == ("solo", 1)


async def test_two_keepers_hand_on_once(engine: AsyncEngine, settings: Settings, sharing: JobQueue) -> None:
    (job,) = await start(engine, sharing, await submit(engine, settings, **GREEDY))
    for _ in range(3):
        await submit(engine, settings, **GREEDY)
    async with engine.begin() as conn:
        assert await finish(conn, [Ending(job.job_id, job.attempt, "failed", billed=False)])
    async with engine.begin() as one, engine.begin() as other:
        first, second = await hand_on(one), await hand_on(other)
    assert (len(first.nominations[POOL]), second.nominations) == (1, {})


def test_a_text_that_goes_on_and_an_answer_are_different_work() -> None:
    sampling = {"temperature": 0}
    keys = {work_key(("m", "v", "t", form), [1, 2], 1, sampling, has_own_seed=False) for form in ("prompt", "messages")}
    assert len(keys) == 2


async def test_who_follows_a_new_leader_is_not_waited_for(
    engine: AsyncEngine, redis: Redis, settings: Settings, sharing: JobQueue, keeper: Keeper
) -> None:
    """A batch that stops its lines locks them in their order; who waited for one of them while holding others was half of a deadlock."""
    (job,) = await start(engine, sharing, await submit(engine, settings, **GREEDY))
    followers = [(await submit(engine, settings, **GREEDY))[0].job_id for _ in range(3)]
    async with engine.begin() as conn:
        assert await finish(conn, [Ending(job.job_id, job.attempt, "failed", error={"code": "x", "message": "x"})])
    async with engine.connect() as other:
        await other.execute(text("SET LOCAL idle_in_transaction_session_timeout = '30s'"))
        await other.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": max(followers)})
        async with engine.begin() as conn:
            rescued = await asyncio.wait_for(hand_on(conn, most=1), 10)
        assert [each.job_id for each in rescued.nominations[POOL]] == [min(followers)]
    assert (await view(engine, sorted(followers)[1])).shared_from == min(followers)
    await keeper.hand_on()
    leaders = [(await view(engine, each)).shared_from for each in followers]
    assert leaders.count(None) == 2, "the one that was passed over leads itself"
