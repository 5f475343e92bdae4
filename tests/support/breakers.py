"""Attempts that tell a model's breaker something, written as the worker would have."""

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import new_id
from app.jobs.leases import Incarnation, end, register

_JOBS = text("""
    INSERT INTO jobs (id, tenant_id, pool, model, tier, status, gen, attempt, prompt_tokens, max_tokens, finished_at)
    SELECT unnest(CAST(:ids AS uuid[])), 'acme', :model, :model, 'standard', 'cancelled', 1, 1, 1, 1, now()
""")
_ATTEMPTS = text("""
    INSERT INTO attempts (job_id, attempt, incarnation, outcome, ended_at)
    SELECT unnest(CAST(:ids AS uuid[])), 1, :incarnation, :outcome, statement_timestamp() - make_interval(secs => :ago)
""")


async def tell(
    engine: AsyncEngine, outcome: str, *, count: int = 1, model: str = "tiny", ago_s: float = 0.0, lives: bool = True
) -> UUID:
    """`count` attempts of one new worker that ended so, `ago_s` seconds ago; the worker lives on, or has ended."""
    incarnation = new_id()
    ids = [new_id() for _ in range(count)]
    async with engine.begin() as conn:
        await register(conn, Incarnation(incarnation, model, model, "host", 1, "cpu", "hash"), ttl_s=600)
        await conn.execute(_JOBS, {"ids": ids, "model": model})
        await conn.execute(_ATTEMPTS, {"ids": ids, "incarnation": incarnation, "outcome": outcome, "ago": ago_s})
        if not lives:
            await end(conn, incarnation)
    return incarnation


async def deaths(engine: AsyncEngine, count: int, *, model: str = "tiny", ago_s: float = 0.0) -> None:
    """So many engines died, each with some jobs in hand."""
    for _ in range(count):
        await tell(engine, "engine_crash", count=4, model=model, ago_s=ago_s, lives=False)


async def wind(engine: AsyncEngine, seconds: float) -> None:
    """Let time pass for the breakers: all that they go by happened so much earlier."""
    for table, columns in {
        "breakers": ("since", "retry_at"), "attempts": ("ended_at",), "workers": ("ended_at",),
    }.items():  # fmt: skip
        changes = ", ".join(f"{name} = {name} - make_interval(secs => :seconds)" for name in columns)
        async with engine.begin() as conn:
            await conn.execute(text(f"UPDATE {table} SET {changes}"), {"seconds": seconds})
