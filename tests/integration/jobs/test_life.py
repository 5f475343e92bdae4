"""Does each transition of a job hold, once, fenced, with all that belongs to it?"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.errors import BudgetExhausted, IdempotencyMismatch, LeaseLost, NotCancellable, NotFound
from app.ids import new_id
from app.jobs import idempotency, leases, rescue, resync, store, timekeeping
from app.jobs.cancel import cancel
from app.jobs.dead.letters import COUNTERS
from app.jobs.finish import Ending, end_queued, finish, has_finished
from app.jobs.notices import Used
from app.jobs.read import JobFilter, JobView, get_job, list_jobs
from app.jobs.resync import SweepCursor
from app.jobs.store import Cause, Fate, GivenBack, StartedJob
from app.jobs.submit import Accepted, Caller, accept, find_replay, nominate
from app.jobs.tables import attempts, dead_letters, job_results
from app.looks import Looks
from app.queue.streams import JobQueue, Nomination
from app.quotas.tables import budgets, usage
from app.redis import Redis
from app.settings import Settings
from app.webhooks.tables import webhook_deliveries
from tests.support.audit import assert_audit_clean
from tests.support.jobs import POOL, key_of, nominations, open_lease, prepared, seed, submit
from tests.support.refusals import OF_SEVEN, refuse_when

FATE = Fate(max_attempts=3, max_worker_losses=10, max_solo_crashes=2, retry_base_s=60, retry_cap_s=300)
CHOICES = [{"index": 0, "text": "the end", "finish_reason": "stop"}]


async def start_all(engine: AsyncEngine, accepted: Sequence[Accepted]) -> tuple[UUID, list[StartedJob]]:
    async with engine.begin() as conn:
        incarnation = await open_lease(conn)
        return incarnation, await store.start(conn, incarnation, nominations(accepted))


async def view(engine: AsyncEngine, job_id: UUID, tenant: str = "acme") -> JobView:
    async with engine.connect() as conn:
        job = await get_job(conn, tenant, job_id)
    assert job is not None
    return job


async def rows(engine: AsyncEngine, table: object) -> list:
    async with engine.connect() as conn:
        return list((await conn.execute(select(table))).all())


def success(job: StartedJob, **changes: object) -> Ending:
    fields: dict = {"choices": CHOICES, "used": Used(4, 0, 3)} | changes
    return Ending(job.job_id, job.attempt, "succeeded", **fields)


async def give_back_all(engine: AsyncEngine, jobs: Sequence[StartedJob], cause: Cause) -> rescue.Rescued:
    async with engine.begin() as conn:
        return await rescue.give_back(conn, [GivenBack(j.job_id, j.attempt, cause) for j in jobs], FATE, Random(1))


async def test_a_job_from_submission_to_result(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    accepted = await submit(engine, settings, prompt="hello", max_tokens=5, metadata={"a": "b"}, seed=7, stop=["\n"])
    assert (await view(engine, accepted[0].job_id)).status == "queued"
    _, (job,) = await start_all(engine, accepted)
    assert bytes(job.prompt_ids) == b"hello"
    assert (job.attempt, job.gen, job.sampling["seed"], job.sampling["stop"]) == (1, 1, 7, ["\n"])
    assert (await view(engine, job.job_id)).started_at is not None
    async with engine.begin() as conn:
        assert await finish(conn, [success(job)]) == {job.job_id}
    ended = await view(engine, job.job_id)
    assert (ended.status, ended.choices, ended.completion_tokens, ended.metadata) == (
        "succeeded",
        CHOICES,
        3,
        {"a": "b"},
    )
    assert ended.finished_at is not None
    assert [(row.kind, row.prompt_tokens, row.completion_tokens) for row in await rows(engine, usage)] == [
        ("billed", 4, 3)
    ]
    assert [(row.attempt, row.outcome) for row in await rows(engine, attempts)] == [(1, "finished")]


async def test_an_errors_words_are_cut_where_they_are_kept_and_sent(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    _, (job,) = await start_all(engine, await submit(engine, settings, webhook={"url": "https://example.com/hook"}))
    error = {"code": "upstream_rejected", "message": "no " * 10_000}
    async with engine.begin() as conn:
        assert await finish(conn, [Ending(job.job_id, job.attempt, "failed", error=error, billed=False)])
    kept = (await view(engine, job.job_id)).error
    assert kept == {"code": "upstream_rejected", "message": "no " * 166 + "n…"}
    (delivery,) = await rows(engine, webhook_deliveries)
    assert json.loads(delivery.body)["data"]["error"] == kept


async def test_a_second_finish_changes_nothing(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    _, (job,) = await start_all(engine, await submit(engine, settings))
    for expected in ({job.job_id}, set()):
        async with engine.begin() as conn:
            assert await finish(conn, [success(job)]) == expected
    assert len(await rows(engine, usage)) == 1
    assert len(await rows(engine, job_results)) == 1


async def test_a_finish_from_a_fenced_attempt_changes_nothing(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    _, (first,) = await start_all(engine, await submit(engine, settings))
    again = await give_back_all(engine, [first], "drained")
    async with engine.begin() as conn:
        incarnation = await open_lease(conn)
        (second,) = await store.start(conn, incarnation, again.nominations[POOL])
    assert second.attempt == 2
    async with engine.begin() as conn:
        assert await finish(conn, [success(first)]) == set()
    assert (await view(engine, first.job_id)).status == "running"
    async with engine.begin() as conn:
        assert await finish(conn, [success(second)]) == {second.job_id}


async def test_a_give_back_from_a_fenced_attempt_changes_nothing(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    _, (first,) = await start_all(engine, await submit(engine, settings))
    again = await give_back_all(engine, [first], "drained")
    async with engine.begin() as conn:
        (second,) = await store.start(conn, await open_lease(conn), again.nominations[POOL])
    for cause in ("drained", "engine_crash", "transient_error"):
        late = await give_back_all(engine, [first], cause)
        assert (late.nominations, late.ended) == ({}, [])
    job = await view(engine, first.job_id)
    assert (job.status, job.gen, job.attempt) == ("running", 2, second.attempt)
    assert [row.attempt for row in await rows(engine, attempts)] == [1]


async def test_a_failing_insert_undoes_the_whole_finish(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    _, (job,) = await start_all(engine, await submit(engine, settings))
    async with engine.begin() as conn:
        await conn.execute(text("ALTER TABLE usage ADD CONSTRAINT never CHECK (completion_tokens < 3)"))
    with pytest.raises(Exception, match="never"):
        async with engine.begin() as conn:
            await finish(conn, [success(job)])
    assert (await view(engine, job.job_id)).status == "running"
    assert await rows(engine, job_results) == []


async def test_many_ends_leave_what_each_would_have_left_alone(engine: AsyncEngine, settings: Settings) -> None:
    """Twenty go by COPY: a fenced one among them changes nothing, awkward texts arrive, and a rule that one breaks undoes all."""
    await seed(engine)
    _, started = await start_all(engine, await submit(engine, settings, count=20))
    texts = [f"{number}\t\\N\n\x00\u2028\\." for number in range(20)]
    ends = [
        success(job, choices=[{"index": 0, "text": words, "finish_reason": "stop"}], detail={"said": words})
        for job, words in zip(started, texts, strict=True)
    ]
    stale = replace(ends[7], attempt=ends[7].attempt + 1)
    async with engine.begin() as conn:
        await conn.execute(text("ALTER TABLE usage ADD CONSTRAINT never CHECK (completion_tokens < 3)"))
    with pytest.raises(IntegrityError, match="never"):
        async with engine.begin() as conn:
            await finish(conn, ends)
    assert await rows(engine, job_results) == []
    async with engine.begin() as conn:
        await conn.execute(text("ALTER TABLE usage DROP CONSTRAINT never"))
        ended = await finish(conn, [*ends[:7], stale, *ends[8:]])
    assert ended == {job.job_id for job in started} - {started[7].job_id}
    assert (await view(engine, started[7].job_id)).status == "running"
    found = {row.job_id: row.choices[0]["text"] for row in await rows(engine, job_results)}
    assert found == {job.job_id: words for job, words in zip(started, texts, strict=True) if job is not started[7]}
    async with engine.begin() as conn:
        assert await finish(conn, ends) == {started[7].job_id}
    await assert_audit_clean(engine, None)


async def test_a_nomination_starts_a_job_once(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    accepted = await submit(engine, settings, count=20)

    async def compete() -> list[StartedJob]:
        async with engine.begin() as conn:
            return await store.start(conn, await open_lease(conn), nominations(accepted))

    started = [job for part in await asyncio.gather(*[compete() for _ in range(6)]) for job in part]
    assert sorted(job.job_id for job in started) == sorted(each.job_id for each in accepted)


async def test_a_stale_gen_starts_nothing(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    accepted = await submit(engine, settings)
    _, started = await start_all(engine, accepted)
    await give_back_all(engine, started, "drained")
    _, again = await start_all(engine, accepted)
    assert again == []


async def test_nothing_starts_under_a_dead_lease(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    accepted = await submit(engine, settings)
    async with engine.begin() as conn:
        expired = await open_lease(conn, ttl_s=-1)
        ended = await open_lease(conn)
        await leases.end(conn, ended)
    for incarnation in (expired, ended, new_id()):
        with pytest.raises(LeaseLost):
            async with engine.begin() as conn:
                await store.start(conn, incarnation, nominations(accepted))


async def test_the_reaper_requeues_unpunished_and_once(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    async with engine.begin() as conn:
        incarnation = await open_lease(conn)
    accepted = await submit(engine, settings, count=5)
    async with engine.begin() as conn:
        await store.start(conn, incarnation, nominations(accepted))
        await conn.execute(text("UPDATE workers SET expires_at = clock_timestamp() - interval '1 s'"))

    async def reap() -> int:
        async with engine.begin() as conn:
            rescued = await rescue.reap(conn, ttl_s=0, fate=FATE, random=Random(1))
        return sum(map(len, rescued.nominations.values()))

    assert sorted(await asyncio.gather(*[reap() for _ in range(4)])) == [0, 0, 0, 5]
    async with engine.begin() as conn:
        assert await leases.renew(conn, incarnation, ttl_s=15, state="ready", stats={}) is None, "the zombie learns it"
    for each in accepted:
        job = await view(engine, each.job_id)
        assert (job.status, job.gen, job.attempt) == ("queued", 2, 1)


async def test_one_job_that_cannot_be_given_back_keeps_no_other_from_it(
    engine: AsyncEngine, settings: Settings
) -> None:
    """One such job of one tenant's, and nobody's jobs were taken from their dead workers any more."""
    await seed(engine)
    accepted = [*await submit(engine, settings, count=4), *await submit(engine, settings, n=7, max_tokens=1)]
    await start_all(engine, accepted)
    await refuse_when(engine, "attempts", "INSERT", OF_SEVEN)
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE workers SET expires_at = clock_timestamp() - interval '1 s'"))
        rescued = await rescue.reap(conn, ttl_s=0, fate=FATE, random=Random(1))
    assert {each.job_id for each in rescued.nominations[POOL]} == {each.job_id for each in accepted[:4]}
    assert [(await view(engine, each.job_id)).status for each in accepted] == ["queued"] * 4 + ["running"]
    async with engine.begin() as conn:
        await conn.execute(text("DROP TRIGGER refuse ON attempts"))
        mended = await rescue.reap_orphans(conn, fate=FATE, random=Random(1))
    assert [each.job_id for each in mended.nominations[POOL]] == [accepted[4].job_id]


async def test_one_job_that_cannot_expire_keeps_no_other_from_it(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    accepted = [*await submit(engine, settings, count=4), *await submit(engine, settings, n=7, max_tokens=1)]
    await refuse_when(engine, "jobs", "UPDATE", "NEW.status = 'expired' AND NEW.n = 7")
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE jobs SET deadline_at = now() - interval '1 s'"))
        expired = await timekeeping.expire_queued(conn)
    assert {job_id for job_id, _, _ in expired} == {each.job_id for each in accepted[:4]}
    assert (await view(engine, accepted[4].job_id)).status == "queued"


async def test_a_renewed_lease_is_not_reaped(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    incarnation, (job,) = await start_all(engine, await submit(engine, settings))
    async with engine.begin() as conn:
        held = await leases.renew(conn, incarnation, ttl_s=15, state="ready", stats={"running": 1})
        assert held == leases.Renewal([leases.HeldJob(job.job_id, 1, cancel_requested=False)], is_drain_requested=False)
        assert (await rescue.reap(conn, ttl_s=0, fate=FATE, random=Random(1))).nominations == {}


async def test_right_after_a_restart_of_postgres_no_expiry_is_believed(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    async with engine.begin() as conn:
        await open_lease(conn, ttl_s=-5)
        assert await leases.bury_expired(conn, ttl_s=3600 * 24 * 365) == []
        assert len(await leases.bury_expired(conn, ttl_s=0)) == 1


async def test_orphans_of_an_ended_worker_are_requeued(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    incarnation, (job,) = await start_all(engine, await submit(engine, settings))
    async with engine.begin() as conn:
        await leases.end(conn, incarnation)
        rescued = await rescue.reap_orphans(conn, fate=FATE, random=Random(1))
    assert rescued.nominations == {POOL: [Nomination(job.job_id, 2, "standardagain", "acme", 24)]}


@pytest.mark.parametrize(
    ("cause", "most"),
    [
        ("transient_error", 3),
        ("worker_lost", 10),
        ("engine_crash", None),
        ("bystander", None),
        ("engine_unfit", None),
        ("drained", None),
    ],
)
async def test_each_kind_of_failure_has_its_own_limit(
    engine: AsyncEngine, settings: Settings, cause: Cause, most: int | None
) -> None:
    await seed(engine)
    await submit(engine, settings)
    async with engine.begin() as conn:
        incarnation = await open_lease(conn)
    for round_number in range(1, 13):
        async with engine.begin() as conn:
            await conn.execute(text("UPDATE jobs SET not_before = NULL WHERE status = 'queued'"))
            row = (await conn.execute(text("SELECT id, gen FROM jobs"))).one()
            started = await store.start(conn, incarnation, [Nomination(row.id, row.gen, "standard", "acme", 1)])
        rescued = await give_back_all(engine, started, cause)
        if round_number == most:
            assert rescued.ended == [(row.id, "dead")]
            letters = await rows(engine, dead_letters)
            assert [letter.job_id for letter in letters] == [row.id]
            assert (await view(engine, row.id)).error is not None
            return
        assert rescued.ended == []
        if cause == "transient_error":
            assert rescued.nominations == {}, "it waits for its backoff"
        else:
            assert len(rescued.nominations[POOL]) == 1
    assert most is None


async def test_a_suspect_is_dead_after_two_engines_that_died_with_nothing_but_it(
    engine: AsyncEngine, settings: Settings
) -> None:
    await seed(engine)
    await submit(engine, settings)
    async with engine.begin() as conn:
        incarnation = await open_lease(conn)
    for lane, is_dead in [("bisect", False), ("bisect", False), ("solo", False), ("solo", False), ("solo", True)]:
        async with engine.begin() as conn:
            row = (await conn.execute(text("SELECT id, gen, lane FROM jobs"))).one()
            (started,) = await store.start(conn, incarnation, [Nomination(row.id, row.gen, "standard", "acme", 1)])
            assert started.lane == row.lane
            given = GivenBack(started.job_id, started.attempt, "engine_crash", lane=lane)
            rescued = await rescue.give_back(conn, [given], FATE, Random(1))
        if is_dead:
            assert rescued.ended == [(row.id, "dead")]
        else:
            assert [each.place for each in rescued.nominations[POOL]] == [lane], "it waits among its like"
    (letter,) = await rows(engine, dead_letters)
    assert letter.reason == "engine_crashes"
    counted = {name: letter.evidence[name] for name in COUNTERS}
    assert counted == {"failures": 0, "worker_losses": 0, "engine_crashes": 5, "solo_crashes": 2}, "the last one, too"
    assert letter.evidence["error"]["message"].startswith("the engine died 2 times")


async def test_a_bystander_in_a_lane_stays_there(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    incarnation, (job,) = await start_all(engine, await submit(engine, settings))
    async with engine.begin() as conn:
        await rescue.give_back(conn, [GivenBack(job.job_id, 1, "engine_crash", lane="bisect")], FATE, Random(1))
        (again,) = await store.start(conn, incarnation, [Nomination(job.job_id, 2, "bisect", "acme", 1)])
        rescued = await rescue.give_back(conn, [GivenBack(again.job_id, 2, "bystander")], FATE, Random(1))
        counts = (await conn.execute(text("SELECT engine_crashes, solo_crashes, failures FROM jobs"))).one()
    assert [each.place for each in rescued.nominations[POOL]] == ["bisect"]
    assert tuple(counts) == (1, 0, 0)


async def test_a_job_that_was_there_when_three_workers_were_lost_runs_alone(
    engine: AsyncEngine, settings: Settings
) -> None:
    await seed(engine)
    await submit(engine, settings)
    places = []
    for _ in range(4):
        async with engine.begin() as conn:
            incarnation = await open_lease(conn, ttl_s=600)
            row = (await conn.execute(text("SELECT id, gen FROM jobs"))).one()
            await store.start(conn, incarnation, [Nomination(row.id, row.gen, "standard", "acme", 1)])
            await conn.execute(text("UPDATE workers SET expires_at = clock_timestamp() - interval '1 s'"))
        async with engine.begin() as conn:
            rescued = await rescue.reap(conn, ttl_s=0, fate=FATE, random=Random(1))
        places += [each.place for each in rescued.nominations[POOL]]
    assert places == ["standardagain", "standardagain", "solo", "solo"]


async def test_a_cancel_while_running_wins_over_a_requeue(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    _, started = await start_all(engine, await submit(engine, settings))
    async with engine.begin() as conn:
        assert not (await cancel(conn, "acme", started[0].job_id)).ended
    rescued = await give_back_all(engine, started, "worker_lost")
    assert rescued.ended == [(started[0].job_id, "cancelled")]


async def test_cancel_of_a_waiting_job_ends_it_at_once(engine: AsyncEngine, settings: Settings, redis: Redis) -> None:
    await seed(engine, "acme", "other")
    (accepted,) = await submit(engine, settings)
    for _ in range(2):
        async with engine.begin() as conn:
            assert (await cancel(conn, "acme", accepted.job_id)).ended
    _, started = await start_all(engine, [accepted])
    assert started == [], "its nomination is stale"
    with pytest.raises(NotFound):
        async with engine.begin() as conn:
            await cancel(conn, "other", accepted.job_id)


async def test_an_ended_job_cannot_be_cancelled(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    _, (job,) = await start_all(engine, await submit(engine, settings))
    async with engine.begin() as conn:
        await finish(conn, [success(job)])
        with pytest.raises(NotCancellable):
            await cancel(conn, "acme", job.job_id)


async def test_a_deadline_that_passes_in_the_queue_expires_the_job(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    timed = await submit(engine, settings, deadline_s=1000)
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE jobs SET deadline_at = clock_timestamp()"))
    _, started = await start_all(engine, timed)
    assert started == [], "a worker doesn't start it any more"
    async with engine.begin() as conn:
        assert [job_id for job_id, _, _ in await timekeeping.expire_queued(conn)] == [timed[0].job_id]
    assert (await view(engine, timed[0].job_id)).status == "expired"


async def test_due_retries_wake_up(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    _, started = await start_all(engine, await submit(engine, settings))
    await give_back_all(engine, started, "transient_error")
    async with engine.begin() as conn:
        assert await timekeeping.wake_due(conn) == {}
        await conn.execute(text("UPDATE jobs SET not_before = clock_timestamp()"))
        woken = await timekeeping.wake_due(conn)
    assert [(each.job_id, each.gen) for each in woken[POOL]] == [(started[0].job_id, 2)]


# --- idempotency ----------------------------------------------------------------------------------------------------


async def test_concurrent_submissions_under_one_key_make_one_job(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)

    async def post() -> Accepted:
        async with engine.begin() as conn:
            return (
                await accept(conn, Caller("acme", None), [prepared(settings)], key=key_of("k", prepared(settings)))
            )[0]

    accepted = await asyncio.gather(*[post() for _ in range(8)])
    assert len({each.job_id for each in accepted}) == 1
    assert sum(not each.replayed for each in accepted) == 1
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM jobs")) == 1


async def test_a_key_is_the_tenants_own_and_bound_to_its_body(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine, "acme", "other")
    first = prepared(settings, prompt="one")
    async with engine.begin() as conn:
        await accept(conn, Caller("acme", None), [first], key=key_of("k", first))
        assert await find_replay(conn, Caller("other", None), key_of("k", first)) is None
        replay = await find_replay(conn, Caller("acme", None), key_of("k", first))
        assert replay is not None
        assert replay[0].job_id == first.id
        with pytest.raises(IdempotencyMismatch):
            await find_replay(conn, Caller("acme", None), key_of("k", prepared(settings, prompt="two")))


async def test_keys_are_forgotten_after_their_job_ended_long_ago(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    async with engine.begin() as conn:
        (live,) = await accept(conn, Caller("acme", None), [prepared(settings)], key=key_of("live", prepared(settings)))
        (done,) = await accept(conn, Caller("acme", None), [prepared(settings)], key=key_of("done", prepared(settings)))
        await end_queued(conn, [done.job_id], "cancelled")
        assert await timekeeping.forget_keys(conn, ttl_s=60) == 0
        await conn.execute(text("UPDATE idempotency_keys SET created_at = now() - interval '1 hour'"))
        await conn.execute(
            text("UPDATE jobs SET finished_at = now() - interval '1 hour' WHERE finished_at IS NOT NULL")
        )
        assert await timekeeping.forget_keys(conn, ttl_s=60) == 1
        assert await conn.scalar(text("SELECT job_id FROM idempotency_keys")) == live.job_id


# --- budgets --------------------------------------------------------------------------------------------------------


async def set_budget(engine: AsyncEngine, limit: int, metric: str = "total_tokens", period: str = "total") -> None:
    async with engine.begin() as conn:
        await conn.execute(
            budgets.insert().values(id=new_id(), tenant_id="acme", metric=metric, period=period, hard_limit=limit)
        )


async def window(engine: AsyncEngine) -> tuple[int, int]:
    async with engine.connect() as conn:
        row = (await conn.execute(text("SELECT used, reserved FROM budget_windows"))).one()
        return row.used, row.reserved


async def test_a_budget_is_reserved_settled_and_released(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    await set_budget(engine, 100)
    accepted = await submit(engine, settings, prompt="abcd", max_tokens=40)
    assert await window(engine) == (0, 44)
    with pytest.raises(BudgetExhausted):
        await submit(engine, settings, prompt="abcd", max_tokens=60)
    assert await window(engine) == (0, 44), "a refusal reserves nothing"
    _, (job,) = await start_all(engine, accepted)
    async with engine.begin() as conn:
        await finish(conn, [success(job, used=Used(4, 0, 3))])
    assert await window(engine) == (7, 0)


async def test_a_cancelled_job_is_refunded(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    await set_budget(engine, 100)
    (accepted,) = await submit(engine, settings, prompt="abcd", max_tokens=40)
    async with engine.begin() as conn:
        await cancel(conn, "acme", accepted.job_id)
    assert await window(engine) == (0, 0)


async def test_concurrent_submissions_never_pass_the_budget(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    await set_budget(engine, 100)

    async def post() -> bool:
        try:
            await submit(engine, settings, prompt="ab", max_tokens=8)
        except BudgetExhausted:
            return False
        return True

    assert sum(await asyncio.gather(*[post() for _ in range(20)])) == 10
    assert await window(engine) == (0, 100)


# --- Postgres -> Redis ----------------------------------------------------------------------------------------------


@pytest.fixture
async def queue(redis: Redis) -> JobQueue:
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    return queue


async def test_the_sweep_finds_lost_enqueues_and_only_those(
    engine: AsyncEngine, settings: Settings, queue: JobQueue
) -> None:
    await seed(engine)
    known = await submit(engine, settings, count=3)
    await nominate(queue, known)
    lost = await submit(engine, settings, count=4)
    cursor = SweepCursor()
    assert await resync.sweep(Looks(engine), queue, cursor, grace_s=60) == 0, "too early"
    assert await resync.sweep(Looks(engine), queue, cursor, grace_s=0, page=2) == 4
    assert await resync.sweep(Looks(engine), queue, cursor, grace_s=0) == 0
    claimed = await queue.claim("w", max_jobs=100, room=10**9)
    assert {each.job_id for each in claimed} == {each.job_id for each in [*known, *lost]}


async def test_a_lost_redis_is_rebuilt_in_order(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, redis: Redis
) -> None:
    await seed(engine)
    accepted = []
    for _ in range(3):
        accepted += await submit(engine, settings, count=7)
    await nominate(queue, accepted)
    await redis.flushdb()
    (late,) = await submit(engine, settings)
    assert not await nominate(queue, [late]), "a Redis without memory takes nothing out of order"
    assert await resync.sweep(Looks(engine), queue, SweepCursor(), grace_s=0, page=5, force=True) == 22
    await queue.open_epoch("again")
    claimed = await queue.claim("w", max_jobs=100, room=10**9)
    assert [each.job_id for each in claimed] == [each.job_id for each in [*accepted, late]]


async def test_the_audit_drops_nominations_of_jobs_that_do_not_wait(
    engine: AsyncEngine, settings: Settings, queue: JobQueue
) -> None:
    await seed(engine)
    waiting, cancelled = await submit(engine, settings, count=2)
    await nominate(queue, [waiting, cancelled])
    await queue.enqueue([Nomination(new_id(), 1, "batch", "ghost", 5)])
    async with engine.begin() as conn:
        await cancel(conn, "acme", cancelled.job_id)
    assert await resync.drop_stale(engine, queue) == 2
    assert await queue.known_gens([waiting.job_id, cancelled.job_id]) == [1, None]


# --- what else comes with an end ------------------------------------------------------------------------------------


async def test_notices_are_written_with_the_end_that_they_tell(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    webhook = {"url": "https://example.com/hook"}
    accepted = await submit(engine, settings, webhook=webhook)
    _, (job,) = await start_all(engine, accepted)
    assert await rows(engine, webhook_deliveries) == []
    async with engine.begin() as conn:
        await finish(conn, [success(job)])
    (delivery,) = await rows(engine, webhook_deliveries)
    assert (delivery.event_type, delivery.url, delivery.status) == ("job.succeeded", webhook["url"], "pending")
    assert b"once upon" not in delivery.body, "a notice holds no prompt"


async def test_a_text_with_nul_is_stored(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    _, (job,) = await start_all(engine, await submit(engine, settings))
    choices = [{"index": 0, "text": "a\x00b\ufffd", "finish_reason": "stop"}]
    async with engine.begin() as conn:
        await finish(conn, [success(job, choices=choices)])
    assert (await view(engine, job.job_id)).choices == choices


async def test_an_error_with_nul_is_stored(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    _, (job,) = await start_all(engine, await submit(engine, settings))
    async with engine.begin() as conn:
        await finish(conn, [Ending(job.job_id, 1, "failed", error={"code": "x", "message": "a\x00b"}, billed=False)])
    assert (await view(engine, job.job_id)).status == "failed"


@pytest.mark.parametrize(("said", "is_told"), [(', "background": true', True), ("", False)])
async def test_what_a_stored_call_of_before_holds_keeps_no_job_from_its_end(
    engine: AsyncEngine, settings: Settings, said: str, is_told: bool
) -> None:
    """A NUL in it was an error to the end of all jobs of that transaction: of a worker's, of a dead worker's, of all that are overdue."""
    await seed(engine)
    _, started = await start_all(engine, await submit(engine, settings, count=2))
    async with engine.begin() as conn:
        endpoint = "INSERT INTO webhook_endpoints (id, tenant_id, url, secret) VALUES (gen_random_uuid(), 'acme', 'https://example.com/', 'x')"
        await conn.execute(text(endpoint))
        call = text(
            "INSERT INTO face_calls (job_id, tenant_id, face, body) VALUES (:job, 'acme', 'responses', CAST(:body AS json))"
        )
        body = '{"input": [{"logprobs": ["\\u0000", "\\"background\\": true"]}]' + said + "}"
        await conn.execute(call, {"job": started[0].job_id, "body": body})
        assert len(await finish(conn, [success(job) for job in started])) == 2
        told = await conn.scalars(
            text("SELECT job_id FROM webhook_deliveries WHERE starts_with(event_type, 'response.')")
        )
        assert list(told) == ([started[0].job_id] if is_told else [])


async def test_pages_of_jobs_are_the_tenants_own_newest_first(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine, "acme", "other")
    mine = await submit(engine, settings, count=5, tier="batch", metadata={"k": "v"})
    await submit(engine, settings, tenant="other")
    async with engine.connect() as conn:
        first = await list_jobs(conn, "acme", JobFilter(), limit=3)
        rest = await list_jobs(conn, "acme", JobFilter(), limit=3, older_than=first[-1].id)
        assert [job.id for job in [*first, *rest]] == [each.job_id for each in reversed(mine)]
        assert await list_jobs(conn, "acme", JobFilter(tier="standard"), limit=3) == []
        assert len(await list_jobs(conn, "acme", JobFilter(metadata={"k": "v"}, status="queued"), limit=9)) == 5
        assert await get_job(conn, "other", mine[0].job_id) is None


async def test_the_start_is_told_once_to_those_who_asked(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    webhook = {"url": "https://example.com/hook", "events": ["job.started"]}
    _, started = await start_all(engine, await submit(engine, settings, webhook=webhook))
    rescued = await give_back_all(engine, started, "drained")
    async with engine.begin() as conn:
        await store.start(conn, await open_lease(conn), rescued.nominations[POOL])
    assert [row.event_type for row in await rows(engine, webhook_deliveries)] == ["job.started"]


async def test_a_retired_lease_leaves_nothing_running(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    incarnation, (job,) = await start_all(engine, await submit(engine, settings))
    async with engine.begin() as conn:
        rescued = await rescue.retire(conn, incarnation, fate=FATE, random=Random(1))
    assert [each.job_id for each in rescued.nominations[POOL]] == [job.job_id]
    waiting = await view(engine, job.job_id)
    assert (waiting.status, waiting.gen) == ("queued", 2)
    with pytest.raises(LeaseLost):
        async with engine.begin() as conn:
            await store.start(conn, incarnation, rescued.nominations[POOL])


async def test_a_log_tail_with_nul_can_be_kept_and_is_not_shown_to_the_owner(
    engine: AsyncEngine, settings: Settings
) -> None:
    await seed(engine)
    await submit(engine, settings)
    async with engine.begin() as conn:
        incarnation = await open_lease(conn)
    detail = {"reason": "it ended", "log_tail": "secret\x00path"}
    for _ in range(3):  # in company, then twice alone
        async with engine.begin() as conn:
            row = (await conn.execute(text("SELECT id, gen FROM jobs"))).one()
            (job,) = await store.start(conn, incarnation, [Nomination(row.id, row.gen, "standard", "acme", 1)])
            await rescue.give_back(
                conn,
                [GivenBack(job.job_id, job.attempt, "engine_crash", detail, Used(4, 0, 9), "solo")],
                FATE,
                Random(1),
            )
    dead = await view(engine, row.id)
    assert dead.status == "dead"
    assert "secret" not in str(dead.error)
    (letter,) = await rows(engine, dead_letters)
    assert letter.evidence["attempts"][-1]["detail"]["log_tail"] == "secret\ufffdpath"
    assert [(each.kind, each.attempt, each.completion_tokens) for each in await rows(engine, usage)] == [
        ("wasted", attempt, 9) for attempt in (1, 2, 3)
    ]


async def test_what_an_unknown_commit_did_is_found_again(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    _, (done, other) = await start_all(engine, await submit(engine, settings, count=2))
    async with engine.begin() as conn:
        await finish(conn, [success(done)])
        assert await has_finished(conn, [success(done), success(other)]) == {done.job_id}


async def test_a_key_that_is_forgotten_during_its_replay_gives_no_error(
    engine: AsyncEngine, settings: Settings
) -> None:
    """accept: INSERT .. ON CONFLICT DO NOTHING meets the key, `forget` deletes it, jobs_of finds nothing: a 500."""
    await seed(engine)
    async with engine.begin() as conn:
        await accept(conn, Caller("acme", None), [prepared(settings)], key=key_of("k", prepared(settings)))
    original = idempotency.jobs_of

    async def late(conn, *args):  # what a busy event loop may do: between the two statements `forget` commits
        async with engine.begin() as other:
            await other.execute(text("DELETE FROM idempotency_keys"))
        return await original(conn, *args)

    idempotency.jobs_of = late
    try:
        async with engine.begin() as conn:
            await accept(conn, Caller("acme", None), [prepared(settings)], key=key_of("k", prepared(settings)))
    finally:
        idempotency.jobs_of = original
