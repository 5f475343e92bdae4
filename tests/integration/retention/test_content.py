"""Are prompts and outputs wiped for tenants that want it so, everywhere, while status and usage stay?"""

from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.errors import InputForgotten
from app.jobs.dead.edit import read_request
from app.jobs.read import get_job
from app.jobs.sharing import hand_on
from app.queue.events import EventLog, JobEvent, Publication
from app.queue.keys import events_key
from app.redis import Redis
from app.retention.run import MOST_JOBS
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.dead import send_back
from tests.support.jobs import seed
from tests.support.retention import FATES, age, count, live, retain

HOURS = 1 / 24


@pytest.fixture(autouse=True)
async def world(engine: AsyncEngine) -> None:
    await seed(engine, "acme", "rival")
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET content_retention_s = 1800 WHERE id = 'acme'"))


async def test_texts_are_wiped_after_their_time_and_the_rest_stays(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    old = {fate: await live(engine, settings, fate) for fate in FATES}
    await age(engine, HOURS)
    recent = await live(engine, settings, "succeeded")
    other = await live(engine, settings, "succeeded", tenant="rival")
    await age(engine, HOURS, other)
    run = await retain(engine, redis, settings)
    assert run.rows["job_results"] == 3  # succeeded, succeeded late, cancelled
    alive = {old["queued"], old["running"], old["revived"], recent, other}
    assert await with_input(engine) == alive
    async with engine.connect() as conn:
        wiped = await get_job(conn, "acme", old["succeeded"])
        kept = await get_job(conn, "acme", recent)
    assert wiped is not None
    assert (wiped.status, wiped.choices, wiped.completion_tokens, wiped.forgotten_for) == (
        "succeeded",
        None,
        3,
        "tenant",
    )
    assert wiped.forgotten_at is not None
    assert kept is not None
    assert (kept.forgotten_at, kept.choices is None) == (None, False)
    assert await count(engine, "job_results", "trace IS NOT NULL") == 2
    assert (await retain(engine, redis, settings)).rows == {}
    await assert_audit_clean(engine, None)


async def with_input(engine: AsyncEngine) -> set[UUID]:
    async with engine.connect() as conn:
        return set(await conn.scalars(text("SELECT job_id FROM job_inputs")))


async def test_the_event_stream_goes_with_the_texts(engine: AsyncEngine, redis: Redis, settings: Settings) -> None:
    gone, stays = await live(engine, settings, "succeeded"), await live(engine, settings, "succeeded")
    for job_id in (gone, stays):
        await EventLog(redis, ttl_s=3600, max_entries=100).publish(
            [Publication(job_id, 0, JobEvent(kind="started", attempt=1))]
        )
    await age(engine, HOURS, gone)
    await retain(engine, redis, settings)
    assert (await redis.exists(events_key(gone)), await redis.exists(events_key(stays))) == (0, 1)


async def test_a_job_whose_prompt_is_gone_cannot_be_requeued(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    dead = await live(engine, settings, "dead")
    await age(engine, HOURS)
    await retain(engine, redis, settings)
    with pytest.raises(InputForgotten):
        await send_back(engine, dead)
    async with engine.connect() as conn:
        with pytest.raises(InputForgotten):
            await read_request(conn, dead)
    await assert_audit_clean(engine, None)


async def test_texts_that_others_wait_for_are_wiped_after_them(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    leader = await live(engine, settings, "succeeded")
    follower = await live(engine, settings, "queued")
    async with engine.begin() as conn:
        await conn.execute(
            text("UPDATE jobs SET shared_from = :leader, not_before = 'infinity' WHERE id = :follower"),
            {"leader": leader, "follower": follower},
        )
    await age(engine, HOURS, leader)
    assert (await retain(engine, redis, settings)).rows == {}
    async with engine.begin() as conn:
        await hand_on(conn)
    assert (await retain(engine, redis, settings)).rows == {"job_inputs": 1, "job_results": 1}
    async with engine.connect() as conn:
        found = await get_job(conn, "acme", follower)
    assert found is not None
    assert found.choices is not None  # it ended just now


async def test_a_tenant_that_says_so_later_has_its_past_wiped_too(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    await live(engine, settings, "succeeded", tenant="rival")
    await age(engine, 300)
    assert (await retain(engine, redis, settings)).rows == {}
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET content_retention_s = 60 WHERE id = 'rival'"))
    assert (await retain(engine, redis, settings)).rows == {"job_inputs": 1, "job_results": 1}


async def test_an_end_that_is_committed_late_is_found_behind_the_mark(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET content_retention_s = 60 WHERE id = 'acme'"))
    await live(engine, settings, "succeeded")
    await age(engine, HOURS)
    await retain(engine, redis, settings)
    late = await live(engine, settings, "succeeded")
    await age(engine, 2 / 1440, late)  # written two minutes ago, and committed just now
    assert (await retain(engine, redis, settings)).rows == {"job_inputs": 1, "job_results": 1}


async def test_a_text_is_wiped_though_more_than_a_page_of_older_ones_are_held(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    leader, due = await live(engine, settings, "succeeded"), await live(engine, settings, "succeeded")
    follower = await live(engine, settings, "queued")
    await age(engine, 2 * HOURS, leader)
    await age(engine, HOURS, due)
    held = MOST_JOBS + 1
    async with engine.begin() as conn:
        # All of one instant, each with a job that waits for its result.
        copy = "INSERT INTO jobs SELECT (jsonb_populate_record(j, {})).* FROM jobs j, held WHERE j.id = :like"
        await conn.execute(
            text("CREATE TEMP TABLE held ON COMMIT DROP AS SELECT gen_random_uuid() id FROM generate_series(1, :n)"),
            {"n": held},
        )
        await conn.execute(text(copy.format("jsonb_build_object('id', held.id)")), {"like": leader})
        waits = "jsonb_build_object('id', gen_random_uuid(), 'shared_from', held.id)"
        await conn.execute(text(copy.format(waits)), {"like": follower})
        for table in ("job_inputs", "job_results"):
            row = "jsonb_populate_record(x, jsonb_build_object('job_id', held.id))"
            await conn.execute(
                text(f"INSERT INTO {table} SELECT ({row}).* FROM {table} x, held WHERE x.job_id = :like"),
                {"like": leader},
            )
    run = await retain(engine, redis, settings)
    assert run.outcome == "done"
    kept = await with_input(engine)
    assert due not in kept
    assert leader not in kept
    assert len(kept) == held + 1  # and the follower's own
