"""Budgets, prices and a clock of the database that only the test moves."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import new_id
from app.quotas.tables import budgets

# Found before pg_catalog's by the search path; columns' defaults keep the real one.
_FAKE = (
    "CREATE SCHEMA fake",
    "CREATE TABLE fake.clock (at timestamptz NOT NULL)",
    "CREATE FUNCTION fake.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM fake.clock'",
    "CREATE FUNCTION fake.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM fake.clock'",
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = fake, public, pg_catalog', current_database()); END $$",
)


@dataclass
class FakeClock:
    """Postgres' now() and statement_timestamp() for all later sessions of this database."""

    engine: AsyncEngine
    at: datetime

    @classmethod
    async def install(cls, engine: AsyncEngine, at: datetime) -> "FakeClock":
        async with engine.begin() as conn:
            for statement in _FAKE:
                await conn.execute(text(statement))
            await conn.execute(text("INSERT INTO fake.clock VALUES (:at)"), {"at": at})
        await engine.dispose()
        return cls(engine, at)

    async def advance(self, by: timedelta) -> None:
        self.at += by
        async with self.engine.begin() as conn:
            await conn.execute(text("UPDATE fake.clock SET at = :at"), {"at": self.at})


async def add_budget(
    engine: AsyncEngine, limit: int, metric: str = "total_tokens", period: str = "total", *, tenant: str = "acme",
    key: UUID | None = None,
) -> UUID:  # fmt: skip
    budget_id = new_id()
    async with engine.begin() as conn:
        await conn.execute(
            budgets.insert().values(
                id=budget_id, tenant_id=tenant, api_key_id=key, metric=metric, period=period, hard_limit=limit
            )
        )
    return budget_id


async def set_limit(engine: AsyncEngine, budget_id: UUID, limit: int) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            text("UPDATE budgets SET hard_limit = :limit WHERE id = :id"), {"limit": limit, "id": budget_id}
        )


async def retire(engine: AsyncEngine, budget_id: UUID) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE budgets SET retired_at = now() WHERE id = :id"), {"id": budget_id})


async def set_price(engine: AsyncEngine, model: str, input_price: int, output_price: int) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            text("UPDATE models SET input_price = :input, output_price = :output WHERE name = :model"),
            {"model": model, "input": input_price, "output": output_price},
        )


async def balance(engine: AsyncEngine, budget_id: UUID) -> list[tuple[int, int]]:
    """(used, reserved) of each of the budget's windows, oldest first."""
    async with engine.connect() as conn:
        rows = await conn.execute(
            text("SELECT used, reserved FROM budget_windows WHERE budget_id = :id ORDER BY window_start"),
            {"id": budget_id},
        )
        return [(row.used, row.reserved) for row in rows]
