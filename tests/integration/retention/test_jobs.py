"""Do ended jobs go when their time is over, with all that belongs to them, and does the audit find nothing afterwards?"""

from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.redis import Redis
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.jobs import seed, submit
from tests.support.retention import FATES, HOOK, KEEPING, age, cancel_waiting, count, live, open_budgets, retain, told

OF_A_JOB = (
    "jobs", "job_inputs", "job_results", "attempts", "dead_letters", "ledger", "webhook_deliveries", "webhook_tries",
)  # fmt: skip


@pytest.fixture(autouse=True)
async def world(engine: AsyncEngine) -> None:
    await seed(engine, "acme", "rival")
    await open_budgets(engine)


async def sums(engine: AsyncEngine) -> list[tuple[int, int]]:
    async with engine.connect() as conn:
        return [(row.used, row.reserved) for row in await conn.execute(
            text("SELECT used, reserved FROM budget_windows ORDER BY budget_id, window_start"))]  # fmt: skip


async def ids(engine: AsyncEngine) -> set[UUID]:
    async with engine.connect() as conn:
        return set(await conn.scalars(text("SELECT id FROM jobs")))


async def test_an_old_job_goes_with_all_that_belongs_to_it_and_its_bill_stays(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    for fate in set(FATES) - KEEPING:
        await live(engine, settings, fate, webhook=HOOK)
    await cancel_waiting(engine, settings)
    await told(engine)
    used, bills = await sums(engine), await count(engine, "usage")
    await age(engine, 31)
    run = await retain(engine, redis, settings, retention_days=30)
    assert (run.outcome, run.error) == ("done", None)
    assert {table: await count(engine, table) for table in OF_A_JOB} == dict.fromkeys(OF_A_JOB, 0)
    assert run.rows["jobs"] == 7
    assert await sums(engine) == used
    assert await count(engine, "usage") == bills
    await assert_audit_clean(engine, None)


async def test_without_a_word_nothing_is_deleted(engine: AsyncEngine, redis: Redis, settings: Settings) -> None:
    await live(engine, settings, "succeeded")
    await age(engine, 10_000)
    assert (await retain(engine, redis, settings)).rows == {}


async def test_a_tenants_word_goes_before_the_setting(engine: AsyncEngine, redis: Redis, settings: Settings) -> None:
    short, long = [await live(engine, settings, "succeeded", tenant=name) for name in ("acme", "rival")]
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET retention_days = 7 WHERE id = 'acme'"))
        await conn.execute(text("UPDATE tenants SET retention_days = 365 WHERE id = 'rival'"))
    await age(engine, 31)
    await retain(engine, redis, settings, retention_days=30)
    assert await ids(engine) == {long}
    assert short != long
    await assert_audit_clean(engine, None)


async def test_a_job_is_kept_while_something_has_to_do_with_it(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    kept = {fate: await live(engine, settings, fate) for fate in KEEPING}
    kept["not told"] = await live(engine, settings, "succeeded", webhook=HOOK)
    await age(engine, 31)
    run = await retain(engine, redis, settings, retention_days=30)
    assert run.rows == {}
    assert await ids(engine) == set(kept.values())


async def test_a_job_goes_when_what_kept_it_is_over(engine: AsyncEngine, redis: Redis, settings: Settings) -> None:
    await live(engine, settings, "succeeded", webhook=HOOK)
    await age(engine, 31)
    assert (await retain(engine, redis, settings, retention_days=30)).rows == {}
    await told(engine)
    assert (await retain(engine, redis, settings, retention_days=30)).rows["jobs"] == 1


async def test_a_key_that_leads_to_jobs_keeps_them(engine: AsyncEngine, redis: Redis, settings: Settings) -> None:
    one, many = [await live(engine, settings, "succeeded") for _ in range(2)]
    await age(engine, 31)
    async with engine.begin() as conn:
        await conn.execute(
            text("INSERT INTO idempotency_keys (tenant_id, key, body_hash, job_id, job_ids, created_at) SELECT tenant_id, 'k', '', :one, "
                 "ARRAY[CAST(:one AS uuid), CAST(:many AS uuid)], created_at FROM jobs WHERE id = :many"),
            {"one": one, "many": many},
        )  # fmt: skip
    assert (await retain(engine, redis, settings, retention_days=30)).rows == {}
    async with engine.begin() as conn:
        await conn.execute(text("DELETE FROM idempotency_keys"))
    assert (await retain(engine, redis, settings, retention_days=30)).rows["jobs"] == 2


async def test_what_does_not_add_up_is_kept_for_the_audit_to_find(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    await live(engine, settings, "succeeded")
    await age(engine, 31)
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "DELETE FROM ledger WHERE kind = 'release' AND id = (SELECT min(id) FROM ledger WHERE kind = 'release')"
            )
        )
    assert (await retain(engine, redis, settings, retention_days=30)).rows == {}


async def test_many_pages_of_one_instant_all_go(
    engine: AsyncEngine, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.retention.run.MOST_JOBS", 3)
    for each in await submit(engine, settings, count=10):
        async with engine.begin() as conn:
            await conn.execute(
                text("UPDATE jobs SET status = 'cancelled', finished_at = '2020-01-01' WHERE id = :id"),
                {"id": each.job_id},
            )
    async with engine.begin() as conn:  # as their cancels would have
        await conn.execute(text("DELETE FROM ledger"))
        await conn.execute(text("UPDATE budget_windows SET reserved = 0"))
    assert (await retain(engine, redis, settings, retention_days=30)).rows["jobs"] == 10


AGES = (0, 29, 31, 400)
LIFE = st.tuples(st.sampled_from((*FATES, "never ran")), st.sampled_from(AGES), st.booleans())


@given(histories=st.lists(st.lists(LIFE, max_size=5), min_size=1, max_size=3))
@hypothesis_settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_after_any_history_the_audit_is_clean_and_no_budget_has_moved(
    histories: Sequence[Sequence[tuple[str, int, bool]]], engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    """Jobs of any fate and age, told of or not, and runs in between: what should go goes, all else stays, sums are as they were."""
    async with engine.begin() as conn:
        await conn.execute(text("TRUNCATE jobs, ledger, budget_windows, usage, webhook_deliveries, audit_log CASCADE"))
    over: set[UUID] = set()
    for history in histories:
        for fate, days, is_told in history:
            job_id = await (
                cancel_waiting(engine, settings) if fate == "never ran" else live(engine, settings, fate, webhook=HOOK)
            )
            over |= {job_id} if days > 30 and fate not in KEEPING else set()
            await age(engine, days, job_id)
            if is_told:
                await told(engine)
        before, pending = await ids(engine), await untold(engine)
        sums_before, bills = await sums(engine), await count(engine, "usage")
        assert (await retain(engine, redis, settings, retention_days=30)).outcome == "done"
        assert before - await ids(engine) == before & over - pending
        assert (await sums(engine), await count(engine, "usage")) == (sums_before, bills)
        await assert_audit_clean(engine, None)


async def untold(engine: AsyncEngine) -> set[UUID]:
    async with engine.connect() as conn:
        return set(await conn.scalars(text("SELECT job_id FROM webhook_deliveries WHERE status = 'pending'")))
