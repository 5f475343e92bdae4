"""How does one connection wait for many streams at once? XREAD BLOCK, packed and read without redis-py's way through Python."""

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from app.redis import Redis, RedisError

_SLACK_S = 5.0  # for an answer to come, beyond the time for which Redis was told to wait

Entry = Sequence[
    Any
]  # as Redis gives it: its id, and a list of the name and the value of its field, perhaps of more that say nothing to us


class Wanted:
    """Streams that are waited for, each from an entry on. They are many and few change between two looks: each is packed once."""

    def __init__(self) -> None:
        self._keys: dict[bytes, bytes] = {}
        self._ids: dict[bytes, bytes] = {}  # in the same order

    def __len__(self) -> int:
        """How many."""
        return len(self._keys)

    def ask(self, key: bytes, entry_id: bytes) -> None:
        """Wait for what follows this entry of the stream."""
        if key not in self._keys:
            self._keys[key] = _packed(key)
        self._ids[key] = _packed(entry_id)

    def drop(self, key: bytes) -> None:
        """Wait for nothing of this stream."""
        self._keys.pop(key, None)
        self._ids.pop(key, None)

    def command(self, *, count: int, block_ms: int) -> bytes:
        """The XREAD for all of them."""
        options = (b"XREAD", b"COUNT", b"%d" % count, b"BLOCK", b"%d" % block_ms, b"STREAMS")
        head = b"*%d\r\n" % (len(options) + 2 * len(self._keys))
        return b"".join([head, *map(_packed, options), *self._keys.values(), *self._ids.values()])


def _packed(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


class Doorway:
    """A connection of its own, beside the client's pool: it waits most of its time."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._connection: Any = None  # redis-py's, whose methods have no types

    async def read(self, wanted: Wanted, *, count: int, block_ms: int) -> Sequence[tuple[bytes, Sequence[Entry]]]:
        """New entries of each stream that has some, at most `count` of each, by its key; none after `block_ms`.

        Raises:
            RedisError, OSError, TimeoutError: Redis doesn't answer.
        """
        connection = await self._connected()
        try:
            await connection.send_packed_command([wanted.command(count=count, block_ms=block_ms)], check_health=False)
            # Given a timeout, redis-py takes it for an empty answer and goes on with the connection, then one answer behind.
            async with asyncio.timeout(block_ms / 1000 + _SLACK_S):
                reply: Any = await connection.read_response(disable_decoding=True, timeout=math.inf)
        except BaseException:
            await self.close()
            raise
        return reply or ()

    async def close(self) -> None:
        """Hang up; the next `read` connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    async def _connected(self) -> Any:
        if self._connection is None:
            pool: Any = self._redis.connection_pool
            connection = pool.make_connection()
            await connection.connect()
            self._connection = connection
        return self._connection
