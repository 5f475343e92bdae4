"""How do options become what a command works with? They are settings: from then on they count as if the environment had them."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.cli.http import Target
    from app.settings import Settings


def configure(**options: object) -> None:
    """Options are settings: from here on they count as if the environment had them."""
    for name, value in options.items():
        if value is not None:
            os.environ[f"PENSTOCK_{name.upper()}"] = str(value)


def settings_of(data_dir: Path | None) -> "Settings":
    """What is configured, and what the data folder of a running `up` adds."""
    configure(data_dir=data_dir)
    from app.cli.folder import completed, unpaired
    from app.settings import Settings

    config = Settings()
    if why := unpaired(config):
        print(f"penstock: {why}", file=sys.stderr)
    return completed(config)


def target_of(url: str | None, key: str | None, data_dir: Path | None) -> "Target":
    """Where the API is: what is given, or a running `up` has left in the data folder."""
    configure(data_dir=data_dir)
    from app.cli.http import find_target
    from app.settings import Settings

    return find_target(Settings(), url, key)


def become(module: str, **options: object) -> None:
    """Replace this process by `python -m module`, so that signals and exit status are its own."""
    configure(**options)
    from app.cli.folder import process_environment

    config = settings_of(None)
    _ = config.sqlalchemy_url, config.required_redis_url  # said here in one line, rather than in a log
    environment = process_environment(config)
    os.execve(sys.executable, [sys.executable, "-P", "-m", module], environment)  # noqa: S606
