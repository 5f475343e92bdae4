"""Does a job that can't meet its deadline any more end before it is started, with an honest reason, and only such a job?"""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs import leases, store
from app.jobs.hopeless import expire_hopeless
from app.jobs.lengths import UNKNOWN, Lengths, read_lengths
from app.settings import Settings
from tests.support.jobs import nominations, open_lease, seed, submit

KNOWN = Lengths(0.5, 0.8, 1.0, 100)


@pytest.fixture
async def worker(engine: AsyncEngine) -> UUID:
    """A live worker whose jobs take 2 s a token: at best 1 s."""
    await seed(engine)
    async with engine.begin() as conn:
        worker = await open_lease(conn, ttl_s=600)
        await leases.renew(conn, worker, ttl_s=600, state="ready", stats={"seconds_per_token": 2.0})
    return worker


async def job(engine: AsyncEngine, settings: Settings, **body: Any) -> UUID:
    return (await submit(engine, settings, **body))[0].job_id


async def expire(engine: AsyncEngine, lengths: Lengths) -> set[UUID]:
    async with engine.begin() as conn:
        return {job_id for job_id, _, _ in await expire_hopeless(conn, lambda *_: lengths)}


async def test_what_must_write_more_than_its_time_allows_ends_in_the_queue(
    engine: AsyncEngine, settings: Settings, worker: UUID
) -> None:
    hopeless = {
        await job(engine, settings, max_tokens=100, ignore_eos=True, deadline_s=50),
        await job(engine, settings, max_tokens=100, min_tokens=80, deadline_s=50),
    }
    for body in (
        {"max_tokens": 100, "deadline_s": 50},  # may end after its first token
        {"max_tokens": 100, "ignore_eos": True, "deadline_s": 600},
        {"max_tokens": 100, "ignore_eos": True},
    ):
        await job(engine, settings, **body)
    assert await expire(engine, UNKNOWN) == hopeless
    async with engine.connect() as conn:
        rows = (await conn.execute(text("SELECT status, error, attempt FROM jobs WHERE finished_at IS NOT NULL"))).all()
        billed = await conn.scalar(text("SELECT count(*) FROM usage"))
    assert {(row.status, row.error["code"], row.attempt) for row in rows} == {("expired", "deadline_unreachable", 0)}
    assert sorted(row.error["message"].rpartition("it needs ")[2] for row in rows) == [
        "at least 100.0 s",
        "at least 80.0 s",
    ]
    assert billed == 0


async def test_what_its_tenant_usually_writes_counts_too(engine: AsyncEngine, settings: Settings, worker: UUID) -> None:
    # At least 50 tokens, so at least 50 s.
    hopeless = await job(engine, settings, max_tokens=100, deadline_s=40)
    await job(engine, settings, max_tokens=100, deadline_s=80)
    assert await expire(engine, KNOWN) == {hopeless}


async def test_without_a_measured_pace_nothing_is_given_up(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    async with engine.begin() as conn:
        await open_lease(conn, ttl_s=600)
    await job(engine, settings, max_tokens=1000, ignore_eos=True, deadline_s=10)
    assert await expire(engine, KNOWN) == set()


async def test_a_worker_starts_no_such_job_and_goes_on_with_one_that_ran_before(
    engine: AsyncEngine, settings: Settings, worker: UUID
) -> None:
    hopeless = await submit(engine, settings, max_tokens=100, ignore_eos=True, deadline_s=50)
    fine = await submit(engine, settings, max_tokens=10, ignore_eos=True, deadline_s=50)
    resumed = await submit(engine, settings, max_tokens=100, ignore_eos=True, deadline_s=50)
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE jobs SET attempt = 1, gen = 1 WHERE id = :id"), {"id": resumed[0].job_id})
        started = await store.start(conn, worker, nominations(hopeless + fine + resumed), seconds_per_token=2.0)
    assert {each.job_id for each in started} == {fine[0].job_id, resumed[0].job_id}


async def test_lengths_are_quantiles_of_what_the_tenant_was_billed_for(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine, "acme", "rival")
    async with engine.begin() as conn:
        assert await read_lengths(conn, "acme", "tiny") == UNKNOWN
    for tenant, part in (("acme", 0.25), ("rival", 1.0)):
        for accepted in await submit(engine, settings, tenant=tenant, count=20, max_tokens=100):
            async with engine.begin() as conn:
                await conn.execute(
                    text("UPDATE jobs SET status = 'succeeded', finished_at = now() WHERE id = :id"),
                    {"id": accepted.job_id},
                )
                await conn.execute(
                    text("""
                        INSERT INTO usage (job_id, attempt, kind, tenant_id, model, tier, prompt_tokens, cached_tokens, completion_tokens)
                        VALUES (:id, 1, 'billed', :tenant, 'tiny', 'standard', 10, 0, :tokens)
                    """),
                    {"id": accepted.job_id, "tenant": tenant, "tokens": int(100 * part)},
                )
    async with engine.connect() as conn:
        assert await read_lengths(conn, "acme", "tiny") == Lengths(0.25, 0.25, 0.25, 20)
        assert await read_lengths(conn, "rival", "tiny") == Lengths(1.0, 1.0, 1.0, 20)
        assert await read_lengths(conn, "acme", "another") == UNKNOWN
