"""The command line as a test uses it: `penstock up` as a process of its own, other commands in this one."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import psutil
import pytest

from app.cli.main import main

COMMAND = [sys.executable, "-m", "app.cli"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a command did."""

    status: int
    out: str
    err: str


Run = Callable[..., Result]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; `stdin` is what it can read, the rest of the keywords is environment."""

    def run(*args: object, stdin: str = "", **environment: str) -> Result:
        capsys.readouterr()
        before, argv, stdin_before = dict(os.environ), sys.argv, sys.stdin
        os.environ.update(environment)
        sys.argv = ["penstock", *map(str, args)]
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()))
        status: object = None
        try:
            main()
        except SystemExit as ended:
            status = ended.code
        finally:
            os.environ.clear()
            os.environ.update(before)
            sys.argv, sys.stdin = argv, stdin_before
        out, err = capsys.readouterr()
        assert status is None or isinstance(status, int)
        return Result(status or 0, out, err)

    return run


class Up:
    """A running `penstock up` (or another command that goes on), and all that it printed."""

    def __init__(self, *args: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, args)],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self.lines: list[str] = []
        self._reader = Thread(target=self._read)
        self._reader.start()

    @property
    def output(self) -> str:
        """All that it printed."""
        return "".join(self.lines)

    @property
    def url(self) -> str:
        """The API that it named."""
        return self.wait_for(r"API +(http://\S+)/v1")[1]

    @property
    def key(self) -> str:
        """The key that it printed."""
        return self.wait_for(r"Key +(pk_\S+)")[1]

    def wait_for(self, pattern: str, timeout_s: float = 60.0) -> re.Match[str]:
        """The first place in its output that matches."""
        give_up_at = monotonic() + timeout_s
        while (found := re.search(pattern, self.output)) is None:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.output}"
            assert monotonic() < give_up_at, f"no {pattern!r} in: {self.output}"
            sleep(0.05)
        return found

    def wait_until_up(self) -> None:
        """Until it has said that it is ready."""
        self.wait_for("Ctrl-C drains")

    def tree(self) -> list[psutil.Process]:
        """All processes below it."""
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def part(self, word: str) -> psutil.Process:
        """The first process below it with this word in its command."""
        give_up_at = monotonic() + 20
        while monotonic() < give_up_at:
            for process in self.tree():
                with suppress(psutil.NoSuchProcess):
                    if any(word in part for part in process.cmdline()):
                        return process
            sleep(0.05)
        raise AssertionError(f"no process {word} below penstock up: {self.output}")

    def end(self, number: int = signal.SIGINT, timeout_s: float = 60.0) -> int:
        """Send a signal, wait; the exit status."""
        self.process.send_signal(number)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Its exit status, once it has ended and all its output is read."""
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)


def write_lines(path: Path, *lines: str) -> Path:
    """A file with these lines."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
