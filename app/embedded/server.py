"""How does a server process live on a data folder: its lock, port, password, start and end?"""

import fcntl
import os
import secrets
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from typing import ClassVar, Self

import psutil

from app.errors import Misconfigured

LOCALHOST = "127.0.0.1"
# Below the range that systems take source ports from, so that a remembered port is still free after a restart.
PORTS = range(15_000, 32_000)
STOP_TIMEOUT_S = 15.0
READY_TIMEOUT_S = 120.0  # recovery after a crash counts in
POLL_S = 0.01


class EmbeddedServer(ABC):
    """One server process on one data folder: its lock, port, password, life and death.

    `data_dir` is made if it doesn't exist. `port` 0 takes the port of the last start if that is free, else a free one.
    With `die_with_parent` the server shuts down when this process ends in any way, kill -9 included.
    """

    name: ClassVar[str]
    executable: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, data_dir: Path, port: int = 0, *, die_with_parent: bool = True) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self._wanted_port = port
        self._die_with_parent = die_with_parent
        self._watcher: subprocess.Popen[bytes] | None = None
        self._lock_fd: int | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Address over TCP, password included."""

    @property
    @abstractmethod
    def socket_url(self) -> str:
        """Address over the unix socket, password included. Systems limit a socket's path to some 100 bytes."""

    @property
    def log_file(self) -> Path:
        """What the server writes to its output."""
        return self.data_dir / f"{self.executable}.log"

    @property
    def password(self) -> str:
        """Made at the first start, kept in the data folder for its owner only."""
        return _remembered_secret(self.data_dir / "password")

    def start(self) -> Self:
        """Launch the server and wait until it answers.

        Raises:
            Misconfigured: it can't start; the message says why and what to do.
        """
        self.launch()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def launch(self) -> None:
        """Start the process and don't wait for it.

        Raises:
            Misconfigured: another process uses the folder, the port is taken, or the binaries can't run here.
        """
        assert self.process is None, f"{self.name} is running already"
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._end_orphans()
            self._prepare()
            self.port = self._choose_port()
            with self.log_file.open("ab") as log:
                self.process = self._spawn(log.fileno())
            if self._die_with_parent:
                self._watcher = _watch_parent(self.process.pid, self.stop_signal)
        except OSError as error:
            self.kill()
            raise Misconfigured(f"the embedded {self.name} can't start in {self.data_dir}: {error}") from error
        except BaseException:
            self.kill()
            raise

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until the server answers.

        Raises:
            Misconfigured: it ended, or didn't answer in time; the message ends with its log.
        """
        assert self.process is not None, f"{self.name} wasn't launched"
        give_up_at = monotonic() + timeout_s
        while not self._is_ready():
            with suppress(subprocess.TimeoutExpired):
                code = self.process.wait(POLL_S)
                raise Misconfigured(f"the embedded {self.name} ended at its start (code {code}): {self._log_tail()}")
            if monotonic() > give_up_at:
                raise Misconfigured(f"the embedded {self.name} isn't ready after {timeout_s:.0f} s: {self._log_tail()}")

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Shut down in order, by force after `timeout_s`. Does nothing if it isn't running."""
        if self.process is None:
            return
        self.resume()  # a stopped process doesn't hear
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._release()

    def kill(self) -> None:
        """SIGKILL to the process and all its children: a crash. Does nothing if it isn't running."""
        tree = self._tree()
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _still_running(tree, STOP_TIMEOUT_S)
        self._release()

    def pause(self) -> None:
        """SIGSTOP to the process and all its children: a server that hangs, its connections open."""
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """SIGCONT to the process and all its children."""
        for process in self._tree(stopping=False):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    @abstractmethod
    def _server_dir(self) -> Path:
        """The folder that the server works in."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the server needs to start."""

    @abstractmethod
    def _spawn(self, log_fd: int) -> subprocess.Popen[bytes]:
        """Start the process in a session of its own: a terminal's Ctrl-C is for our parent, who stops us in order."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Would it answer now?"""

    def _take_lock(self) -> None:
        path = self.data_dir / "lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(fd, 32, 0).decode().strip() or "unknown"
            os.close(fd)
            raise Misconfigured(
                f"{self.data_dir} is already in use by pid {owner}: "
                "stop the other `penstock up`, or set PENSTOCK_DATA_DIR"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = fd

    def _end_orphans(self) -> None:
        """End what a killed owner left running here. We hold the lock: nobody alive owns it."""
        orphans = [
            process
            for process in psutil.process_iter(["name"])
            if (process.info["name"] or "").startswith(self.executable) and _works_in(process, self._server_dir)
        ]
        pids = {process.pid for process in orphans}
        for process in orphans:
            with suppress(psutil.NoSuchProcess):
                process.resume()
                if process.ppid() not in pids:
                    process.send_signal(self.stop_signal)
        for process in _still_running(orphans, STOP_TIMEOUT_S):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _still_running(orphans, STOP_TIMEOUT_S)

    def _choose_port(self) -> int:
        path = self.data_dir / "port"
        if self._wanted_port:
            if not _is_free(self._wanted_port):
                raise Misconfigured(f"port {self._wanted_port} is taken: the embedded {self.name} can't listen there")
            return self._wanted_port
        with suppress(OSError, ValueError):
            port = int(path.read_text())
            if _is_free(port):
                return port
        while not _is_free(port := PORTS[secrets.randbelow(len(PORTS))]):
            pass
        path.write_text(f"{port}\n")
        return port

    def _tree(self, *, stopping: bool = True) -> list[psutil.Process]:
        """The process and its children; `stopping` holds it first, so that it can't have new ones meanwhile."""
        if self.process is None or self.process.poll() is not None:
            return []
        try:
            process = psutil.Process(self.process.pid)
            if stopping:
                process.suspend()
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _release(self) -> None:
        """Let go of a server that is dead or dying: reap it, dismiss the watcher, free the folder."""
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None
        if self.process is not None:
            self.process.wait()
            self.process = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _log_tail(self) -> str:
        with suppress(OSError):
            lines = self.log_file.read_text(errors="replace").splitlines()
            return f"{' | '.join(lines[-5:])} ({self.log_file})"
        return f"{self.log_file} can't be read"


def environment() -> dict[str, str]:
    """No PG* variable and no locale of ours may change what a server does."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def package_folder(package: str) -> Path:
    """The folder of an installed package, without importing it: its import would patch this process."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise Misconfigured(
            f"the Python package {package} isn't installed: run `make venv`, or set DATABASE_URL and REDIS_URL"
        )
    return Path(spec.submodule_search_locations[0])


def _remembered_secret(path: Path) -> str:
    path.touch(mode=0o600)
    secret = path.read_text().strip()
    if not secret:
        secret = secrets.token_urlsafe(24)
        path.write_text(f"{secret}\n")
    return secret


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, port))
        except OSError:
            return False
    return True


def _watch_parent(pid: int, stop_signal: signal.Signals) -> subprocess.Popen[bytes]:
    """A shell that waits for the end of this process, however it comes, and then signals `pid`.

    Its standard input is a pipe that we alone hold open. Unlike PR_SET_PDEATHSIG this works on macOS, needs no code
    between fork and exec, and doesn't take the end of the thread that started the server for the end of the process.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -s "$0" "$1"', stop_signal.name.removeprefix("SIG"), str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()) == folder.resolve()
    except (psutil.Error, OSError):
        return False


def _still_running(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait for the processes' end; return those that outlive `timeout_s`. Not every pid 1 reaps: a zombie has ended."""
    give_up_at = monotonic() + timeout_s
    while running := [process for process in processes if _is_running(process)]:
        if monotonic() > give_up_at:
            break
        sleep(POLL_S)
    return running


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
