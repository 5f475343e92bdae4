"""Is each hour of usage added up once, when nothing can be added to it any more?"""

import asyncio
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.dashboard.usage import read_usage
from app.quotas.usage_hours import CLOSED_AFTER_S, roll_up_next
from tests.support.stack import wait_for

KEY = "0197a1b2-c3d4-7e8f-9a0b-1c2d3e4f5a6b"


async def use(
    engine: AsyncEngine, ago: timedelta, *, tenant: str = "acme", kind: str = "billed", tokens: int = 10
) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO usage (job_id, attempt, kind, tenant_id, api_key_id, model, tier, prompt_tokens, cached_tokens, "
                "completion_tokens, cost_micros, at) VALUES (gen_random_uuid(), 1, :kind, :tenant, :key, 'tiny', 'batch', :tokens, 1, "
                "2, 3, now() - CAST(:ago AS interval))"
            ),
            {"kind": kind, "tenant": tenant, "key": KEY, "tokens": tokens, "ago": ago},
        )


async def roll_up(engine: AsyncEngine) -> int:
    """All that there is; how many hours."""
    done = 0
    while True:
        async with engine.begin() as conn:
            if await roll_up_next(conn) is None:
                return done
        done += 1


async def shown(engine: AsyncEngine, tenant: str = "acme") -> list[tuple[datetime, int, int, int]]:
    """What a page says of the last three days: hour, jobs, prompt tokens, cost."""
    until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    async with engine.connect() as conn:
        found = await read_usage(conn, tenant, since=until - timedelta(days=3), until=until, step="hour")
    return [(each.step, each.jobs, each.prompt_tokens, each.cost_micros) for each in found.rows]


async def test_a_page_says_the_same_before_and_after(engine: AsyncEngine) -> None:
    for hours in (0, 0.5, 1, 1, 2, 5, 5, 30, 49):
        await use(engine, timedelta(hours=hours))
    await use(engine, timedelta(hours=5), kind="wasted")
    await use(engine, timedelta(hours=5), tenant="rival")
    before = await shown(engine)
    assert sum(each[1] for each in before) == 9
    hours = await roll_up(engine)
    assert 47 <= hours <= 50  # hours in which nothing was used, too, so that none is looked at twice
    assert await shown(engine) == before
    async with engine.connect() as conn:
        assert 5 <= await conn.scalar(text("SELECT sum(jobs) FROM usage_hours WHERE tenant_id = 'acme'")) <= 8
    assert await roll_up(engine) == 0
    await use(engine, timedelta(0))
    assert sum(each[1] for each in await shown(engine)) == 10


async def test_an_hour_that_may_still_be_added_to_is_left(engine: AsyncEngine) -> None:
    await use(engine, timedelta(seconds=CLOSED_AFTER_S - 1))
    assert await roll_up(engine) == 0


async def test_nothing_used_is_nothing_to_do(engine: AsyncEngine) -> None:
    assert await roll_up(engine) == 0


async def test_two_who_come_at_once_add_an_hour_up_once(engine: AsyncEngine) -> None:
    await use(engine, timedelta(hours=3))
    before = await shown(engine)
    async with engine.connect() as first, engine.connect() as second:
        hour = await roll_up_next(first)
        waiting = asyncio.create_task(roll_up_next(second))
        await wait_for(
            engine,
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        await first.commit()
        assert await waiting == hour
        await second.commit()
    assert await shown(engine) == before
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM usage_hours")) == 1
