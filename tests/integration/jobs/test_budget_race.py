"""64 submitters against one budget, with ends, cancels and connections that are killed in mid-transaction: is it ever passed, does it ever leak?"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine, has_lost_connection
from app.errors import BudgetExhausted, NotCancellable, NotFound
from app.jobs import held, store
from app.jobs.cancel import cancel
from app.jobs.finish import Ending, finish
from app.jobs.notices import Used
from app.jobs.prepare import PreparedJob
from app.jobs.submit import Caller, accept
from app.queue.streams import Nomination
from app.quotas.budgets import look
from app.quotas.drift import drift_of
from app.quotas.keys import create_key
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.budgets import add_budget, set_price
from tests.support.dead import CHOICES
from tests.support.jobs import POOL, open_lease, prepared, seed

SUBMITTERS = 64
WORKERS = 6
RACERS = "penstock-racers"
# In one snapshot, by three ways that don't know of each other: the window, the ledger, and what jobs hold and were billed.
POLL = """
    SELECT w.hard_limit, w.used + w.reserved AS by_window,
           (SELECT coalesce(sum(CASE kind WHEN 'reserve' THEN amount WHEN 'release' THEN -amount ELSE 0 END), 0)
            FROM ledger l WHERE l.budget_id = w.budget_id) AS by_ledger,
           (SELECT coalesce(sum(prompt_tokens + n * max_tokens), 0) FROM jobs j
            WHERE j.tenant_id = %(tenant)s AND j.status IN ('queued', 'running') AND j.reservation > 0)
           + (SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) FROM usage u
              WHERE u.tenant_id = %(tenant)s AND u.kind = 'billed') AS by_jobs
    FROM budget_windows w WHERE w.budget_id = %(budget)s
"""


@dataclass
class Race:
    """One round: a tenant of its own, its budget of so many tokens, and all who are at work on it."""

    engine: AsyncEngine
    url: str
    settings: Settings
    random: Random
    tenant: str
    limit: int
    budget: UUID
    keys: list[UUID | None]
    num_accepted: int = 0
    num_refused: int = 0
    num_lost: int = 0
    num_polls: int = 0
    highest: int = 0
    submitting: int = SUBMITTERS
    lease: UUID | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def attempt(self, work: Callable[[], Awaitable[None]]) -> None:
        """What the killer breaks off is broken off; everything else has to be right."""
        try:
            await work()
        except DBAPIError as error:
            if not has_lost_connection(error):
                raise
            self.num_lost += 1

    def body(self) -> dict[str, object]:
        draw = self.random
        return {
            "prompt": "x" * draw.randint(1, 6),
            "max_tokens": draw.randint(1, 12),
            "n": draw.choice([1, 1, 2]),
            "on_budget": draw.choice(["reject", "reject", "truncate", "wait"]),
        }

    async def submitter(self, key: UUID | None, jobs: list[PreparedJob]) -> None:
        await self.ready.wait()
        for job in jobs:
            await self.attempt(lambda job=job: self.submit(key, job))  # type: ignore[misc]
            if self.random.random() < 0.2:
                await self.attempt(lambda job=job: self.cancel(job.id))  # type: ignore[misc]
        self.submitting -= 1

    async def submit(self, key: UUID | None, job: PreparedJob) -> None:
        try:
            async with self.engine.begin() as conn:
                await accept(conn, Caller(self.tenant, key), [job])
            self.num_accepted += 1
        except BudgetExhausted:
            self.num_refused += 1

    async def cancel(self, job_id: UUID) -> None:
        with contextlib.suppress(NotCancellable, NotFound):
            async with self.engine.begin() as conn:
                await cancel(conn, self.tenant, job_id)

    async def worker(self) -> None:
        while await self.has_work():
            await self.attempt(self.run_some)
            await asyncio.sleep(0)

    async def has_work(self) -> bool:
        if self.submitting:
            return True
        query = text("""SELECT 1 FROM jobs WHERE tenant_id = :tenant
                        AND (status = 'running' OR status = 'queued' AND reservation > 0) LIMIT 1""")
        try:
            async with self.engine.connect() as conn:
                return await conn.scalar(query, {"tenant": self.tenant}) is not None
        except DBAPIError:  # its connection was cut, or is found to be cut when it is given back
            return True

    async def run_some(self) -> None:
        """Start what waits, and end what runs: what a kill left running, too."""
        assert self.lease is not None
        async with self.engine.begin() as conn:
            rows = await conn.execute(
                text("""SELECT id, gen, tier FROM jobs WHERE tenant_id = :tenant AND status = 'queued' AND reservation > 0
                        ORDER BY random() LIMIT 4"""),
                {"tenant": self.tenant},
            )
            nominated = [Nomination(row.id, row.gen, row.tier, self.tenant, 1) for row in rows]
            await store.start(conn, self.lease, nominated)
        async with self.engine.begin() as conn:
            rows = await conn.execute(
                text("""SELECT id, attempt, prompt_tokens, n * max_tokens AS output, cancel_requested_at FROM jobs
                        WHERE tenant_id = :tenant AND status = 'running' ORDER BY random() LIMIT 4"""),
                {"tenant": self.tenant},
            )
            await finish(conn, [self.ending(row) for row in rows])

    def ending(self, row: object) -> Ending:
        used = Used(row.prompt_tokens, 0, self.random.randint(0, row.output))  # type: ignore[attr-defined]
        if self.random.random() < 0.2:
            return Ending(row.id, row.attempt, "failed", error={"code": "x"}, billed=False, used=used)  # type: ignore[attr-defined]
        return Ending(row.id, row.attempt, "succeeded", choices=CHOICES, used=used)  # type: ignore[attr-defined]

    async def keeper(self) -> None:
        while self.submitting:
            await self.attempt(self.wake)
            await asyncio.sleep(0.005)

    async def wake(self) -> None:
        async with self.engine.connect() as conn:
            ready = await held.ready_budgets(conn)
        for budget_id in ready:
            async with self.engine.begin() as conn:
                await held.wake_line(conn, budget_id)

    async def killer(self, admin: psycopg.AsyncConnection) -> None:
        """Cut a connection that is in the middle of a transaction, again and again."""
        while self.submitting:
            await asyncio.sleep(self.random.uniform(0.002, 0.03))
            await admin.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name = %s AND datname = current_database() AND xact_start IS NOT NULL
                   ORDER BY random() LIMIT 1""",
                (RACERS,),
            )

    async def poll(self, conn: psycopg.AsyncConnection) -> None:
        while True:
            row = await (await conn.execute(POLL, {"tenant": self.tenant, "budget": self.budget})).fetchone()
            if row is not None:
                limit, *ways = (int(each) for each in row)
                assert limit == self.limit
                assert max(ways) <= self.limit, ways
                self.highest = max(self.highest, *ways)
            self.num_polls += 1
            await asyncio.sleep(0.001)


@pytest.fixture
async def racers(settings: Settings) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(settings.model_copy(update={"database_pool_size": 80}), application_name=RACERS)
    yield engine
    await engine.dispose()


async def make_race(engine: AsyncEngine, racers: AsyncEngine, settings: Settings, number: int) -> Race:
    random = Random(number)
    tenant, limit = f"t{number}", random.randint(40, 300)
    await seed(engine, tenant)
    async with engine.begin() as conn:
        made = [await create_key(conn, tenant, pepper="p", actor="test") for _ in range(2)]
    keys = [None, *[key for key, _ in made]]
    # Others stand before and behind it in the order of locks, some for one key only.
    await add_budget(engine, 10**6, "requests", tenant=tenant)
    await add_budget(engine, random.randint(20, 200), "output_tokens", "month", tenant=tenant, key=keys[1])
    budget = await add_budget(engine, limit, "total_tokens", random.choice(["month", "total"]), tenant=tenant)
    await add_budget(engine, random.randint(100, 2000), "cost", "month", tenant=tenant)
    assert settings.database_url
    race = Race(racers, settings.database_url, settings, random, tenant, limit, budget, keys)
    async with engine.begin() as conn:
        race.lease = await open_lease(conn, ttl_s=3600)
    return race


async def run(race: Race, engine: AsyncEngine) -> None:
    connect = psycopg.AsyncConnection.connect
    async with (
        await connect(race.url, autocommit=True) as watching,
        await connect(race.url, autocommit=True) as killing,
    ):
        polling = asyncio.create_task(race.poll(watching))
        crowd = [
            race.submitter(
                race.random.choice(race.keys),
                [prepared(race.settings, **race.body()) for _ in range(race.random.randint(1, 2))],
            )
            for _ in range(SUBMITTERS)
        ]
        work = [race.worker() for _ in range(WORKERS)]
        tasks = [asyncio.create_task(each) for each in [*crowd, *work, race.keeper(), race.killer(killing)]]
        race.ready.set()
        try:
            await asyncio.gather(*tasks)
        finally:
            for each in tasks:
                each.cancel()
            polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await polling
    async with engine.begin() as conn:
        rows = await conn.execute(
            text("SELECT id FROM jobs WHERE tenant_id = :tenant AND status = 'queued'"), {"tenant": race.tenant}
        )
        for row in rows.all():  # those that still wait for a budget
            await cancel(conn, race.tenant, row.id)


async def assert_settled(race: Race, engine: AsyncEngine) -> None:
    """used = what was really billed, reserved = 0, in each of its budgets."""
    async with engine.connect() as conn:
        real = (
            await conn.execute(
                text("""SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) AS tokens, count(*) AS requests,
                               coalesce(sum(cost_micros), 0) AS cost FROM usage WHERE tenant_id = :tenant AND kind = 'billed'"""),
                {"tenant": race.tenant},
            )
        ).one()
        found = {each.metric: (each.used, each.reserved) for each in await look(conn, race.tenant, None)}
        assert found == {"total_tokens": (real.tokens, 0), "requests": (real.requests, 0), "cost": (real.cost, 0)}
        for key in race.keys:
            assert all(each.reserved == 0 for each in await look(conn, race.tenant, key))
        assert await drift_of(conn, race.tenant) == 0


async def race_rounds(
    engine: AsyncEngine, racers: AsyncEngine, settings: Settings, rounds: int, first: int = 0
) -> None:
    await seed(engine)
    await set_price(engine, POOL, 700_000, 1_300_000)
    races = []
    for number in range(rounds):
        if number == rounds // 2:  # the second half without the database's own guard: it must never be the only one
            async with engine.begin() as conn:
                await conn.execute(text("ALTER TABLE budget_windows DROP CONSTRAINT ck_budget_windows_never_over"))
        race = await make_race(engine, racers, settings, first + number)
        await run(race, engine)
        await assert_settled(race, engine)
        races.append(race)
    assert all(race.num_polls > 1 for race in races)
    assert all(0 < race.highest <= race.limit for race in races)
    assert sum(race.num_accepted for race in races) > 0
    assert sum(race.num_refused for race in races) > 0
    assert sum(race.num_lost for race in races) > 0
    await assert_audit_clean(engine, None)


async def test_no_race_passes_a_budget_or_leaks_from_it(
    engine: AsyncEngine, racers: AsyncEngine, settings: Settings
) -> None:
    await race_rounds(engine, racers, settings, 6)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(1000, 1200, 50))
async def test_in_200_rounds_no_race_passes_a_budget_or_leaks_from_it(
    engine: AsyncEngine, racers: AsyncEngine, settings: Settings, first: int
) -> None:
    await race_rounds(engine, racers, settings, 50, first)
