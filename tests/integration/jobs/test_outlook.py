"""Does one look tell every round what is due for it, whenever that round would find something?"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.ids import new_id
from app.looks import Looks
from app.redis import Redis
from app.settings import Settings
from tests.support.jobs import open_lease, seed, submit
from tests.support.webhooks import notify
from workers.maintenance.keeper import Keeper
from workers.maintenance.outlook import QUESTIONS, Outlook


@pytest.fixture
async def outlook(engine: AsyncEngine) -> AsyncIterator[Outlook]:
    await seed(engine)
    async with Looks(engine) as looks:
        yield Outlook(looks)


async def due(outlook: Outlook) -> set[str]:
    """The rounds that wait no longer after a look."""
    await outlook.look()
    waiting = {name: asyncio.create_task(outlook.until_due(name)) for name in QUESTIONS}
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    found = {name for name, task in waiting.items() if task.done()}
    for task in waiting.values():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return found


async def change(engine: AsyncEngine, job_id: UUID, what: str, **values: object) -> None:
    async with engine.begin() as conn:
        await conn.execute(text(f"UPDATE jobs SET {what} WHERE id = :id"), {"id": job_id, **values})


async def test_of_a_queue_in_which_nothing_is_due_no_round_is_told(
    outlook: Outlook, engine: AsyncEngine, settings: Settings
) -> None:
    assert await due(outlook) == set()
    (job,) = await submit(engine, settings)
    async with engine.begin() as conn:
        await open_lease(conn)
    await change(engine, job.job_id, "not_before = now() + interval '1 hour', deadline_at = now() + interval '1 day'")
    assert await due(outlook) == set()
    assert outlook.pools == ["tiny"]


@pytest.mark.parametrize(
    ("what", "round_"),
    [
        ("not_before = now() - interval '1 second'", "wake"),
        ("not_before = now() + interval '1 day', held_by = gen_random_uuid(), reservation = 0", "wake"),
        ("deadline_at = now() - interval '1 second'", "expire"),
        ("deadline_at = now() + interval '10 minutes'", "expire"),
        ("not_before = now() + interval '100 years', shared_from = gen_random_uuid()", "hand_on"),
    ],
)
async def test_what_a_job_needs_is_told_to_the_round_that_does_it(
    outlook: Outlook, engine: AsyncEngine, settings: Settings, what: str, round_: str
) -> None:
    (job,) = await submit(engine, settings)
    assert await due(outlook) == set()
    await change(engine, job.job_id, what)
    assert await due(outlook) == {round_}
    assert await due(outlook) == {round_}, "until it is done"


async def test_a_lease_that_ran_out_is_told_to_the_reaper(outlook: Outlook, engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await open_lease(conn, ttl_s=-1.0)
    assert await due(outlook) == {"reap"}


async def test_a_delivery_that_is_due_is_told(outlook: Outlook, engine: AsyncEngine) -> None:
    await notify(engine, "https://example.com/")
    assert await due(outlook) == {"webhooks"}


async def test_a_look_that_fails_says_so_and_the_rounds_are_told_by_the_next(
    outlook: Outlook, engine: AsyncEngine, settings: Settings
) -> None:
    (job,) = await submit(engine, settings)
    await outlook.look()
    async with engine.begin() as conn:
        await conn.execute(text("ALTER TABLE webhook_deliveries RENAME TO away"))
    with pytest.raises(DBAPIError):
        await outlook.look()
    async with engine.begin() as conn:
        await conn.execute(text("ALTER TABLE away RENAME TO webhook_deliveries"))
    await change(engine, job.job_id, "deadline_at = now() - interval '1 second'")
    assert await due(outlook) == {"expire"}


async def test_rounds_of_a_running_keeper_wait_for_the_outlook_and_run_at_once_when_it_tells(
    engine: AsyncEngine, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await seed(engine)
    keeper = Keeper(settings, SystemClock(), engine, redis, Random(1))
    runs: list[str] = []
    for name in ("wake", "hand_on", "reap"):
        work = getattr(keeper, name)

        async def counted(name: str = name, work: object = work) -> int:
            runs.append(name)
            return await work()  # type: ignore[operator, no-any-return]

        monkeypatch.setattr(keeper, name, counted)
    (job,) = await submit(engine, settings)
    keeping = asyncio.create_task(keeper.run())
    try:
        async with asyncio.timeout(20):
            while keeper.outlook.pools is None:
                await asyncio.sleep(0.01)
            await asyncio.sleep(3 * settings.expire_every_s)
            assert sorted(runs) == ["hand_on", "reap", "wake"], "once at the start, then nothing was due"
            async with engine.begin() as conn:
                gone = {"id": job.job_id, "leader": new_id()}
                await conn.execute(
                    text(
                        "UPDATE jobs SET shared_from = :leader, not_before = now() + interval '1 year' WHERE id = :id"
                    ),
                    gone,
                )
            while True:
                async with engine.connect() as conn:
                    if await conn.scalar(text("SELECT shared_from IS NULL FROM jobs")):
                        break
                await asyncio.sleep(0.02)
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
    assert runs.count("hand_on") >= 2
