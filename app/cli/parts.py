"""What is one part of a running stack? A process of ours, or an embedded server: started, watched, stopped, with a log."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from time import monotonic

from app.embedded import EmbeddedServer

POLL_S = 0.05
HURRIED_S = 3.0  # what a part that was told to hurry gets before it is killed
TAIL_BYTES = 16_384
TAIL_LINES = 12


class Part(ABC):
    """Something that shall run until it is stopped."""

    name: str
    log_file: Path
    log_start: int = 0  # where the log of the latest start begins, in bytes
    log_ours: int | None = (
        None  # where the log of the first start begins: what is before it belongs to another `penstock up`
    )

    @abstractmethod
    async def start(self) -> None:
        """Start it, for the first time or again.

        Raises:
            Misconfigured: it can't start.
        """

    @abstractmethod
    def ended(self) -> str | None:
        """How it ended; None while it runs, or where it wasn't started."""

    @abstractmethod
    async def stop(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Stop it in order; by force after `grace_s`, or soon after `hurry`. Does nothing if it isn't running."""

    def log_tail(self) -> list[str]:
        """The end of its log since it was first started, readable."""
        return log_tail(self.log_file, since=self.log_ours or 0)


class ProcessPart(Part):
    """A process of ours, `python -m module`, in a session of its own: a terminal's Ctrl-C is for us, who stop it in order.

    It doesn't outlive this process, kill -9 included: a watcher then kills its whole group (see _watch_us).
    """

    def __init__(self, name: str, module: str, environment: dict[str, str], log_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self._module = module
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start it; that it runs doesn't mean that it is ready."""
        self._release()
        self._process = self._spawn()
        self._watcher = _watch_us(self._process.pid)

    def ended(self) -> str | None:
        """How it ended; None while it runs, or where it wasn't started."""
        return None if self._process is None else _in_words(self._process.poll())

    async def stop(self, grace_s: float, hurry: asyncio.Event) -> None:
        """SIGTERM; SIGINT when there is a hurry, which our processes take for a second request; then SIGKILL."""
        self._signal(signal.SIGTERM)
        await self._wait_for_end(grace_s, hurry)
        if hurry.is_set() and self.ended() is None:
            self._signal(signal.SIGINT)
            await self._wait_for_end(HURRIED_S)
        self._release()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            self.log_start = log.tell()
            if self.log_ours is None:
                self.log_ours = self.log_start
            return subprocess.Popen(
                # -P: a folder `app` in the user's working directory isn't ours.
                [sys.executable, "-P", "-m", self._module],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    async def _wait_for_end(self, timeout_s: float, hurry: asyncio.Event | None = None) -> None:
        give_up_at = monotonic() + timeout_s
        while self._process is not None and self.ended() is None and monotonic() < give_up_at:
            if hurry is not None and hurry.is_set():
                return
            await asyncio.sleep(POLL_S)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)  # does nothing to one that has ended

    def _release(self) -> None:
        """Kill what is left of it and its children, reap it, dismiss the watcher."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None


class ServerPart(Part):
    """An embedded Postgres or Redis. `app.embedded` starts the first time, both at once; here it is started again."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.name = server.name.lower()
        self.log_file = server.log_file
        self._server = server

    async def start(self) -> None:
        """Start it again on its data and its old port."""
        await asyncio.to_thread(self._start)

    def ended(self) -> str | None:
        """How it ended; None while it runs, or where it wasn't started."""
        process = self._server.process
        return None if process is None else _in_words(process.poll())

    async def stop(self, grace_s: float, hurry: asyncio.Event) -> None:  # noqa: ARG002
        """Shut down in order, whatever the hurry: it takes a moment, and what is written stays written."""
        await asyncio.to_thread(self._server.stop, grace_s)

    def _start(self) -> None:
        self._server.kill()  # frees what belonged to the one that died
        self._server.start()


def log_tail(path: Path, lines: int = TAIL_LINES, since: int = 0) -> list[str]:
    """The last lines of a log from its byte `since` on, our own JSON lines in words."""
    try:
        with path.open("rb") as file:
            file.seek(max(since, path.stat().st_size - TAIL_BYTES))
            found = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [in_words(line) for line in found[-lines:]]


def in_words(line: str) -> str:
    """A line of a log: `event: field=value ...` where it is one of ours, else as it is."""
    with contextlib.suppress(ValueError):
        fields = json.loads(line)
        if isinstance(fields, dict):
            event = fields.pop("event", "")
            message = fields.pop("message", "")
            for name in ("at", "time", "timestamp", "level", "logger", "process"):
                fields.pop(name, None)
            rest = " ".join(f"{name}={value}" for name, value in fields.items() if value not in {None, ""})
            return " ".join(part for part in (event if event != "log" else "", message, rest) if part)
    return line


def _in_words(code: int | None) -> str | None:
    if code is None or code >= 0:
        return None if code is None else f"exit status {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def _watch_us(pid: int) -> subprocess.Popen[bytes]:
    """A shell that waits for the end of this process, however it comes, and then kills the process group `pid`.

    Its standard input is a pipe that we alone hold open: as in app.embedded.server, and for the same reasons.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$0"', str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
