"""Whom does a queue remember? Tenants with a counter or an expectation, also those that have nothing in it: looked through in steps."""

from dataclasses import dataclass
from typing import Any

from app.queue.places import PLACES
from app.queue.streams import JobQueue


@dataclass(slots=True)
class MemoryCursor:
    """How far a queue's hashes were looked through: which of them, and Redis' own cursor in it."""

    hash: int = 0
    at: int = 0


async def next_remembered(queue: JobQueue, cursor: MemoryCursor, *, page: int) -> list[str]:
    """The next tenants that the queue remembers, about `page` of them, perhaps none; moves the cursor, at the end to the beginning.

    One that is remembered all the while comes at least once a turn.
    """
    hashes = [queue.keys.mean, *(queue.keys.remembered(place) for place in PLACES)]
    reply: Any = await queue.redis.hscan(hashes[cursor.hash], cursor.at, count=page)
    cursor.at, found = reply
    if cursor.at == 0:
        cursor.hash = (cursor.hash + 1) % len(hashes)
    return [name.decode() for name in found if not name.startswith(b":")]
