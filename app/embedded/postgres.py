"""How does PostgreSQL 18 from a wheel run here?"""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from app.embedded.account import Account, account_for, as_account, may, postgres_home
from app.embedded.server import LOCALHOST, EmbeddedServer, environment
from app.errors import Misconfigured


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL 18. Listens on 127.0.0.1 and on a unix socket, both with a password.

    Postgres refuses to run as root. There it runs as the owner of the data, else as `postgres`, else as `nobody`. If
    that account may not pass the folders above the data (such as /root), it gets the folder as an open descriptor,
    which needs no rights above it; if it may not read the wheel's binaries, they are copied to /var/cache/penstock. No
    permission of a folder that isn't ours is changed.

    `fast` turns fsync and full page writes off: safe against kill -9, not against a power cut. Its password, which is
    random and long, is hashed once only: the 4,096 rounds are for passwords that can be guessed, and cost each connection.
    """

    name = "Postgres"
    executable = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown: don't wait for clients

    def __init__(self, data_dir: Path, port: int = 0, *, fast: bool = False, die_with_parent: bool = True) -> None:
        super().__init__(data_dir, port, die_with_parent=die_with_parent)
        self._fast = fast
        self._account: Account | None = None
        self._home: Path | None = None

    @property
    def url(self) -> str:
        """Address over TCP, password included."""
        return f"postgresql://penstock:{self.password}@{LOCALHOST}:{self.port}/penstock"

    @property
    def socket_url(self) -> str:
        """Address over the unix socket, password included. Systems limit a socket's path to some 100 bytes."""
        host = quote(str(self._server_dir), safe="")
        return f"postgresql://penstock:{self.password}@/penstock?host={host}&port={self.port}"

    @property
    def _server_dir(self) -> Path:
        return self.data_dir / "data"

    def _prepare(self) -> None:
        if os.geteuid() == 0:
            self._account = account_for(self._server_dir)
            self.data_dir.chmod(self.data_dir.stat().st_mode | stat.S_IXOTH)
        self._home = postgres_home(self._account)
        if not self._server_dir.exists():
            self._init()
        # No server runs here (the lock, and no orphans): whoever has that pid now is a stranger.
        for leftover in (*self._server_dir.glob("postmaster.pid"), *self._server_dir.glob(".s.PGSQL.*")):
            leftover.unlink()

    def _init(self) -> None:
        """Make the data folder under another name first: one that was interrupted never looks like a whole one."""
        unfinished = self.data_dir / "data.unfinished"
        password_file = self.data_dir / "password.initdb"
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file.unlink(missing_ok=True)
        unfinished.mkdir(mode=0o700)
        password_file.touch(mode=0o600)
        password_file.write_text(self.password)
        if self._account is not None:
            for path in (unfinished, password_file):
                os.chown(path, self._account.uid, self._account.gid)
        with self._reachable() as (folder, fds):
            self._run(
                [
                    *("initdb", "--username=penstock", f"--pgdata={folder / unfinished.name}", "--no-instructions"),
                    *("--auth=scram-sha-256", f"--pwfile={folder / password_file.name}"),
                    *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                    *(["--no-sync", "--set=scram_iterations=1"] if self._fast else []),
                ],
                fds,
            )
            single = ["postgres", "--single", "-D", str(folder / unfinished.name), *self._options(), "template1"]
            self._run(single, fds, stdin=b"CREATE DATABASE penstock\n")
        password_file.unlink()
        unfinished.rename(self._server_dir)

    def _run(self, command: list[str], fds: tuple[int, ...], stdin: bytes = b"") -> None:
        assert self._home is not None
        result = subprocess.run(
            [str(self._home / "bin" / command[0]), *command[1:]],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            cwd="/",
            env=environment(),
            pass_fds=fds,
            **as_account(self._account),
        )
        if result.returncode:
            output = result.stdout.decode(errors="replace").strip().splitlines()
            raise Misconfigured(f"{command[0]} failed in {self.data_dir}: {' | '.join(output[-5:])}")

    def _spawn(self, log_fd: int) -> subprocess.Popen[bytes]:
        assert self._home is not None
        with self._reachable() as (folder, fds):
            executable = str(self._home / "bin" / "postgres")
            return subprocess.Popen(
                [executable, "-D", str(folder / "data"), "-p", str(self.port), *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                cwd="/",
                env=environment(),
                start_new_session=True,
                pass_fds=fds,
                **as_account(self._account),
            )

    def _options(self) -> list[str]:
        options = {
            "listen_addresses": LOCALHOST,
            "unix_socket_directories": ".",  # relative to the data folder: no limit on the folder's own length
            "max_connections": "200",
            "shared_buffers": "64MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
        }
        if self._fast:
            # Not synchronous_commit: without it, kill -9 loses transactions that were reported as committed.
            options |= {"fsync": "off", "full_page_writes": "off"}
        return [part for name, value in options.items() for part in ("-c", f"{name}={value}")]

    def _is_ready(self) -> bool:
        """What pg_ctl looks at: our pid in the first line of postmaster.pid, "ready" in the eighth."""
        assert self.process is not None
        try:
            lines = (self._server_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready"

    @contextmanager
    def _reachable(self) -> Iterator[tuple[Path, tuple[int, ...]]]:
        """The data folder by a path that Postgres' account can open, and the descriptors that it must inherit."""
        if self._account is None or may(self._account, "-x", self.data_dir):
            yield self.data_dir, ()
            return
        if sys.platform != "linux":
            raise Misconfigured(
                f"Postgres can't run as root, and `{self._account.name}` may not open {self.data_dir}: "
                "start Penstock as a normal user, or set PENSTOCK_DATA_DIR to a folder that others may pass"
            )
        # The link under /proc leads to the folder itself and asks for no rights on the way.
        fd = os.open(self.data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield Path(f"/proc/self/fd/{fd}"), (fd,)
        finally:
            os.close(fd)
