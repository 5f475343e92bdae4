"""Can two workers make one try, or a late one undo what another did? On a real Postgres."""

import asyncio
import re
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import new_id
from app.webhooks import delivery
from app.webhooks import nominate as nominating
from app.webhooks.delivery import Made, Rules, Try
from app.webhooks.nominate import Nomination, Rooms
from app.webhooks.retries import MAX_TRIES, Answer, Verdict
from tests.support.webhooks import first, notify, now, pass_time, secret, state, tries, with_known_lanes

OK = Answer(200, None, 12)
BROKEN = Answer(500, "500: the endpoint didn't accept it", 12)
AGAIN = Verdict("again", 5.0)
URL = "https://hooks.example.com/1"
RULES = Rules(disable_after_s=432_000.0, most=1024)


async def begin(engine: AsyncEngine, nomination: Nomination, lease_s: float = 30.0) -> Try | None:
    async with engine.begin() as conn:
        return (await delivery.begin(conn, [nomination], lease_s=lease_s)).get(nomination)


async def begun(engine: AsyncEngine, nomination: Nomination) -> Try:
    made = await begin(engine, nomination)
    assert made
    return made


async def record(engine: AsyncEngine, made: Try, answer: Answer, verdict: Verdict) -> bool:
    async with engine.begin() as conn:
        recorded = await delivery.record(conn, [Made(made, answer, verdict)], RULES)
        return recorded.changed == {made.delivery_id}


async def nominate(engine: AsyncEngine, limit: int = 100, again_after_s: float = 60.0) -> list[Nomination]:
    async with engine.begin() as conn:
        return await nominating.nominate(conn, Rooms(again_after_s, most=1024, cautious=1024), limit=limit)


async def test_a_try_carries_all_that_a_post_needs(engine: AsyncEngine) -> None:
    (one,) = await notify(engine, URL)
    before = await now(engine)
    made = await begun(engine, first(one))
    row = await state(engine, one)
    assert (made.url, made.body, made.number, made.event_type) == (URL, row.body, 1, "job.succeeded")
    assert made.secrets == (await secret(engine),)
    assert f'"id":"{made.webhook_id}"'.encode() in made.body  # the event's id and the delivery's are one
    assert before <= row.next_try_at - timedelta(seconds=30) <= await now(engine)
    assert [(each.number, each.http_status, each.duration_ms) for each in await tries(engine, one)] == [(1, None, None)]


async def test_of_many_workers_at_once_one_begins(engine: AsyncEngine) -> None:
    (one,) = await notify(engine, URL)
    made = await asyncio.gather(*(begin(engine, first(one)) for _ in range(8)))
    assert len([each for each in made if each]) == 1
    assert (await state(engine, one)).tries == 1


async def test_a_stale_nomination_begins_nothing(engine: AsyncEngine) -> None:
    (one,) = await notify(engine, URL)
    made = await begun(engine, first(one))
    assert await record(engine, made, BROKEN, AGAIN)
    assert await begin(engine, first(one)) is None
    assert await begin(engine, Nomination(one, 3)) is None
    assert (await state(engine, one)).wait_s <= 5
    assert (await state(engine, one)).tries == 1


async def test_what_was_nominated_is_nominated_again_only_after_a_while(engine: AsyncEngine) -> None:
    (one,) = await notify(engine, URL)
    assert await nominate(engine) == [Nomination(one, 1)]
    assert await nominate(engine) == []
    await pass_time(engine, 60)
    assert await nominate(engine) == [Nomination(one, 1)]


async def test_two_dispatchers_at_once_never_nominate_the_same(engine: AsyncEngine) -> None:
    await with_known_lanes(engine)  # none of which has more of these hosts than it has room for
    all_of_them = await notify(engine, *[f"https://{n}.example.com/" for n in range(60)])
    found = await asyncio.gather(*(nominate(engine, limit=20) for _ in range(4)))
    ids = [each.delivery_id for part in found for each in part]
    assert len(ids) == len(set(ids)) == 60
    assert set(ids) == set(all_of_them)


async def test_the_oldest_come_first(engine: AsyncEngine) -> None:
    old, new = await notify(engine, URL, URL)
    async with engine.begin() as conn:
        await conn.execute(
            text("UPDATE webhook_deliveries SET next_try_at = next_try_at - interval '1 s' WHERE id = :id"), {"id": old}
        )
    assert await nominate(engine, limit=1) == [Nomination(old, 1)]
    assert await nominate(engine, limit=1) == [Nomination(new, 1)]


async def test_a_lost_lease_is_tried_again_under_the_next_number(engine: AsyncEngine) -> None:
    (one,) = await notify(engine, URL)
    lost = await begin(engine, first(one), lease_s=3000.0)
    assert lost
    await pass_time(engine, 2900)
    assert await nominate(engine) == []
    assert await begin(engine, Nomination(one, 2)) is None
    await pass_time(engine, 100)
    assert await nominate(engine) == [Nomination(one, 2)]
    again = await begun(engine, Nomination(one, 2))
    assert again.webhook_id == lost.webhook_id


@pytest.mark.parametrize("verdict", [AGAIN, Verdict("failed")])
async def test_a_late_failure_of_a_lost_try_changes_nothing(engine: AsyncEngine, verdict: Verdict) -> None:
    (one,) = await notify(engine, URL)
    lost = await begun(engine, first(one))
    await pass_time(engine, 31)
    await begun(engine, Nomination(one, 2))
    assert not await record(engine, lost, BROKEN, verdict)
    row = await state(engine, one)
    assert (row.status, row.tries) == ("pending", 2)
    assert row.leased_until is not None
    assert row.wait_s > 20


async def test_a_late_success_of_a_lost_try_counts(engine: AsyncEngine) -> None:
    (one,) = await notify(engine, URL)
    lost = await begun(engine, first(one))
    await pass_time(engine, 31)
    second = await begun(engine, Nomination(one, 2))
    assert await record(engine, lost, OK, Verdict("delivered"))
    assert not await record(engine, second, BROKEN, AGAIN)
    assert (await state(engine, one)).status == "delivered"
    assert [each.http_status for each in await tries(engine, one)] == [200, 500]


async def test_a_failed_try_is_due_later_and_free(engine: AsyncEngine) -> None:
    (one,) = await notify(engine, URL)
    made = await begun(engine, first(one))
    before = await now(engine)
    await record(engine, made, BROKEN, Verdict("again", 300.0))
    row = await state(engine, one)
    assert (row.status, row.leased_until) == ("pending", None)
    assert before <= row.next_try_at - timedelta(seconds=300) <= await now(engine)
    (told,) = await tries(engine, one)
    assert (told.http_status, told.error, told.duration_ms) == (500, BROKEN.error, 12)


@pytest.mark.parametrize(("answer", "outcome"), [(OK, "delivered"), (replace(BROKEN, http_status=410), "failed")])
async def test_an_end_is_an_end(engine: AsyncEngine, answer: Answer, outcome: str) -> None:
    (one,) = await notify(engine, URL)
    await record(engine, await begun(engine, first(one)), answer, Verdict(outcome))
    row = await state(engine, one)
    assert (row.status, row.leased_until) == (outcome, None)
    assert row.ended_at is not None
    await pass_time(engine, 1_000_000)
    assert await nominate(engine) == []
    assert await begin(engine, Nomination(one, 2)) is None


async def test_a_delivery_whose_last_try_was_lost_is_given_up(engine: AsyncEngine) -> None:
    (one,) = await notify(engine, URL)
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE webhook_deliveries SET tries = :n"), {"n": MAX_TRIES - 1})
    await begun(engine, Nomination(one, MAX_TRIES))
    assert await nominate(engine) == []
    assert (await state(engine, one)).status == "pending"
    await pass_time(engine, 31)
    assert await nominate(engine) == []
    assert (await state(engine, one)).status == "failed"


async def test_what_has_no_try_left_is_given_up_some_at_a_time_and_waits_for_nobody(engine: AsyncEngine) -> None:
    """Rows that another transaction holds are passed over: who waits for them while holding others is half of a deadlock."""
    ids = sorted(await notify(engine, *[URL] * 1200))
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE webhook_deliveries SET tries = :n"), {"n": MAX_TRIES})
    counted = text("SELECT count(*) FROM webhook_deliveries WHERE status = 'failed'")
    async with engine.connect() as other:
        await other.execute(text("SET LOCAL idle_in_transaction_session_timeout = '30s'"))
        await other.execute(text("SELECT FROM webhook_deliveries WHERE id = :id FOR UPDATE"), {"id": ids[0]})
        for failed in (1000, 1199):
            assert await asyncio.wait_for(nominate(engine), 20) == []
            assert await other.scalar(counted) == failed
    assert await nominate(engine) == []
    assert (await state(engine, ids[0])).status == "failed"


async def test_what_waits_for_a_disabled_endpoint_is_given_up_when_it_is_due_and_waits_for_nobody(
    engine: AsyncEngine,
) -> None:
    ids = sorted(await notify(engine, *[URL] * 3, *["https://other.example.com/"] * 2))
    endpoint = new_id()
    async with engine.begin() as conn:
        values = {"id": endpoint, "url": URL}
        await conn.execute(
            text(
                "INSERT INTO webhook_endpoints (id, tenant_id, url, secret, status, disabled_reason) "
                "VALUES (:id, 'acme', :url, 'whsec_', 'disabled', 'nobody is there')"
            ),
            values,
        )
        await conn.execute(text("UPDATE webhook_deliveries SET endpoint_id = :id WHERE url = :url"), values)
    async with engine.connect() as other:
        await other.execute(text("SELECT FROM webhook_deliveries WHERE id = :id FOR UPDATE"), {"id": ids[0]})
        handed = await asyncio.wait_for(nominate(engine), 20)
    assert {each.delivery_id for each in handed} == set(ids[3:])
    assert await nominate(engine) == []
    rows = [await state(engine, each) for each in ids[:3]]
    assert [(row.status, row.error) for row in rows] == [("failed", "nobody is there")] * 3


async def test_looking_for_what_is_due_reads_an_index(engine: AsyncEngine) -> None:
    await notify(engine, *[f"https://{n}.example.com/" for n in range(300)])
    due, lanes, handed, spent, unsent = (
        f"ix_webhook_deliveries_{name}" for name in ("due", "lane", "handed", "spent", "open")
    )
    asked = {
        "limit": 10, "cautious": 10, "page": 10, "lanes": [], "tenants": [], "rooms": [], "busy": [], "first_room": 4,
        "most": 32, "endpoints": [new_id()],
    }  # fmt: skip
    wanted = [
        (text(f"SELECT {nominating.IS_ANY_DUE}"), {due}, "(next_try_at <= statement_timestamp())"),
        (nominating._GIVE_UP, {spent}, "(next_try_at <= statement_timestamp())"),
        (nominating._CLOSE, {unsent}, "(endpoint_id = e.id)"),
        (delivery._CLOSE, {unsent}, "(endpoint_id = e.id)"),
        (nominating._BUSY, {handed}, "(handed_until > statement_timestamp())"),
        (nominating._CANDIDATES, {lanes}, "(ROW(lane, next_try_at) <= ROW(lanes.lane, statement_timestamp()))"),
    ]
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE webhook_deliveries SET next_try_at = now() + interval '1 day'"))
        await conn.execute(text("ANALYZE webhook_deliveries"))
        await conn.execute(text("SET LOCAL enable_seqscan = off"))
        for statement, indexes, condition in wanted:
            lines = "\n".join(
                (await conn.execute(text(f"EXPLAIN {statement.text}"), asked | {"ids": asked["endpoints"]})).scalars()
            )
            assert set(re.findall(r"using (ix_webhook_deliveries_\w+)", lines)) == indexes, lines
            assert condition in lines
            assert "Seq Scan on webhook_deliveries" not in lines
