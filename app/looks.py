"""How do we look all the time, and mostly in vain, for as little as possible? By one connection, prepared statements, no transactions."""

import asyncio
from collections.abc import Mapping
from typing import Any, Self

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import TextClause
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db import as_ours, compiled, looking


class Looks:
    """Single statements that need no transaction, one after the other.

    As a context it keeps one of the engine's connections, anew after an error: a look takes a sixth of the processor time that
    it takes through the pool. Outside of one it has a connection out of the pool for each look.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = looking(engine)
        self._turn = asyncio.Lock()
        self._is_kept = False
        self._held: AsyncConnection | None = None
        self._driver: Any = None  # its

    async def __aenter__(self) -> Self:
        self._is_kept = True
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
            if self._held is None:
                self._held = await self._engine.connect()
                self._driver = (await self._held.get_raw_connection()).driver_connection
            try:
                cursor = self._driver.cursor(row_factory=namedtuple_row)
                await cursor.execute(compiled(statement, self._held.dialect), values, prepare=True)
                found: list[Any] = await cursor.fetchall()
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
