"""What does a tenant cost the others whose jobs name thousands of hosts? No more than one that names a few. On a real Postgres."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.webhooks import nominate as nominating
from app.webhooks.endpoints import create_endpoint
from app.webhooks.lanes import FIRST_ROOM, ONE_OFF_LANES, one_off_lane
from app.webhooks.nominate import Rooms, nominate
from app.webhooks.tidy import FIRST_DELIVERY, bring_home, forget_rooms
from app.webhooks.wanted import EndpointWanted
from tests.support.webhooks import notify, secret

ROOMS = Rooms(again_after_s=60.0, most=32, cautious=128)
ASKED = {
    "lanes": [], "tenants": [], "rooms": [], "busy": [], "first_room": FIRST_ROOM, "most": ROOMS.most, "limit": 500,
    "cautious": ROOMS.cautious,
}  # fmt: skip


async def rows_read(conn: AsyncConnection) -> int:
    """How many rows the search for candidates looks at, by Postgres' own account."""
    await conn.execute(text("ANALYZE webhook_deliveries"))
    plan = await conn.scalar(text(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {nominating._CANDIDATES.text}"), ASKED)
    assert isinstance(plan, list)
    return _rows(plan[0]["Plan"])


def _rows(node: dict[str, Any]) -> int:
    own = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    return round(own) + sum(_rows(each) for each in node.get("Plans", ()))


async def lanes(engine: AsyncEngine, tenant: str) -> set[str]:
    async with engine.connect() as conn:
        found = await conn.scalars(
            text("SELECT DISTINCT lane FROM webhook_deliveries WHERE tenant_id = :tenant AND status = 'pending'"),
            {"tenant": tenant},
        )
        return set(found)


async def multiply(engine: AsyncEngine, delivery_id: UUID, hosts: range) -> None:
    """As many more deliveries of this one's tenant, each to a host of its own, in the lanes that `bring_home` gives them."""
    async with engine.begin() as conn:
        await conn.execute(
            text("""
                INSERT INTO webhook_deliveries (id, tenant_id, event_type, url, body, lane)
                SELECT gen_random_uuid(), tenant_id, event_type, 'https://h' || n || '.evil.test/', body,
                       tenant_id || ' https://h' || n || '.evil.test'
                FROM webhook_deliveries, generate_series(CAST(:first AS integer), CAST(:last AS integer)) n WHERE id = :id
            """),
            {"id": delivery_id, "first": hosts.start, "last": hosts.stop - 1},
        )
        moved = await bring_home(conn, FIRST_DELIVERY, page=100_000)
        assert moved[1] == len(hosts)


async def test_a_dispatch_reads_no_more_rows_for_ten_thousand_hosts_than_for_one_thousand(
    engine: AsyncEngine,
) -> None:
    """Each host had a lane, and a dispatch looked at all of them: about a second for everybody with 100,000."""
    (one,) = await notify(engine, "https://h0.evil.test/", tenant="evil")
    await multiply(engine, one, range(1, 1_000))
    async with engine.connect() as conn:
        few = await rows_read(conn)
    await multiply(engine, one, range(1_000, 10_000))
    async with engine.connect() as conn:
        many = await rows_read(conn)
    assert len(await lanes(engine, "evil")) == ONE_OFF_LANES
    assert many <= few * 1.1, "tenfold hosts cost what a few do"
    assert many < 30 * ONE_OFF_LANES * FIRST_ROOM
    others = await notify(engine, "https://good.example.com/", tenant="zebra")
    async with engine.begin() as conn:
        assert set(others) < {each.delivery_id for each in await nominate(conn, ROOMS, limit=500)}


async def test_the_rows_that_an_event_writes_are_in_bounded_lanes(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("INSERT INTO tenants (id, webhook_secret) VALUES ('acme', 'whsec_a')"))
        for url in ("https://one.example.com/a", "https://two.example.com/b"):
            await create_endpoint(conn, "acme", EndpointWanted(url=url))
    await notify(engine, *[f"https://{n}.example.com/" for n in range(200)])
    found = await lanes(engine, "acme")
    assert {"acme https://one.example.com", "acme https://two.example.com"} < found
    assert found == {one_off_lane("acme", f"https://{n}.example.com", key="whsec_a") for n in range(200)} | {
        "acme https://one.example.com", "acme https://two.example.com",
    }  # fmt: skip


async def test_postgres_and_we_agree_on_a_lane(engine: AsyncEngine) -> None:
    urls = [
        "https://UPPER.example.com:8443/A?b=c", "https://a.example.com", "https://b.example.com?x=1",
        "http://[2a00::1]:8080/", "https://xn--fchse-gra.example.com/%20", "nonsense",
    ]  # fmt: skip
    ids = await notify(engine, *urls)
    key = await secret(engine, "acme")
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE webhook_deliveries SET lane = 'acme https://elsewhere'"))
        at, moved = FIRST_DELIVERY, 0
        for _ in range(3):
            at, done = await bring_home(conn, at, page=2)
            moved += done
        assert moved == len(urls)
        assert (await bring_home(conn, at, page=2)) == (FIRST_DELIVERY, 0)
        rows = await conn.execute(text("SELECT id, lane FROM webhook_deliveries"))
        assert {row.id: row.lane for row in rows} == {
            delivery_id: one_off_lane("acme", url, key=key) for delivery_id, url in zip(ids, urls, strict=True)
        }


async def test_what_is_at_home_what_has_ended_and_endpoints_stay_where_they_are(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("INSERT INTO tenants (id, webhook_secret) VALUES ('acme', 'whsec_a')"))
        await create_endpoint(conn, "acme", EndpointWanted(url="https://one.example.com/a"))
    _, ended = await notify(engine, "https://x.example.com/", "https://y.example.com/")
    async with engine.begin() as conn:
        await conn.execute(
            text("UPDATE webhook_deliveries SET lane = 'acme old', status = 'delivered' WHERE id = :id"), {"id": ended}
        )
        before = (await conn.execute(text("SELECT id, lane FROM webhook_deliveries ORDER BY id"))).all()
        assert (await bring_home(conn, FIRST_DELIVERY, page=10))[1] == 0
        assert (await conn.execute(text("SELECT id, lane FROM webhook_deliveries ORDER BY id"))).all() == before


@pytest.mark.parametrize("page", [1, 3, 100])
async def test_a_room_that_nobody_uses_is_forgotten_page_by_page(engine: AsyncEngine, page: int) -> None:
    await notify(engine, "https://waits.example.com/")
    (waiting,) = await lanes(engine, "acme")
    async with engine.begin() as conn:
        await conn.execute(
            text("""
                INSERT INTO webhook_lanes (lane, room, changed_at)
                SELECT 'acme lane-' || n, 8, now() - make_interval(days => n) FROM generate_series(0, 13) n
            """)
        )
        await conn.execute(
            text("INSERT INTO webhook_lanes (lane, room, changed_at) VALUES (:lane, 8, now() - interval '9 days')"),
            {"lane": waiting},
        )
    at, forgotten, steps = "", 0, 0
    while True:
        async with engine.begin() as conn:
            at, done = await forget_rooms(conn, at, page=page)
        forgotten, steps = forgotten + done, steps + 1
        if not at:
            break
    async with engine.connect() as conn:
        left = set(await conn.scalars(text("SELECT lane FROM webhook_lanes")))
    assert left == {waiting} | {f"acme lane-{n}" for n in range(7)}
    assert forgotten == 7
    assert steps == -(-15 // page) + 1
