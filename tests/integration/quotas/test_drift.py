"""Is a budget that differs from its ledger found, though each round compares a few tenants only?"""

from contextlib import suppress
from uuid import UUID

import pytest
from prometheus_client import generate_latest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.clock import SystemClock
from app.quotas import drift
from app.settings import Settings
from tests.support.budgets import add_budget
from tests.support.jobs import seed, submit
from workers.maintenance import meters
from workers.maintenance.meters import Meters

TENANTS = [f"tenant-{number:02}" for number in range(12)]
ROUNDS = 6  # of a whole pass
EVERY_S = drift.PASS_S / ROUNDS


@pytest.fixture(autouse=True)
async def in_the_row(engine: AsyncEngine, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[str, UUID]:
    """Tenants with a budget and a job each; rounds that do no more than they have to."""
    monkeypatch.setattr(meters, "_COMPARE_S", 0.0)
    await seed(engine, *TENANTS)
    made = {tenant: await add_budget(engine, 1000, tenant=tenant) for tenant in TENANTS}
    for tenant in TENANTS:
        await submit(engine, settings, tenant=tenant)
    return made


async def test_a_drift_is_found_within_one_pass_and_is_gone_when_it_is_mended(
    engine: AsyncEngine, in_the_row: dict[str, UUID]
) -> None:
    last = in_the_row[TENANTS[-1]]
    await leak(engine, last, 13)
    mine = Meters()
    found = []
    for _ in range(ROUNDS):
        await a_round(mine, engine)
        found.append(shown(mine))
    assert found == [0, 0, 0, 0, 0, 13]
    await leak(engine, last, -13)
    await a_round(mine, engine)
    assert shown(mine) == 0, "a known drift is looked at again in each round"


async def test_two_processes_share_the_row_and_a_restart_forgets_nothing(engine: AsyncEngine) -> None:
    for _ in range(ROUNDS // 2):
        await a_round(Meters(), engine)
        await a_round(Meters(), engine)
    async with engine.connect() as conn:
        compared = await conn.scalars(text("SELECT tenant_id FROM budget_comparisons WHERE compared_at IS NOT NULL"))
        assert sorted(compared) == TENANTS
        stale = drift.Waiting(TENANTS[0], None, 0)
        assert not await drift.begin(conn, stale), "somebody else had the turn meanwhile"


async def test_a_comparison_that_fails_holds_up_no_other(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = drift.drift_of

    async def failing(conn: AsyncConnection, tenant_id: str) -> int:
        if tenant_id == TENANTS[0]:
            raise TimeoutError
        return await real(conn, tenant_id)

    monkeypatch.setattr(drift, "drift_of", failing)
    for number in range(ROUNDS + 1):
        with pytest.raises(TimeoutError) if number == 0 else suppress(TimeoutError):
            await a_round(Meters(), engine)
    async with engine.connect() as conn:
        compared = await conn.scalars(text("SELECT tenant_id FROM budget_comparisons WHERE compared_at IS NOT NULL"))
        assert sorted(compared) == TENANTS[1:]


async def test_while_there_is_time_a_round_compares_all(
    engine: AsyncEngine, in_the_row: dict[str, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "_COMPARE_S", 60.0)
    await leak(engine, in_the_row[TENANTS[-1]], 7)
    mine = Meters()
    await a_round(mine, engine)
    assert shown(mine) == 7


async def a_round(mine: Meters, engine: AsyncEngine) -> None:
    assert await mine.compare(engine, SystemClock(), EVERY_S) == 0


async def leak(engine: AsyncEngine, budget: UUID, tokens: int) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            text("UPDATE budget_windows SET used = used + :tokens WHERE budget_id = :id"),
            {"tokens": tokens, "id": budget},
        )


def shown(mine: Meters) -> int:
    lines = generate_latest(mine.registry).decode().splitlines()
    (line,) = [each for each in lines if each.startswith("penstock_budget_drift_tokens ")]
    return int(float(line.split()[1]))
