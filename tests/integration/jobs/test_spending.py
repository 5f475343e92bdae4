"""What becomes of a job that a budget can't hold: rejected, cut, held until there is room; and what it costs."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.errors import BudgetExhausted, Unavailable
from app.ids import new_id
from app.jobs import held, store, timekeeping
from app.jobs.cancel import cancel
from app.jobs.finish import Ending, finish
from app.jobs.notices import Used
from app.jobs.submit import Accepted, Caller, accept
from app.queue.streams import Nomination
from app.quotas.budgets import Reservation, Spending, open_account
from app.quotas.drift import drift_of
from app.quotas.keys import create_key
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.budgets import FakeClock, add_budget, balance, retire, set_limit, set_price
from tests.support.dead import CHOICES, kill, send_back, start_again
from tests.support.jobs import POOL, open_lease, prepared, seed, submit

NOON = datetime(2031, 1, 31, 12, 30, 15, tzinfo=UTC)
ONE = {"prompt": "abcd", "max_tokens": 6}  # 4 tokens of prompt, 10 in all


@pytest.fixture(autouse=True)
async def world(engine: AsyncEngine) -> None:
    await seed(engine)


@pytest.fixture
async def clock(engine: AsyncEngine) -> FakeClock:
    return await FakeClock.install(engine, NOON)


async def row_of(engine: AsyncEngine, job: Accepted | UUID) -> Row:
    async with engine.connect() as conn:
        query = text("SELECT j.*, i.sampling FROM jobs j JOIN job_inputs i ON i.job_id = j.id WHERE j.id = :id")
        return (await conn.execute(query, {"id": job if isinstance(job, UUID) else job.job_id})).one()


async def wake(engine: AsyncEngine) -> list[UUID]:
    """One round of maintenance; the jobs that it let in, in order."""
    async with engine.begin() as conn:
        due = await timekeeping.wake_due(conn)
        ready = await held.ready_budgets(conn)
    assert due == {}, "time alone wakes nobody who waits for a budget"
    woken = []
    for budget_id in ready:
        async with engine.begin() as conn:
            woken += (await held.wake_line(conn, budget_id)).get(POOL, [])
    return [each.job_id for each in woken]


async def finished(engine: AsyncEngine, job: Accepted | UUID, output: int) -> None:
    job_id = job if isinstance(job, UUID) else job.job_id
    (started,) = await start_again(engine, job_id)
    async with engine.begin() as conn:
        ending = Ending(job_id, started.attempt, "succeeded", choices=CHOICES, used=Used(4, 0, output))
        assert await finish(conn, [ending]) == {job_id}


# --- cost ------------------------------------------------------------------------------------------------------------


async def test_cost_is_reserved_at_most_and_settled_exactly_rounded_up_once(
    engine: AsyncEngine, settings: Settings
) -> None:
    await set_price(engine, POOL, 300_001, 1_500_000)
    budget = await add_budget(engine, 1000, "cost")
    (job,) = await submit(engine, settings, **ONE)
    assert await balance(engine, budget) == [(0, 11)]  # (4 x 0.300001 + 6 x 1.5) = 10.2...
    await finished(engine, job, 3)
    assert await balance(engine, budget) == [(6, 0)]  # 5.7...
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT cost_micros FROM usage")) == 6
    await assert_audit_clean(engine, None)


async def test_a_price_that_changes_after_the_reservation_changes_nothing_for_the_job(
    engine: AsyncEngine, settings: Settings
) -> None:
    await set_price(engine, POOL, 0, 1_000_000)
    budget = await add_budget(engine, 100, "cost")
    (before,) = await submit(engine, settings, **ONE)
    await set_price(engine, POOL, 0, 9_000_000)
    (after,) = await submit(engine, settings, **ONE)
    assert await balance(engine, budget) == [(0, 6 + 54)]
    await finished(engine, before, 6)
    await finished(engine, after, 1)
    assert await balance(engine, budget) == [(6 + 9, 0)]
    await assert_audit_clean(engine, None)


async def test_a_requeue_reserves_at_todays_price_or_is_refused(engine: AsyncEngine, settings: Settings) -> None:
    await set_price(engine, POOL, 0, 1_000_000)
    budget = await add_budget(engine, 20, "cost")
    (job,) = await kill(engine, await submit(engine, settings, **ONE))
    assert await balance(engine, budget) == [(0, 0)]
    await set_price(engine, POOL, 0, 4_000_000)
    with pytest.raises(BudgetExhausted):
        await send_back(engine, job)
    await set_price(engine, POOL, 0, 3_000_000)
    await send_back(engine, job)
    assert await balance(engine, budget) == [(0, 18)]
    await finished(engine, job, 5)
    assert await balance(engine, budget) == [(15, 0)]
    await assert_audit_clean(engine, None)


async def test_a_retired_budget_refuses_nothing_and_settles_what_it_holds(
    engine: AsyncEngine, settings: Settings
) -> None:
    budget = await add_budget(engine, 10)
    (job,) = await submit(engine, settings, **ONE)
    with pytest.raises(BudgetExhausted):
        await submit(engine, settings, **ONE)
    await retire(engine, budget)
    (free,) = await submit(engine, settings, **ONE)
    await finished(engine, free, 6)
    assert await balance(engine, budget) == [(0, 10)]
    await finished(engine, job, 2)
    assert await balance(engine, budget) == [(6, 0)]
    (again,) = await kill(engine, await submit(engine, settings, **ONE))
    await send_back(engine, again)
    await assert_audit_clean(engine, None)


@pytest.mark.parametrize(
    ("period", "next_window"),
    [
        ("minute", datetime(2031, 1, 31, 12, 31, tzinfo=UTC)),
        ("hour", datetime(2031, 1, 31, 13, tzinfo=UTC)),
        ("day", datetime(2031, 2, 1, tzinfo=UTC)),
        ("month", datetime(2031, 2, 1, tzinfo=UTC)),
    ],
)
async def test_a_new_window_is_a_new_row_and_the_old_one_settles_in_its_own(
    engine: AsyncEngine, settings: Settings, clock: FakeClock, period: str, next_window: datetime
) -> None:
    budget = await add_budget(engine, 10, period=period)
    (old,) = await submit(engine, settings, **ONE)
    with pytest.raises(BudgetExhausted) as refused:
        await submit(engine, settings, **ONE)
    assert refused.value.extra["resets_at"] == next_window.isoformat().replace("+00:00", "Z")
    await clock.advance(next_window - NOON - timedelta(microseconds=1))
    with pytest.raises(BudgetExhausted):
        await submit(engine, settings, **ONE)
    await clock.advance(timedelta(microseconds=1))
    await submit(engine, settings, **ONE)
    await finished(engine, old, 3)
    assert await balance(engine, budget) == [(7, 0), (0, 10)]


async def test_a_limit_that_was_lowered_below_what_is_used_refuses_until_there_is_room(
    engine: AsyncEngine, settings: Settings
) -> None:
    budget = await add_budget(engine, 100)
    jobs = await submit(engine, settings, count=5, **ONE)
    await set_limit(engine, budget, 30)
    with pytest.raises(BudgetExhausted, match="0 are left"):
        await submit(engine, settings, **ONE)
    for job in jobs:
        await finished(engine, job, 0)
    assert await balance(engine, budget) == [(20, 0)]
    await submit(engine, settings, **ONE)
    with pytest.raises(BudgetExhausted):
        await submit(engine, settings, **ONE)


async def test_a_limit_that_is_lowered_while_a_submission_waits_for_the_window_holds_for_it(
    engine: AsyncEngine,
) -> None:
    budget = await add_budget(engine, 100)
    async with engine.begin() as conn:
        account = await open_account(conn, [("acme", None)])
        await set_limit(engine, budget, 5)
        account.take(Reservation(new_id(), 1, "acme", None, Spending(4, 6, 0)))
        with pytest.raises(Unavailable):
            await account.write(conn)
        await conn.rollback()


# --- truncate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "limit", "n", "given"),
    [
        ("output_tokens", 5, 1, 5),
        ("output_tokens", 5, 2, 2),
        ("total_tokens", 9, 1, 5),
        ("total_tokens", 9, 2, 2),
        ("cost", 9, 1, 3),  # 4 x 0.5 + m x 2 <= 9
        ("cost", 9, 2, 1),
        ("cost", 10, 1, 4),  # to the last millionth
        ("output_tokens", 6, 1, 6),
    ],
)
async def test_max_tokens_are_cut_to_what_is_left(
    engine: AsyncEngine, settings: Settings, metric: str, limit: int, n: int, given: int
) -> None:
    await set_price(engine, POOL, 500_000, 2_000_000)
    await add_budget(engine, 10_000, "requests")
    budget = await add_budget(engine, limit, metric)
    (job,) = await submit(engine, settings, **ONE, n=n, on_budget="truncate", seed=1, temperature=0.5)
    row = await row_of(engine, job)
    sampling = row.sampling if isinstance(row.sampling, dict) else msgspec.json.decode(row.sampling)
    assert (row.max_tokens, sampling["max_tokens"], sampling["temperature"]) == (given, given, 0.5)
    change = {"asked": 6, "given": given, "reason": "budget", "budget_id": str(budget)}
    assert row.changes == (None if given == 6 else {"max_tokens": change})
    assert job.nomination is not None
    assert job.nomination.cost == 4 + n * given
    with pytest.raises(BudgetExhausted):
        await submit(engine, settings, **ONE, n=n, on_budget="truncate")
    await assert_audit_clean(engine, None)


@pytest.mark.parametrize(("metric", "limit"), [("input_tokens", 3), ("requests", 0), ("total_tokens", 4)])
async def test_what_fewer_tokens_do_not_mend_is_rejected(
    engine: AsyncEngine, settings: Settings, metric: str, limit: int
) -> None:
    await add_budget(engine, limit, metric)
    with pytest.raises(BudgetExhausted):
        await submit(engine, settings, **ONE, on_budget="truncate")


async def test_no_job_is_cut_below_its_min_tokens(engine: AsyncEngine, settings: Settings) -> None:
    await add_budget(engine, 7)
    with pytest.raises(BudgetExhausted):
        await submit(engine, settings, **ONE, min_tokens=4, on_budget="truncate")
    (job,) = await submit(engine, settings, **ONE, min_tokens=3, on_budget="truncate")
    assert (await row_of(engine, job)).max_tokens == 3


# --- wait ------------------------------------------------------------------------------------------------------------


async def hold(engine: AsyncEngine, settings: Settings, **body: object) -> UUID:
    (job,) = await submit(engine, settings, **ONE, on_budget="wait", **body)
    assert job.nomination is None
    return job.job_id


async def test_a_held_job_waits_for_the_next_window_with_nothing_reserved(
    engine: AsyncEngine, settings: Settings, clock: FakeClock
) -> None:
    budget = await add_budget(engine, 10, period="hour")
    (first,) = await submit(engine, settings, **ONE)
    waiting = await hold(engine, settings)
    row = await row_of(engine, waiting)
    assert (row.status, row.reservation, row.held_by) == ("queued", 0, budget)
    assert row.not_before == datetime(2031, 1, 31, 13, tzinfo=UTC)
    assert await balance(engine, budget) == [(0, 10)]
    await finished(engine, first, 6)
    assert await wake(engine) == []
    await assert_audit_clean(engine, None)
    await clock.advance(timedelta(hours=1))
    assert await wake(engine) == [waiting]
    row = await row_of(engine, waiting)
    assert (row.reservation, row.held_by, row.not_before) == (1, None, None)
    assert await balance(engine, budget) == [(10, 0), (0, 10)]
    await finished(engine, waiting, 1)
    await assert_audit_clean(engine, None)


async def test_a_nomination_of_a_held_job_starts_nothing_though_its_time_has_come(
    engine: AsyncEngine, settings: Settings, clock: FakeClock
) -> None:
    await add_budget(engine, 10, period="minute")
    await submit(engine, settings, **ONE)
    waiting = await hold(engine, settings)
    await clock.advance(timedelta(minutes=2))
    async with engine.begin() as conn:
        nomination = Nomination(waiting, 1, "standard", "acme", 10)
        assert await store.start(conn, await open_lease(conn, ttl_s=600), [nomination]) == []


async def test_held_jobs_get_their_turn_in_the_order_of_arrival_and_none_overtakes(
    engine: AsyncEngine, settings: Settings, clock: FakeClock
) -> None:
    budget = await add_budget(engine, 25, period="day")
    await submit(engine, settings, count=2, **ONE)
    one, two = await hold(engine, settings), await hold(engine, settings)
    (large,) = await submit(engine, settings, prompt="abcd", max_tokens=16, on_budget="wait")
    last = await hold(engine, settings)
    await clock.advance(timedelta(days=1))
    assert await wake(engine) == [one, two]
    for each in (large.job_id, last):
        assert (await row_of(engine, each)).not_before == datetime(2031, 2, 2, tzinfo=UTC)
    assert await wake(engine) == []
    await finished(engine, one, 0)  # 11 are left: enough for the last one, not for the one before it
    assert await wake(engine) == []
    await clock.advance(timedelta(days=1))
    assert await wake(engine) == [large.job_id]
    await clock.advance(timedelta(days=1))
    assert await wake(engine) == [last]
    assert [reserved for _, reserved in await balance(engine, budget)] == [20, 10, 20, 10]


async def test_a_raised_a_retired_and_a_relieved_budget_let_held_jobs_in_at_once(
    engine: AsyncEngine, settings: Settings, clock: FakeClock
) -> None:
    budget = await add_budget(engine, 10, period="month")
    (first,) = await submit(engine, settings, **ONE)
    waiting = [await hold(engine, settings) for _ in range(4)]
    assert await wake(engine) == []
    await set_limit(engine, budget, 20)
    assert await wake(engine) == waiting[:1]
    async with engine.begin() as conn:
        await cancel(conn, "acme", first.job_id)
    assert await wake(engine) == waiting[1:2]
    await retire(engine, budget)
    assert await wake(engine) == waiting[2:]
    assert await balance(engine, budget) == [(0, 20)]
    await assert_audit_clean(engine, None)


async def test_a_held_job_that_another_budget_refuses_goes_over_to_its_line(
    engine: AsyncEngine, settings: Settings, clock: FakeClock
) -> None:
    hourly = await add_budget(engine, 10, period="hour")
    daily = await add_budget(engine, 20, period="day")
    await submit(engine, settings, **ONE)
    waiting = [await hold(engine, settings), await hold(engine, settings)]
    assert {(await row_of(engine, each)).held_by for each in waiting} == {hourly}
    await clock.advance(timedelta(hours=1))
    assert await wake(engine) == waiting[:1]
    await clock.advance(timedelta(hours=1))
    assert await wake(engine) == []
    row = await row_of(engine, waiting[1])
    assert (row.held_by, row.not_before) == (daily, datetime(2031, 2, 1, tzinfo=UTC))
    await clock.advance(timedelta(hours=10))
    assert await wake(engine) == waiting[1:]
    await assert_audit_clean(engine, None)


async def test_a_job_waits_for_the_budget_that_is_last_to_have_a_new_window(
    engine: AsyncEngine, settings: Settings, clock: FakeClock
) -> None:
    for period in ("hour", "month", "minute"):
        await add_budget(engine, 10, period=period)
    await submit(engine, settings, **ONE)
    assert (await row_of(engine, await hold(engine, settings))).not_before == datetime(2031, 2, 1, tzinfo=UTC)


@pytest.mark.parametrize("how", ["larger than the limit", "a budget without windows", "larger than another's limit"])
async def test_what_could_never_be_let_in_is_rejected_at_once(
    engine: AsyncEngine, settings: Settings, how: str
) -> None:
    if how == "larger than the limit":
        await add_budget(engine, 9, period="day")
    elif how == "a budget without windows":
        await add_budget(engine, 10, period="total")
        await submit(engine, settings, **ONE)
    else:
        await add_budget(engine, 10, period="day")
        await submit(engine, settings, **ONE)
        await add_budget(engine, 5, "output_tokens", "day")
    with pytest.raises(BudgetExhausted):
        await submit(engine, settings, **ONE, on_budget="wait")


async def test_cancel_and_deadline_of_a_held_job_end_it_and_its_waiting(
    engine: AsyncEngine, settings: Settings
) -> None:
    budget = await add_budget(engine, 10, period="month")
    await submit(engine, settings, **ONE)
    cancelled, late = await hold(engine, settings), await hold(engine, settings, deadline_s=0.001)
    async with engine.begin() as conn:
        await cancel(conn, "acme", cancelled)
        assert [each[0] for each in await timekeeping.expire_queued(conn)] == [late]
    for job_id, status in ((cancelled, "cancelled"), (late, "expired")):
        row = await row_of(engine, job_id)
        assert (row.status, row.held_by, row.not_before, row.reservation) == (status, None, None, 0)
    assert await balance(engine, budget) == [(0, 10)]
    await assert_audit_clean(engine, None)


async def test_a_job_that_was_held_pays_the_price_of_its_turn(
    engine: AsyncEngine, settings: Settings, clock: FakeClock
) -> None:
    await set_price(engine, POOL, 0, 1_000_000)
    budget = await add_budget(engine, 12, "cost", "day")
    await submit(engine, settings, count=2, **ONE)
    waiting = await hold(engine, settings)
    await set_price(engine, POOL, 0, 2_000_000)
    await clock.advance(timedelta(days=1))
    assert await wake(engine) == [waiting]
    await finished(engine, waiting, 5)
    assert await balance(engine, budget) == [(0, 12), (10, 0)]
    await assert_audit_clean(engine, None)


async def test_a_keys_budget_holds_its_own_jobs_and_nobody_elses(
    engine: AsyncEngine, settings: Settings, clock: FakeClock
) -> None:
    keys = []
    async with engine.begin() as conn:
        for _ in range(2):
            key, _ = await create_key(conn, "acme", pepper="p", actor="test")
            keys.append(key)
    await add_budget(engine, 10, period="day", key=keys[0])
    shared = await add_budget(engine, 40, period="day")
    modes = [(keys[0], True), (keys[0], False), (keys[1], True), (keys[1], True), (None, True), (None, False)]
    for key, gets_in in modes:
        async with engine.begin() as conn:
            (job,) = await accept(conn, Caller("acme", key), [prepared(settings, **ONE, on_budget="wait")])
        assert (job.nomination is not None) == gets_in
    assert await balance(engine, shared) == [(0, 40)]
    await clock.advance(timedelta(days=1))
    assert len(await wake(engine)) == 2
    await assert_audit_clean(engine, None)


# --- thresholds ------------------------------------------------------------------------------------------------------


async def test_a_threshold_is_told_once_a_window_to_the_webhook_that_asked(
    engine: AsyncEngine, settings: Settings, clock: FakeClock
) -> None:
    budget = await add_budget(engine, 50, period="day")
    hook = {"url": "https://example.com/hook", "events": ["job.succeeded", "budget.threshold"]}

    async def told() -> list[tuple[int, int]]:
        async with engine.connect() as conn:
            rows = await conn.execute(
                text(
                    "SELECT tenant_id, job_id, url, body FROM webhook_deliveries WHERE event_type = 'budget.threshold'"
                )
            )
            found = [(row, msgspec.json.decode(row.body)) for row in rows]
        assert all((row.tenant_id, row.job_id, row.url) == ("acme", None, hook["url"]) for row, _ in found)
        assert all(body["type"] == "budget.threshold" and body["data"]["id"] == str(budget) for _, body in found)
        return sorted((body["data"]["threshold"], body["data"]["reserved"]) for _, body in found)

    jobs = await submit(engine, settings, count=3, **ONE, webhook=hook)
    assert await told() == []
    jobs += await submit(engine, settings, **ONE)
    assert await told() == [], "its job has nowhere to tell it"
    with pytest.raises(BudgetExhausted):
        await submit(engine, settings, count=2, **ONE, webhook=hook)
    assert await told() == [], "what was rolled back is told to nobody"
    jobs += await submit(engine, settings, **ONE, webhook=hook)
    assert await told() == [(80, 50), (100, 50)]
    for job in jobs:
        await finished(engine, job, 0)
    await submit(engine, settings, count=3, **ONE, webhook=hook)
    assert len(await told()) == 2, "once a window and threshold"
    await clock.advance(timedelta(days=1))
    await submit(engine, settings, count=4, **ONE, webhook=hook)
    assert await told() == [(80, 40), (80, 50), (100, 50)]
    await assert_audit_clean(engine, None)


# --- drift -----------------------------------------------------------------------------------------------------------


async def test_drift_is_zero_and_counts_what_leaked(engine: AsyncEngine, settings: Settings) -> None:
    budget = await add_budget(engine, 100)
    await add_budget(engine, 10, "requests")
    done, _ = await submit(engine, settings, count=2, **ONE)
    await finished(engine, done, 3)
    async with engine.begin() as conn:
        assert await drift_of(conn, "acme") == 0
        # The job ended, and what it had reserved stayed.
        await conn.execute(text("UPDATE jobs SET status = 'cancelled', finished_at = now() WHERE status = 'queued'"))
        assert await drift_of(conn, "acme") == 10
        await conn.execute(text("UPDATE budget_windows SET used = used + 3 WHERE budget_id = :id"), {"id": budget})
        assert await drift_of(conn, "acme") == 13
