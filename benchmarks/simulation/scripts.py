"""How are millions of calls made in minutes? The queue's own scripts, over one connection that blocks.

Between two calls of a simulation there is nothing to wait for, so an event loop would only cost. `JobQueue` stays what it is: it gets a
client that knows what a day needs and nothing else.
"""

import re
from collections import Counter, deque
from typing import Any

from redis import ConnectionPool

_TITLE = re.compile(r"^-- (\w+): ", re.MULTILINE)  # of the script's first line; what is common to all stands before it
_MOST_OWED = 100  # replies that may wait in the socket


class BlockingScripts:
    """A client for `JobQueue`: scripts and HGETALL. Counts the scripts' calls.

    Replies that can be foreseen aren't waited for: they are read, and compared, before the next one that can't. Redis runs the calls of one
    connection in their order, so nothing else changes.
    """

    def __init__(self, url: str) -> None:
        self._connection: Any = ConnectionPool.from_url(url, protocol=2).get_connection()
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
        """Read what was foreseen.

        Raises:
            AssertionError: Redis says otherwise.
        """
        while self._owed:
            name, foreseen = self._owed.popleft()
            reply = self._connection.read_response()
            if reply != foreseen:
                raise AssertionError(f"{name} returned {reply}, not {foreseen}")

    def run(self, name: str, digest: bytes, keys: list[str], args: list[Any]) -> Any:
        """One call, and its reply."""
        self.calls[name] += 1
        self._connection.send_command("EVALSHA", digest, len(keys), *keys, *args)
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
        self._connection.send_command("HGETALL", key)
        self.settle()
        reply = self._connection.read_response()
        return dict(zip(reply[::2], reply[1::2], strict=True))

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()


class BlockingScript:
    """One script."""

    def __init__(self, client: BlockingScripts, name: str, digest: bytes) -> None:
        self._client, self._name, self._digest = client, name, digest

    async def __call__(self, keys: list[str], args: list[Any]) -> Any:
        """Run it."""
        return self._client.run(self._name, self._digest, keys, args)
