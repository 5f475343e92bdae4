"""How do we talk to Redis? One client a process, scripts loaded by digest."""

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.settings import Settings

__all__ = ["Redis", "RedisError", "ResponseError", "Scripts", "connection_options", "create_redis"]


def create_redis(settings: Settings) -> Redis:
    """The process's client. Replies are bytes; a command that fails on a stale connection is tried once more.

    Raises:
        Misconfigured: no Redis is configured, or not as an address of one.
    """
    client = Redis.from_url(
        settings.required_redis_url,
        **connection_options(settings),
        # Every script is idempotent, so that a reply that got lost may be asked for again.
        retry=Retry(NoBackoff(), 1),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
        protocol=2,
    )
    pool = client.connection_pool
    pool.connection_class = type("Connection", (_ToldOfItsEnd, _PackedInC, pool.connection_class), {})
    return client


def connection_options(settings: Settings) -> dict[str, Any]:
    """How long a client of redis-py waits, and how it notices that nobody is there any more.

    Keepalive is TCP's: redis-py takes no such option for a unix socket, whose other end can't vanish unnoticed.
    """
    options = {
        "socket_timeout": settings.redis_timeout_s, "socket_connect_timeout": settings.redis_timeout_s,
        "health_check_interval": 15,
    }  # fmt: skip
    return options if settings.required_redis_url.startswith("unix:") else options | {"socket_keepalive": True}


class _ToldOfItsEnd(AbstractConnection):
    """A connection that was reset says so as redis-py's callers expect it: uvloop's transport raises a RuntimeError."""

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send one command.

        Raises:
            RedisError: it couldn't be sent.
        """
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise RedisConnectionError("the connection was closed") from error


class _PackedInC(AbstractConnection):
    """A connection whose commands are written by hiredis, as redis-py does it where it isn't asynchronous."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """One command as it is sent.

        Raises:
            DataError: an argument is none of str, bytes, int and float.
        """
        name, *rest = args
        words = name.encode().split() if isinstance(name, str) else name.split()  # such as CONFIG GET
        try:
            return [hiredis.pack_command((*words, *rest))]
        except TypeError as error:
            raise DataError(str(error)) from error

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """Many commands as they are sent."""
        return [b"".join([self.pack_command(*each)[0] for each in commands])]


class Scripts:
    """Lua scripts of one package, by name; `common.lua`, where there is one, stands before each of them.

    NOSCRIPT is handled by loading again (redis-py does it once a call).
    """

    def __init__(self, redis: Redis, package: str) -> None:
        texts = {
            path.name.removesuffix(".lua"): path.read_text(encoding="utf-8")
            for path in files(package).iterdir()
            if path.name.endswith(".lua")
        }
        common = texts.pop("common", "")
        self._scripts: dict[str, AsyncScript] = {
            name: redis.register_script(common + text) for name, text in texts.items()
        }

    async def run(self, name: str, keys: list[str], args: list[Any]) -> Any:
        """Run the script `name`; its reply as redis-py gives it."""
        return await self._scripts[name](keys=keys, args=args)
