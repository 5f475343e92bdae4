"""Does a model's breaker follow what became of its attempts, on a real Postgres, whoever else keeps it?"""

import asyncio
from random import Random

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.errors import UnknownModel
from app.jobs.breaker import Rules
from app.jobs.breakers import BreakerBoard, Changed, Standing, keep, set_mode, show, standings, take_probe
from app.redis import Redis
from app.settings import Settings
from tests.support.breakers import deaths, tell, wind
from tests.support.jobs import seed
from workers.maintenance.keeper import Keeper

RULES = Rules.of(Settings())


@pytest.fixture(autouse=True)
async def model(engine: AsyncEngine) -> None:
    await seed(engine)


async def look(engine: AsyncEngine) -> list[Changed]:
    async with engine.begin() as conn:
        return await keep(conn, RULES)


async def state(engine: AsyncEngine) -> str:
    async with engine.connect() as conn:
        return (await show(conn, "tiny")).shown


async def opened(engine: AsyncEngine) -> None:
    await deaths(engine, RULES.min_attempts)
    assert [each.after for each in await look(engine)] == ["open"]


async def half_opened(engine: AsyncEngine) -> None:
    await opened(engine)
    await wind(engine, RULES.open_s + 1)
    assert [(each.before, each.after) for each in await look(engine)] == [("open", "half_open")]


async def test_deaths_open_it_and_time_lets_probes_in_and_successes_close_it(engine: AsyncEngine) -> None:
    assert await look(engine) == []
    await half_opened(engine)
    assert await look(engine) == []
    await tell(engine, "succeeded", count=RULES.probes)
    (closed,) = await look(engine)
    assert (closed.before, closed.after, closed.evidence.good) == ("half_open", "closed", RULES.probes)
    assert await look(engine) == []
    # What opened it is forgotten: it takes as much again.
    await deaths(engine, RULES.min_attempts - 1)
    assert await look(engine) == []
    await deaths(engine, 1)
    assert [each.after for each in await look(engine)] == ["open"]


async def test_a_death_in_half_open_opens_it_anew(engine: AsyncEngine) -> None:
    await half_opened(engine)
    await deaths(engine, 1)
    assert [(each.before, each.after) for each in await look(engine)] == [("half_open", "open")]
    assert await look(engine) == []


async def test_the_death_of_an_engine_counts_once_however_many_jobs_it_had(engine: AsyncEngine) -> None:
    for outcome in ("engine_crash", "bystander", "upstream_away"):
        await tell(engine, outcome, count=100, lives=False)
    assert await look(engine) == []
    async with engine.connect() as conn:
        assert await standings(conn) == []
    await tell(engine, "bystander", count=10, lives=False)
    await tell(engine, "engine_crash", count=10, lives=False)
    (changed,) = await look(engine)
    assert (changed.after, changed.evidence.bad) == ("open", 5)


async def test_streams_that_break_together_are_one_event(engine: AsyncEngine) -> None:
    incarnation = await tell(engine, "transient_error", count=64)
    assert await look(engine) == []
    for second in range(1, 5):
        async with engine.begin() as conn:
            await conn.execute(
                text(
                    "INSERT INTO attempts (job_id, attempt, incarnation, outcome, ended_at) SELECT job_id, :attempt, "
                    "incarnation, outcome, ended_at - make_interval(secs => :second) FROM attempts "
                    "WHERE incarnation = :incarnation AND attempt = 1 LIMIT 8"
                ),
                {"attempt": second + 1, "second": second, "incarnation": incarnation},
            )
    assert [each.evidence.bad for each in await look(engine)] == [5]


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "expired", "drained", "worker_lost"])
async def test_what_is_not_the_models_fault_does_not_count(engine: AsyncEngine, outcome: str) -> None:
    for _ in range(8):
        await tell(engine, outcome, count=4, lives=False)
    assert await look(engine) == []
    await deaths(engine, RULES.min_attempts)
    (changed,) = await look(engine)
    assert (changed.evidence.bad, changed.evidence.good) == (RULES.min_attempts, 0)


async def test_deaths_among_many_successes_or_long_ago_leave_it_closed(engine: AsyncEngine) -> None:
    await deaths(engine, 20, ago_s=RULES.window_s + 1)
    await deaths(engine, 5)
    await tell(engine, "succeeded", count=3)
    await tell(engine, "succeeded", count=3)
    assert await look(engine) == []


async def test_another_models_fate_is_its_own(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO models SELECT 'other', 'other', tokenizer_hash, model_hash, max_model_len, vocab_size FROM models"
            )
        )
    await tell(engine, "succeeded", count=50, model="other")
    await opened(engine)
    async with engine.connect() as conn:
        assert [each.model for each in await standings(conn)] == ["tiny"]


async def test_of_two_keepers_at_once_one_makes_the_change(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    keepers = [Keeper(settings, SystemClock(), engine, redis, Random(i)) for i in range(4)]
    await deaths(engine, RULES.min_attempts)
    assert sorted(await asyncio.gather(*[each.breakers() for each in keepers])) == [0, 0, 0, 1]
    await wind(engine, RULES.open_s + 1)
    assert sorted(await asyncio.gather(*[each.breakers() for each in keepers])) == [0, 0, 0, 1]
    async with engine.connect() as conn:
        (standing,) = await standings(conn)
    assert (standing.state, standing.probes_left) == ("half_open", RULES.probes)


async def test_a_keeper_that_comes_second_changes_nothing(engine: AsyncEngine) -> None:
    await opened(engine)
    await wind(engine, RULES.open_s + 1)
    async with engine.connect() as first:
        assert len(await keep(first, RULES)) == 1
        second = asyncio.create_task(look(engine))
        async with asyncio.timeout(20), engine.connect() as conn:
            while not await conn.scalar(
                text(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            ):
                await conn.rollback()
                await asyncio.sleep(0.01)
        await first.commit()
    assert await second == [], "it had judged the breaker as it was before"
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT version FROM breakers")) == 2


async def test_probes_are_counted_exactly_whoever_asks_at_once(engine: AsyncEngine) -> None:
    await half_opened(engine)
    gate = asyncio.Event()

    async def submit() -> Standing | None:
        async with engine.begin() as conn:
            await gate.wait()
            return await take_probe(conn, "tiny")

    asking = [asyncio.create_task(submit()) for _ in range(8)]
    gate.set()
    answers = await asyncio.gather(*asking)
    assert answers.count(None) == RULES.probes
    refused = [each for each in answers if each is not None]
    assert all(each.shown == "half_open" and each.is_refusing for each in refused)
    # No verdict comes: more probes after a while, not before.
    assert await look(engine) == []
    await wind(engine, RULES.open_s + 1)
    await look(engine)
    async with engine.begin() as conn:
        assert await take_probe(conn, "tiny") is None


async def test_a_probe_that_is_rolled_back_is_not_used_up(engine: AsyncEngine) -> None:
    await half_opened(engine)
    async with engine.connect() as conn:
        for _ in range(RULES.probes):
            assert await take_probe(conn, "tiny") is None
        await conn.rollback()
    async with engine.connect() as conn:
        assert (await show(conn, "tiny")).probes_left == RULES.probes


async def test_with_its_last_worker_gone_for_long_it_closes(engine: AsyncEngine) -> None:
    await half_opened(engine)
    await wind(engine, RULES.window_s)
    assert [each.after for each in await look(engine)] == ["closed"]


class HandClock:
    """Time that stands still until it is moved."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> float:
        return self.seconds


async def test_a_process_looks_at_most_every_half_second(engine: AsyncEngine) -> None:
    clock = HandClock()
    board = BreakerBoard(engine, clock=clock, timeout_s=10)
    assert await board.standing("tiny") is None
    await opened(engine)
    clock.seconds = 0.4
    assert await board.standing("tiny") is None
    clock.seconds = 0.5
    found = await asyncio.gather(*[board.standing("tiny") for _ in range(8)])
    assert [each is not None and each.is_refusing for each in found] == [True] * 8
    assert (
        BreakerBoard.TTL_S
        < 1
        <= min(each.ge for each in Settings.model_fields["breaker_open_s"].metadata if hasattr(each, "ge"))
    ), "no breaker goes from closed to half-open unseen"


async def test_an_operators_word_goes_before_the_keepers_and_is_audited(engine: AsyncEngine) -> None:
    await opened(engine)
    async with engine.begin() as conn:
        assert (await set_mode(conn, "tiny", "closed", actor="op")).shown == "closed"
        assert await take_probe(conn, "tiny") is None
        assert (await set_mode(conn, "tiny", "open", actor="op")).is_refusing
        assert await take_probe(conn, "tiny") is not None
        assert (await set_mode(conn, "tiny", "auto", actor="op")).shown == "open"
        with pytest.raises(UnknownModel, match="unheard-of"):
            await set_mode(conn, "unheard-of", "open", actor="op")
        actions = (await conn.execute(text("SELECT action FROM audit_log WHERE actor = 'op' ORDER BY id"))).scalars()
        assert list(actions) == ["breaker.closed", "breaker.open", "breaker.auto"]
