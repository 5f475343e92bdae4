"""How are millions of calls made in minutes? The queue's own scripts, over one connection that blocks.

Between two calls of a simulation there is nothing to wait for, so an event loop would only cost. `JobQueue` stays what it is: it gets a
client that knows what a day needs and nothing else.
"""

import re
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from redis import ConnectionPool

_TITLE = re.compile(r"^-- (\w+): ", re.MULTILINE)  # of the script's first line; what is common to all stands before it
_MOST_OWED = 100  # replies that may wait in the socket


class BlockingScripts:
    """A client for `JobQueue`: scripts, HGETALL and HMGET. Counts the scripts' calls.

    Calls whose replies can be foreseen are sent together with the next one that can't; their replies are read, and compared, before its
    own. Redis runs the calls of one connection in their order, so nothing else changes.
    """

    def __init__(self, url: str) -> None:
        self._connection: Any = ConnectionPool.from_url(url, protocol=2).get_connection()
        self._unsent: list[bytes] = []
        self._owed: deque[tuple[str, Any]] = deque()
        self._foreseen: Any = None
        self.calls: Counter[str] = Counter()  # by what their first line says

    def register_script(self, source: str) -> "BlockingScript":
        """Load it."""
        self._connection.send_command("SCRIPT", "LOAD", source)
        digest = self._connection.read_response()
        return BlockingScript(self, _TITLE.findall(source)[-1], digest)

    def foresee(self, reply: Any) -> None:
        """The next call's reply will be this one: it isn't waited for."""
        self._foreseen = reply

    def settle(self) -> None:
        """Send what wasn't sent, and read what was foreseen.

        Raises:
            AssertionError: Redis says otherwise.
        """
        if self._unsent:
            self._connection.send_packed_command([b"".join(self._unsent)])
            self._unsent.clear()
        while self._owed:
            name, foreseen = self._owed.popleft()
            reply = self._connection.read_response()
            if reply != foreseen:
                raise AssertionError(f"{name} returned {reply}, not {foreseen}")

    def run(self, name: str, digest: bytes, keys: list[str], args: list[Any]) -> Any:
        """One call, and its reply."""
        self.calls[name] += 1
        self._unsent.append(_packed(["EVALSHA", digest, len(keys), *keys, *args]))
        if self._foreseen is None:
            self.settle()
            return self._connection.read_response()
        foreseen, self._foreseen = self._foreseen, None
        self._owed.append((name, foreseen))
        if len(self._owed) >= _MOST_OWED:
            self.settle()
        return foreseen

    async def hgetall(self, key: str) -> dict[bytes, bytes]:
        """A whole hash."""
        self._unsent.append(_packed(["HGETALL", key]))
        self.settle()
        reply = self._connection.read_response()
        return dict(zip(reply[::2], reply[1::2], strict=True))

    async def hmget(self, key: str, fields: list[str]) -> list[bytes | None]:
        """Some fields of a hash."""
        self._unsent.append(_packed(["HMGET", key, *fields]))
        self.settle()
        reply: list[bytes | None] = self._connection.read_response()
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()


def _packed(parts: Iterable[Any]) -> bytes:
    """A command in the protocol's words; redis-py's own packing takes as long as the script."""
    texts = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"*%d\r\n" % len(texts) + b"".join([b"$%d\r\n%b\r\n" % (len(text), text) for text in texts])


class BlockingScript:
    """One script."""

    def __init__(self, client: BlockingScripts, name: str, digest: bytes) -> None:
        self._client, self._name, self._digest = client, name, digest

    async def __call__(self, keys: list[str], args: list[Any]) -> Any:
        """Run it."""
        return self._client.run(self._name, self._digest, keys, args)
