"""How do we look all the time, and mostly in vain, for as little as possible? By one connection, prepared statements, no transactions."""

import asyncio
import math
from collections.abc import Mapping
from typing import Any, Self

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import TextClause
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import QueuePool

from app.db import as_ours, compiled, looking

SPARED = 2  # connections that a pool has to have beside the one that is kept: who holds one may need a second
PLANS_FOR_S = 5.0


class Looks:
    """Single statements that need no transaction, one after the other.

    As a context it keeps one of the engine's connections, anew after an error: a look takes a sixth of the processor time that
    it takes through the pool. Outside of one, or where the pool is too small to spare one, it has a connection out of the pool
    for each look. Statements are planned anew every `PLANS_FOR_S`: a plan made for an empty table reads all of it when it has
    filled, until statistics are taken.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = looking(engine)
        self._turn = asyncio.Lock()
        self._is_kept = False
        self._held: AsyncConnection | None = None
        self._driver: Any = None  # its
        self._cursor: Any = None
        self._planned_at = 0.0

    async def __aenter__(self) -> Self:
        pool = self._engine.pool
        self._is_kept = not isinstance(pool, QueuePool) or pool.size() > SPARED
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_kept = False
        async with self._turn:
            await self._give_back()

    async def rows(self, statement: TextClause, values: Mapping[str, Any] | None = None) -> list[Any]:
        """The rows, by name; committed when they are here.

        Raises:
            DBAPIError: as SQLAlchemy's own statements do. The next look has another connection.
        """
        async with self._turn:
            now = asyncio.get_running_loop().time()
            if self._held is None:
                self._held, self._driver, self._cursor = await self._engine.connect(), None, None
                self._planned_at = -math.inf  # others may have used it
            try:
                if self._driver is None:
                    self._driver = (await self._held.get_raw_connection()).driver_connection
                    self._cursor = self._driver.cursor(row_factory=namedtuple_row)
                if now - self._planned_at >= PLANS_FOR_S:
                    await self._driver.execute("DISCARD PLANS", prepare=False)
                    self._planned_at = now
                await self._cursor.execute(compiled(statement, self._held.dialect), values, prepare=True)
                found: list[Any] = await self._cursor.fetchall()
            except psycopg.Error as error:
                ours = as_ours(error, self._driver, self._held.dialect)
                await self._held.invalidate()
                await self._give_back()
                raise ours from error
            except asyncio.CancelledError:  # its answer may still come: nobody is to take it for his own
                await self._held.invalidate()
                await self._give_back()
                raise
            if not self._is_kept:
                await self._give_back()
            return found

    async def _give_back(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            await held.close()
