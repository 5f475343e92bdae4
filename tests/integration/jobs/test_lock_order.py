"""Does everybody who ends waiting jobs lock them, and then their budgets, in one order? Else two of them wait for each other."""

import asyncio
from random import Random
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.clock import SystemClock
from app.jobs import leases
from app.jobs.cancel import cancel
from app.jobs.finish import end_queued
from app.jobs.hopeless import expire_hopeless
from app.jobs.lengths import UNKNOWN
from app.redis import Redis
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.budgets import add_budget, balance
from tests.support.jobs import open_lease, seed, submit
from tests.support.locks import until_waiting
from workers.maintenance.keeper import Keeper

HOPELESS = {"max_tokens": 100, "ignore_eos": True}


async def jobs(engine: AsyncEngine, settings: Settings, *deadlines_s: float) -> list[UUID]:
    """Waiting jobs that count in one budget; those of less than 100 s write more than a worker of 2 s a token can in that time."""
    await seed(engine)
    await add_budget(engine, 10_000)
    async with engine.begin() as conn:
        worker = await open_lease(conn, ttl_s=600)
        await leases.renew(conn, worker, ttl_s=600, state="ready", stats={"seconds_per_token": 2.0})
    return [(await submit(engine, settings, **HOPELESS, deadline_s=each))[0].job_id for each in deadlines_s]


async def lock(conn: AsyncConnection, job_id: UUID) -> None:
    """As a cancel does first, and a batch that stops."""
    await conn.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": job_id})


async def statuses(engine: AsyncEngine) -> dict[UUID, str]:
    async with engine.connect() as conn:
        return {row.id: row.status for row in await conn.execute(text("SELECT id, status FROM jobs"))}


async def test_jobs_are_ended_in_the_order_of_their_ids_however_their_rows_lie(
    engine: AsyncEngine, settings: Settings
) -> None:
    first, second = sorted(await jobs(engine, settings, 600, 600))
    async with engine.begin() as conn:  # a row that is changed is written anew, behind the others
        await conn.execute(text("UPDATE jobs SET metadata = '{}' WHERE id = :id"), {"id": first})

    async def end_both() -> int:
        async with engine.begin() as conn:
            for way in ("indexscan", "bitmapscan"):  # as in a table of which most is wanted
                await conn.execute(text(f"SET LOCAL enable_{way} = off"))
            return len(await end_queued(conn, [second, first], "cancelled"))

    async with engine.begin() as conn:
        await lock(conn, first)
        ending = asyncio.create_task(end_both())
        await until_waiting(engine, ending)
        await lock(conn, second)
    assert await ending == 2


async def test_a_cancel_of_a_hopeless_job_while_another_one_is_given_up(
    engine: AsyncEngine, settings: Settings
) -> None:
    """The first was settled, so that its budget was locked, before the second's row was: a cancel takes them the other way round."""
    first, second = await jobs(engine, settings, 40, 50)

    async def give_up() -> set[UUID]:
        async with engine.begin() as conn:
            return {job_id for job_id, _, _ in await expire_hopeless(conn, lambda *_: UNKNOWN)}

    async with engine.begin() as conn:
        await lock(conn, second)
        giving_up = asyncio.create_task(give_up())
        await until_waiting(engine, giving_up)
        assert (await cancel(conn, "acme", second)).ended
    assert await giving_up == {first}
    assert await statuses(engine) == {first: "expired", second: "cancelled"}


async def test_a_cancel_of_a_hopeless_job_while_one_whose_deadline_has_passed_ends(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    late, hopeless = await jobs(engine, settings, 600, 50)
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE jobs SET deadline_at = now() WHERE id = :id"), {"id": late})
    keeper = Keeper(settings, SystemClock(), engine, redis, Random(1))
    async with engine.begin() as conn:
        await lock(conn, hopeless)
        expiring = asyncio.create_task(keeper.expire())
        await until_waiting(engine, expiring)
        assert (await cancel(conn, "acme", hopeless)).ended
    assert await expiring == 1
    assert await statuses(engine) == {late: "expired", hopeless: "cancelled"}


async def test_each_hopeless_job_is_told_its_own_times_and_gives_back_its_budget(
    engine: AsyncEngine, settings: Settings
) -> None:
    await jobs(engine, settings, 40, 50)
    async with engine.begin() as conn:
        assert len(await expire_hopeless(conn, lambda *_: UNKNOWN)) == 2
        budget_id = await conn.scalar(text("SELECT id FROM budgets"))
        messages = list(await conn.scalars(text("SELECT error ->> 'message' FROM jobs ORDER BY deadline_at")))
    left = [float(each.partition("meet its deadline: ")[2].partition(" s")[0]) for each in messages]
    assert [30 < left[0] <= 40, 40 < left[1] <= 50] == [True, True], messages
    assert await balance(engine, budget_id) == [(0, 0)]
    await assert_audit_clean(engine, None)
