"""What does `penstock up` keep in the data folder for itself and the other commands? Secrets, its URL, its logs."""

import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.settings import Settings


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The files in `settings.data_dir` that are the command line's own. What is secret is readable by its owner only."""

    path: Path

    @property
    def logs(self) -> Path:
        """One file a process."""
        return self.path / "logs"

    @property
    def pepper(self) -> str | None:
        """What the hashes of API keys are mixed with, once it is made."""
        return _read(self.path / "key-pepper")

    @property
    def api_key(self) -> str | None:
        """The token that `up` prints."""
        return _read(self.path / "api-key")

    @property
    def url(self) -> str | None:
        """Where the API of a running `up` is."""
        return _read(self.path / "url")

    @property
    def servers(self) -> dict[str, str]:
        """`database_url` and `redis_url` of a running `up`."""
        with suppress(ValueError):
            found = json.loads(_read(self.path / "servers") or "{}")
            return {str(name): str(url) for name, url in found.items()}
        return {}

    def make(self) -> None:
        """Make the folder and the one for logs."""
        self.logs.mkdir(parents=True, exist_ok=True)

    def make_pepper(self) -> str:
        """The pepper, drawn at the first call."""
        if self.pepper is None:
            write_secret(self.path / "key-pepper", secrets.token_urlsafe(32))
        pepper = self.pepper
        assert pepper
        return pepper

    def keep_api_key(self, token: str) -> None:
        """Remember the token that `up` prints."""
        write_secret(self.path / "api-key", token)

    def announce(self, url: str, *, database_url: str, redis_url: str) -> None:
        """Tell the other commands where the running stack is."""
        write_secret(self.path / "servers", json.dumps({"database_url": database_url, "redis_url": redis_url}))
        write_secret(self.path / "url", url)

    def retract(self) -> None:
        """Nothing runs here any more."""
        for name in ("url", "servers"):
            (self.path / name).unlink(missing_ok=True)


def completed(settings: Settings) -> Settings:
    """`settings`, and what the data folder of an `up` knows where nothing is configured: the servers and the pepper.

    Its servers belong together: beside a database that isn't the `up`'s, such as a restored one, its Redis isn't taken, nor the other way round.
    """
    folder = DataFolder(settings.data_dir)
    found = {} if unpaired(settings) else {name: folder.servers.get(name) for name in _missing(settings)}
    return with_pepper(settings.model_copy(update=found), folder.pepper)


def unpaired(settings: Settings) -> str | None:
    """Why a server that isn't configured isn't taken from the data folder, and what to do; None if there is nothing to say."""
    servers = DataFolder(settings.data_dir).servers
    foreign = [name for name in _SERVERS if getattr(settings, name) not in {None, servers.get(name)}]
    if not servers or not foreign or not (missing := _missing(settings)):
        return None
    ours, theirs = _SERVERS[foreign[0]], _SERVERS[missing[0]]
    return (
        f"{ours} isn't that of the `penstock up` in {settings.data_dir}, so its server for {theirs} isn't used: "
        f"set {theirs} where one is needed"
    )


_SERVERS = {"database_url": "DATABASE_URL", "redis_url": "REDIS_URL"}


def _missing(settings: Settings) -> list[str]:
    return [name for name in _SERVERS if getattr(settings, name) is None]


def with_pepper(settings: Settings, pepper: str | None) -> Settings:
    """`settings` with this pepper, unless one is configured."""
    from pydantic import SecretStr

    if pepper is None or "key_pepper" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"key_pepper": SecretStr(pepper)})


def process_environment(settings: Settings) -> dict[str, str]:
    """The environment in which a process of ours reads the same `settings`: ours, with what we found out for it."""
    found = {
        "PENSTOCK_DATABASE_URL": settings.database_url,
        "PENSTOCK_REDIS_URL": settings.redis_url,
        "PENSTOCK_DATA_DIR": str(settings.data_dir.absolute()),
        "PENSTOCK_KEY_PEPPER": settings.key_pepper.get_secret_value(),
    }
    return os.environ | {name: value for name, value in found.items() if value is not None}


def write_secret(path: Path, text: str) -> None:
    """Write `path` whole or not at all, for its owner only."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{text}\n")
    unfinished.rename(path)


def _read(path: Path) -> str | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        return path.read_text().strip() or None
    return None
