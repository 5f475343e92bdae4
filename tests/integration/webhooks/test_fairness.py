"""Does a server that is slow, or has much to come, delay others? Rooms of lanes, on a real Postgres."""

from random import Random

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.settings import Settings
from app.webhooks.lanes import FIRST_ROOM, QUICK_S, one_off_lane
from app.webhooks.nominate import Nomination, Rooms, nominate
from tests.support.clocks import HandClock
from tests.support.receiver import receiver
from tests.support.webhooks import notify, pass_time, state, trust, with_known_lanes
from workers.webhooks.courier import Courier

LONG, SHORT = "https://long.example.com/1", "https://short.example.com/1"
ROOMS = Rooms(again_after_s=60.0, most=32, cautious=128)


async def handed(engine: AsyncEngine, rooms: Rooms = ROOMS, limit: int = 500) -> list[Nomination]:
    async with engine.begin() as conn:
        return await nominate(conn, rooms, limit=limit)


async def room_of(engine: AsyncEngine) -> int | None:
    async with engine.connect() as conn:
        found: int | None = await conn.scalar(text("SELECT room FROM webhook_lanes"))
        return found


async def test_a_long_line_of_older_deliveries_delays_nobody_else(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("INSERT INTO tenants (id, webhook_secret) VALUES ('acme', 'whsec_a')"))
    assert one_off_lane("acme", LONG, key="whsec_a") != one_off_lane("acme", SHORT, key="whsec_a")
    await notify(engine, *[LONG] * 700)
    (one,) = await notify(engine, SHORT)
    found = await handed(engine)
    assert one in {each.delivery_id for each in found}
    assert len(found) == FIRST_ROOM + 1
    assert await handed(engine) == [], "the long line's room is taken"
    await trust(engine, LONG, room=20)
    assert len(await handed(engine)) == 20 - FIRST_ROOM
    await pass_time(engine, 61)  # RQ lost them all
    assert len(await handed(engine)) == 20 + 1


async def test_two_tenants_at_one_server_have_a_line_each(engine: AsyncEngine) -> None:
    await notify(engine, *[LONG] * 10)
    await notify(engine, *[LONG] * 10, tenant="rival")
    assert len(await handed(engine)) == 2 * FIRST_ROOM


async def test_what_never_was_quick_takes_half_of_a_worker_at_most(engine: AsyncEngine) -> None:
    for number in range(40):
        await notify(engine, f"https://{number}.example.com/", tenant=f"tenant-{number}")
    await notify(engine, *[SHORT] * 30)
    await trust(engine, SHORT)
    assert len(await handed(engine, Rooms(60.0, most=32, cautious=10))) == 10 + 30


class Ticking(HandClock):
    """So much passes between two looks at it."""

    def __init__(self, tick_s: float) -> None:
        super().__init__()
        self.tick_s = tick_s

    def monotonic(self) -> float:
        self.time_s += self.tick_s
        return self.time_s


@pytest.mark.parametrize(("took_s", "rooms"), [(QUICK_S - 0.01, [8, 16, 16]), (QUICK_S, [2, 1, 1])])
async def test_a_lane_earns_its_room_by_its_times_whatever_it_answers(
    settings: Settings, engine: AsyncEngine, took_s: float, rooms: list[int]
) -> None:
    """A try that got no answer stands for one that got any: by its time it is quick or not."""
    fast = {"webhook_allow_local": True, "webhook_timeout_s": 0.1, "webhook_endpoint_concurrency": 16}
    courier = Courier(settings.model_copy(update=fast), Ticking(took_s), engine, Random(0))
    async with receiver() as server:
        server.hold.add("/")
        found = []
        for _ in rooms:
            (one,) = await notify(engine, server.url())
            await courier.deliver(Nomination(one, 1))
            assert (await state(engine, one)).status == "pending"
            found.append(await room_of(engine))
    assert found == rooms


async def test_a_delivery_that_ends_gives_its_place_back(settings: Settings, engine: AsyncEngine) -> None:
    local = settings.model_copy(update={"webhook_allow_local": True})
    courier = Courier(local, SystemClock(), engine, Random(0))
    async with receiver() as server:
        await notify(engine, *[server.url()] * 30)
        counts = []
        while found := await handed(engine):
            counts.append(len(found))
            for each in found:
                await courier.deliver(each)
    assert counts == [4, 26]
    assert len(server.received) == 30


async def test_thousands_of_dead_endpoints_of_one_tenant_hide_nobodys_quick_one(engine: AsyncEngine) -> None:
    """A query that looked at the first few hundred due lanes never came to the healthy tenant's."""
    dead = [f"https://{n}.dead.example.com/" for n in range(2000)]
    await notify(engine, *dead)
    await trust(engine, *dead, room=2)
    (one,) = await notify(engine, SHORT, tenant="zebra")
    await trust(engine, SHORT, tenant="zebra")
    assert one in {each.delivery_id for each in await handed(engine)}


async def test_dead_endpoints_of_one_tenant_leave_room_for_anothers_unknown_one(engine: AsyncEngine) -> None:
    await notify(engine, *[f"https://{n}.dead.example.com/" for n in range(300)])
    first_round = await handed(engine)
    assert len(first_round) < ROOMS.cautious
    assert await handed(engine) == [], "all that one tenant may have is under way, and hangs"
    for number in range(5):
        (one,) = await notify(engine, SHORT, tenant=f"zebra-{number}")
        assert [each.delivery_id for each in await handed(engine)] == [one]


async def test_tenants_take_turns_where_not_all_find_room(engine: AsyncEngine) -> None:
    many = [f"https://{n}.example.com/" for n in range(40)]
    await notify(engine, *many)
    await trust(engine, *many)
    few = await notify(engine, LONG, SHORT, tenant="zebra")
    await trust(engine, LONG, SHORT, tenant="zebra")
    assert set(few) < {each.delivery_id for each in await handed(engine, limit=4)}


async def test_a_hosts_long_line_delays_at_most_those_in_its_lane(engine: AsyncEngine) -> None:
    """Hosts of one tenant's jobs: those that share its lane wait, all others go."""
    await with_known_lanes(engine)
    hung = one_off_lane("acme", LONG, key="whsec_a")
    await notify(engine, *[LONG] * 50)
    assert len(await handed(engine)) == FIRST_ROOM
    urls = [f"https://{n}.example.com/" for n in range(300)]
    ids = dict(zip(await notify(engine, *urls), urls, strict=True))
    kept = {each for each, url in ids.items() if one_off_lane("acme", url, key="whsec_a") == hung}
    await trust(engine, *[ids[each] for each in ids.keys() - kept])
    assert {each.delivery_id for each in await handed(engine)} == ids.keys() - kept
    assert 0 < len(kept) < 30
