"""What if Postgres refuses what is done to one job of many? The others must not wait for it."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import is_outage
from app.telemetry import emit

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Part = TypeVar("Part")


async def all_or_apart(
    conn: AsyncConnection,
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Awaitable[Part]],
    name: Callable[[Item], str],
) -> list[Part]:
    """What `work` gives for all items at once, in the caller's transaction; where Postgres refuses that, for ever smaller parts of them.

    An item that is refused by itself is left as it is, and logged by `name` as an error: something of it is broken, and only it. Parts lock
    their budgets one after the other, which may deadlock with others: then Postgres ends one of the two, and it comes again.

    Raises:
        DBAPIError: Postgres is away, or overtaxed.
    """
    if not items:
        return []
    try:
        async with conn.begin_nested():
            return [await work(items)]
    except DBAPIError as error:
        if is_outage(error):
            raise
        if len(items) == 1:
            emit(log, logging.ERROR, "job_stuck", job=name(items[0]), error=error)
            return []
    half = len(items) // 2
    return [
        *await all_or_apart(conn, items[:half], work, name),
        *await all_or_apart(conn, items[half:], work, name),
    ]
