"""Does somebody wait for a lock of Postgres' now? Tests of what two transactions do to each other go on from there."""

import asyncio

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import looking

_WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")


async def until_waiting(engine: AsyncEngine, task: "asyncio.Task[object]") -> None:
    """Until somebody waits for a lock, or the task has ended. A transaction would see what it saw at first for ever, so each look is its own."""
    looks = looking(engine)
    async with asyncio.timeout(20):
        while not task.done():
            async with looks.connect() as conn:
                if await conn.scalar(_WAITING):
                    return
            await asyncio.sleep(0.01)
