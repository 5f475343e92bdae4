"""A real Postgres and a real Redis from wheels, for a bare machine."""

from dataclasses import dataclass

from app.embedded.postgres import EmbeddedPostgres
from app.embedded.redis import EmbeddedRedis
from app.embedded.server import EmbeddedServer
from app.settings import Settings

__all__ = ["EmbeddedPostgres", "EmbeddedRedis", "EmbeddedServer", "EmbeddedServers", "ServerUrls"]


@dataclass(frozen=True, slots=True)
class ServerUrls:
    """Where Postgres and Redis are."""

    database_url: str
    redis_url: str


class EmbeddedServers:
    """Postgres and Redis for the length of a `with`: the configured ones, embedded ones where none is configured.

    Data lies in `settings.data_dir` under `postgres` and `redis`. `fast` gives up durability for speed (tests).
    """

    def __init__(self, settings: Settings, *, fast: bool = False) -> None:
        folder = settings.data_dir
        self._settings = settings
        self.postgres = None if settings.database_url else EmbeddedPostgres(folder / "postgres", fast=fast)
        self.redis = None if settings.redis_url else EmbeddedRedis(folder / "redis")

    def start(self) -> ServerUrls:
        """Start what isn't configured, both at once; return where both are.

        Raises:
            Misconfigured: a server can't start; the message says why and what to do. None is left running then.
        """
        try:
            # Redis comes up while Postgres makes its folder.
            for server in self._servers():
                server.launch()
            for server in self._servers():
                server.wait_ready()
        except BaseException:
            self.stop()
            raise
        database_url = self.postgres.url if self.postgres else self._settings.database_url
        redis_url = self.redis.url if self.redis else self._settings.redis_url
        assert database_url
        assert redis_url
        return ServerUrls(database_url, redis_url)

    def stop(self) -> None:
        """Shut down in order what was started here."""
        for server in self._servers():
            server.stop()

    def __enter__(self) -> ServerUrls:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _servers(self) -> list[EmbeddedServer]:
        return [server for server in (self.redis, self.postgres) if server is not None]
