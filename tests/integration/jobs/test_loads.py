"""What does a process know of a pool's load: what both servers say, what it has accepted since, and the last figures where they are silent?"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.ids import new_id
from app.jobs import leases, loads
from app.jobs.loads import LoadBoard
from app.jobs.states import TIERS
from app.queue.fairness import Terms
from app.queue.streams import JobQueue, Nomination, Room
from app.redis import Redis, RedisError
from app.settings import Settings
from tests.support.jobs import POOL, open_lease, seed, submit_and_nominate

NO_ROOM = Room(0, 0)
COST = 24  # of a job: 16 + 8 tokens


@pytest.fixture
async def queue(engine: AsyncEngine, redis: Redis) -> JobQueue:
    await seed(engine, "acme", "rival")
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    return queue


@pytest.fixture
async def board(engine: AsyncEngine, queue: JobQueue) -> AsyncIterator[LoadBoard]:
    return LoadBoard(engine, lambda _: queue, clock=SystemClock(), timeout_s=5)


async def worker_says(engine: AsyncEngine, *, ttl_s: float = 600, state: str = "ready", **stats: object) -> None:
    async with engine.begin() as conn:
        worker = await open_lease(conn, ttl_s=600)
        await leases.renew(conn, worker, ttl_s=ttl_s, state=state, stats=stats)


async def drain_of(board: LoadBoard) -> tuple[int, float | None]:
    await board.refresh()
    figures = board.figures(POOL)
    assert figures is not None
    return figures.load.num_workers, figures.load.drain_per_s


async def test_workers_that_take_jobs_add_up_and_new_ones_count_as_the_mean(
    engine: AsyncEngine, board: LoadBoard
) -> None:
    assert await drain_of(board) == (0, None)
    await worker_says(engine)
    assert await drain_of(board) == (1, None)
    await worker_says(engine, drain_tokens_per_s=100.0)
    await worker_says(engine, drain_tokens_per_s=300.0, seconds_per_token=0.5, load_s=7.0)
    assert await drain_of(board) == (3, 600.0)
    await worker_says(engine, drain_tokens_per_s=200.0, state="draining")
    await worker_says(engine, drain_tokens_per_s=5000.0, ttl_s=-1)  # its lease ran out
    assert await drain_of(board) == (3, 600.0)
    figures = board.figures(POOL)
    assert figures is not None
    assert (figures.load.seconds_per_token, figures.load_s, figures.per_worker) == (0.5, 7.0, 200.0)


async def test_a_new_worker_counts_as_the_one_that_ended_before(engine: AsyncEngine, board: LoadBoard) -> None:
    await worker_says(engine, drain_tokens_per_s=100.0)
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE workers SET ended_at = now(), state = 'ended'"))
    await worker_says(engine)
    assert await drain_of(board) == (1, 100.0)


async def test_what_was_accepted_counts_until_a_round_has_seen_it(
    engine: AsyncEngine, board: LoadBoard, queue: JobQueue, settings: Settings
) -> None:
    await submit_and_nominate(engine, settings, queue, 3)
    assert board.own_tokens(POOL, "standard", "acme") == 0  # looked for from the next round on
    await board.refresh()
    assert board.own_tokens(POOL, "standard", "acme") == 3 * COST
    with board.take(POOL, "standard", "acme", 100) as hold:
        assert board.own_tokens(POOL, "standard", "acme") == 3 * COST + 100
        hold.keep(50)
    with board.take(POOL, "standard", "acme", 100):
        pass  # refused in the end
    figures = board.figures(POOL)
    assert figures is not None
    assert (figures.load.tier("standard").jobs, figures.load.tier("standard").tokens) == (4, 3 * COST + 50)
    await board.refresh()
    assert board.own_tokens(POOL, "standard", "acme") == 3 * COST


@asynccontextmanager
async def running(board: LoadBoard) -> AsyncIterator[asyncio.Queue[str]]:
    """What tells of each round of the board, which runs."""
    rounds, refresh = asyncio.Queue[str](), board.refresh

    async def told() -> None:
        await refresh()
        rounds.put_nowait("read")

    with patch.object(board, "refresh", told):
        task = asyncio.create_task(board.run())
        try:
            async with asyncio.timeout(30):
                await rounds.get()
                yield rounds
        finally:
            board.close()
            async with asyncio.timeout(30):
                await task


async def test_a_board_that_nobody_asks_reads_seldom_but_at_once_for_the_first_who_does(
    board: LoadBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loads.READ_EVERY_S < loads.UNASKED_EVERY_S <= 1.0, "figures are at most about a second old"
    monkeypatch.setattr(loads, "READ_EVERY_S", 0.05)
    monkeypatch.setattr(loads, "UNASKED_EVERY_S", 3600.0)
    async with running(board) as rounds:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await rounds.get()
        board.own_tokens(POOL, "standard", "acme")
        for _ in range(3):  # and goes on, since more may ask
            await rounds.get()


async def test_a_board_that_nobody_asks_ends_at_once(board: LoadBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "UNASKED_EVERY_S", 3600.0)
    async with running(board):
        pass


async def test_a_round_that_finds_nothing_waiting_asks_redis_once(
    engine: AsyncEngine, board: LoadBoard, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips: list[int] = []
    pipeline = queue.redis.pipeline

    def counted(*args: Any, **options: Any) -> Any:
        trips.append(1)
        return pipeline(*args, **options)

    monkeypatch.setattr(queue.redis, "pipeline", counted)
    await board.refresh()
    assert sum(trips) == 1
    await queue.enqueue([Nomination(new_id(), 1, "batch", "acme", 100)])
    await board.refresh()
    assert sum(trips) == 3, "one more for the tenants"


async def test_without_redis_postgres_is_counted_and_without_both_the_last_figures_stand(
    engine: AsyncEngine, board: LoadBoard, queue: JobQueue, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object) -> None:
        raise RedisError

    async def down() -> None:
        raise OperationalError("SELECT", {}, Exception("down"))

    await submit_and_nominate(engine, settings, queue, 3)
    await board.refresh()
    await submit_and_nominate(engine, settings, queue, 2)
    monkeypatch.setattr(board, "_read_redis", away)
    await board.refresh()
    figures = board.figures(POOL)
    assert figures is not None
    assert (figures.source, figures.load.tier("standard").jobs) == ("postgres", 5)
    monkeypatch.setattr(board, "_workers", down)
    with pytest.raises(OperationalError):
        await board.refresh()
    assert board.figures(POOL) == figures


async def test_of_more_tenants_than_are_looked_at_each_is_believed_to_have_an_equal_part(
    engine: AsyncEngine, board: LoadBoard, queue: JobQueue, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.loads._MAX_ASKED", 1)
    await submit_and_nominate(engine, settings, queue, 3)
    board.own_tokens(POOL, "standard", "acme")
    await board.refresh()
    assert board.own_tokens(POOL, "standard", "acme") == 3 * COST
    assert board.own_tokens(POOL, "standard", "rival") == 3 * COST
    assert board.own_tokens(POOL, "batch", "rival") == 0


async def test_tenants_weights_and_the_tiers_paces_are_known(
    engine: AsyncEngine, board: LoadBoard, queue: JobQueue, settings: Settings
) -> None:
    await worker_says(engine, paces={"standard": 0.1, "batch": 0.5}, slow_paces={"standard": 0.4, "batch": 0.6})
    await worker_says(engine, paces={"standard": 0.3})
    await queue.share({"acme": Terms(4)})
    await submit_and_nominate(engine, settings, queue, 3)
    board.own_tokens(POOL, "standard", "acme")
    board.own_tokens(POOL, "standard", "rival")
    assert board.weight_of(POOL, "standard", "acme") == 1.0, "until a round has looked"
    await board.refresh()
    assert board.weight_of(POOL, "standard", "acme") == 4.0
    assert board.weight_of(POOL, "standard", "rival") == 1.0
    figures = board.figures(POOL)
    assert figures is not None
    assert figures.load.tier("standard").total_weight == 4.0
    assert figures.load.paces == {"standard": pytest.approx(0.2), "batch": 0.5}
    assert figures.load.slow_pace_of("standard") == 0.4
    assert figures.load.slow_pace_of("batch") == 0.75, "never less than half more than the mean"


async def test_what_the_queue_owes_to_others_first_is_known(
    engine: AsyncEngine, board: LoadBoard, queue: JobQueue
) -> None:
    async def nominate(tier: str, tenant: str, jobs: int) -> None:
        await queue.enqueue([Nomination(new_id(), 1, tier, tenant, 100) for _ in range(jobs)])

    await worker_says(engine)
    await queue.share({"rival": Terms(2)})
    await nominate("standard", "acme", 4)
    await nominate("standard", "rival", 1)
    for tenant in ("acme", "rival", "new"):
        board.own_tokens(POOL, "standard", tenant)
    await board.refresh()
    assert [board.owed_tokens(POOL, "standard", each) for each in ("acme", "rival", "new")] == [0, 0, 0]
    await nominate("batch", "rival", 1)
    rooms = {**dict.fromkeys(TIERS, NO_ROOM), "standard": Room(300, 9)}
    assert len(await queue.claim("w", max_jobs=2, room=rooms, lead=1000)) == 2
    await nominate("standard", "rival", 1)
    await board.refresh()
    # Each was given a job of 100, and rival's weight is 2: 50 of work by weight, so 100 in all.
    owed = [board.owed_tokens(POOL, "standard", each) for each in ("acme", "rival", "new")]
    assert owed == [100, 0, 0], "who was never seen begins at the least served"
    figures = board.figures(POOL)
    assert figures is not None
    # The tier has had 200 / its weight 4, batch nothing.
    assert figures.load.owed == {"interactive": 0, "standard": 50, "batch": 0}


async def test_a_tier_whose_tenants_are_all_at_their_caps_is_owed_nothing(
    engine: AsyncEngine, board: LoadBoard, queue: JobQueue
) -> None:
    async def nominate(tier: str, tenant: str, jobs: int) -> None:
        await queue.enqueue([Nomination(new_id(), 1, tier, tenant, 100) for _ in range(jobs)])

    await worker_says(engine)
    await queue.share({"capped": Terms(1, 1)})
    await nominate("batch", "capped", 50)
    rooms = {**dict.fromkeys(TIERS, NO_ROOM), "batch": Room(5000, 50)}
    assert len(await queue.claim("w", max_jobs=9, room=rooms, lead=1000)) == 1
    await nominate("standard", "acme", 20)
    rooms = {**dict.fromkeys(TIERS, NO_ROOM), "standard": Room(5000, 50)}
    assert len(await queue.claim("w", max_jobs=20, room=rooms, lead=1000)) == 20
    await nominate("standard", "acme", 1)
    await board.refresh()
    figures = board.figures(POOL)
    assert figures is not None
    assert figures.load.tiers["batch"].tokens > 4000
    assert figures.load.owed["standard"] == 0, "no claim hands any of it out before one of its tenants' jobs ends"
