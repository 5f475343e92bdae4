"""Deliveries for tests that need no job, and time that passes at once."""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import Row, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import event_name, new_id
from app.quotas.keys import ensure_tenant
from app.webhooks.lanes import one_off_lane
from app.webhooks.nominate import Nomination
from app.webhooks.outbox import Event, emit
from app.webhooks.tables import webhook_deliveries, webhook_lanes, webhook_tries

DATA = {"id": "job_1", "text": "Füchse"}


async def notify(engine: AsyncEngine, *urls: str, tenant: str = "acme") -> list[UUID]:
    """One delivery for each URL, in their order, all due."""
    async with engine.begin() as conn:
        await ensure_tenant(conn, tenant)
        at = datetime(2026, 1, 1, tzinfo=UTC)
        events = [Event(tenant, "job.succeeded", at, DATA, job_id=new_id(), url=url) for url in urls]
        await emit(conn, events)
        rows = await conn.execute(select(webhook_deliveries.c.id, webhook_deliveries.c.job_id))
        by_job = {row.job_id: row.id for row in rows}
        return [by_job[each.job_id] for each in events]


async def with_known_lanes(engine: AsyncEngine, tenant: str = "acme") -> None:
    """The tenant, with a secret that is the same in each run: which hosts share a lane is decided by it."""
    async with engine.begin() as conn:
        await conn.execute(text("INSERT INTO tenants (id, webhook_secret) VALUES (:id, 'whsec_a')"), {"id": tenant})


async def secret(engine: AsyncEngine, tenant: str = "acme") -> str:
    """What the tenant's deliveries are signed with."""
    async with engine.connect() as conn:
        found = await conn.scalar(text("SELECT webhook_secret FROM tenants WHERE id = :id"), {"id": tenant})
        assert isinstance(found, str)
        return found


async def state(engine: AsyncEngine, delivery_id: UUID) -> Row:
    """The delivery's row; `wait_s` is how long it is until somebody looks at it again."""
    async with engine.connect() as conn:
        query = select(
            webhook_deliveries,
            text("extract(epoch FROM next_try_at - clock_timestamp())::float8 AS wait_s"),
        ).where(webhook_deliveries.c.id == delivery_id)
        return (await conn.execute(query)).one()


async def now(engine: AsyncEngine) -> datetime:
    """Postgres' clock: what is due in some time is due between what it said before and what it says after."""
    async with engine.connect() as conn:
        found = await conn.scalar(text("SELECT clock_timestamp()"))
        assert isinstance(found, datetime)
        return found


async def tries(engine: AsyncEngine, delivery_id: UUID) -> list[Row]:
    """Its tries, in their order."""
    async with engine.connect() as conn:
        query = select(webhook_tries).where(webhook_tries.c.delivery_id == delivery_id).order_by("number")
        return list(await conn.execute(query))


async def pass_time(engine: AsyncEngine, seconds: float) -> None:
    """Let all that is to come come earlier."""
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "UPDATE webhook_deliveries SET next_try_at = next_try_at - make_interval(secs => :s), "
                "leased_until = leased_until - make_interval(secs => :s), "
                "handed_until = handed_until - make_interval(secs => :s)"
            ),
            {"s": seconds},
        )


def first(delivery_id: UUID) -> Nomination:
    """Its first try."""
    return Nomination(delivery_id, 1)


async def trust(engine: AsyncEngine, *urls: str, tenant: str = "acme", room: int = 64) -> None:
    """Let these URLs' lanes have so many under way, as if they had shown to be quick."""
    async with engine.begin() as conn:
        await ensure_tenant(conn, tenant)
        key = await conn.scalar(text("SELECT webhook_secret FROM tenants WHERE id = :id"), {"id": tenant})
        assert key is not None
        lanes = {one_off_lane(tenant, url, key=key) for url in urls}
        rows = [{"lane": lane, "room": room} for lane in lanes]
        await conn.execute(insert(webhook_lanes).on_conflict_do_nothing(), rows)


async def webhook_id(engine: AsyncEngine, delivery_id: UUID) -> str:
    """What each of its tries carries."""
    return event_name((await state(engine, delivery_id)).event_id)
