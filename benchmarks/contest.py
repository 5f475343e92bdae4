"""How are contenders run? One after the other, each in a process of its own, which never outlives this one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from benchmarks.peers.task import Task

_ROOT = Path(__file__).parents[1]
_LOG_TAIL_BYTES = 3000
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Contender:
    """Who plays, by which module, under which interpreter."""

    name: str
    module: str
    task: Task
    python: str = sys.executable


@dataclass(frozen=True, slots=True)
class Run:
    """One timed run of one case."""

    seconds: float
    latencies: dict[str, float]
    elsewhere: float  # share of the machine's processor time that went to others meanwhile; 0 = we were alone


@dataclass(slots=True)
class Played:
    """All that a contender said."""

    versions: dict[str, str] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)  # by case
    figures: dict[str, dict[str, float]] = field(default_factory=dict)  # by case


class ContenderFailed(Exception):
    """It ended before it was done. The message holds the end of its log; `played` is what it had said until then."""

    def __init__(self, message: str, played: Played) -> None:
        super().__init__(message)
        self.played = played


_interrupted = threading.Event()


def heed_interrupts() -> None:
    """Let Ctrl-C stop the contest even where its exception gets lost, as it does in a callback of the garbage collector."""
    signal.signal(signal.SIGINT, _interrupt)


def _interrupt(_number: int, _frame: object) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


def compete(contender: Contender, tell: Callable[[str], None]) -> Played:
    """Run a contender to its end; `tell` is given a line at each turn. Raises ContenderFailed."""
    played = Played()
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as log, os.fdopen(reading, encoding="utf-8") as events:
        try:
            process = _start(contender, log, writing)
        finally:
            os.close(writing)
        is_done = False
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(contender.task)).encode() + b"\n")
            process.stdin.flush()
            tell(f"{contender.name}: loading")
            is_done = _listen(contender, process.pid, events, played, tell)
        except BrokenPipeError:
            pass  # it ended at once; its log says why
        finally:
            _end(process, _GRACE_S if is_done else 0.0)
        if not is_done:
            message = f"{contender.name} ended with exit status {process.returncode}:\n{_tail(log)}"
            raise ContenderFailed(message, played)
    return played


def _start(contender: Contender, log: BinaryIO, writing: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [contender.python, "-m", contender.module, str(writing)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        pass_fds=[writing],
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))},
        start_new_session=True,  # Ctrl-C reaches us only, and one kill reaches all that it started
    )


def _listen(contender: Contender, pid: int, events: Any, played: Played, tell: Callable[[str], None]) -> bool:
    """Read what it says; whether it said that it is done."""
    meter = _Meter(pid)
    for line in events:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        event = json.loads(line)
        match event["event"]:
            case "ready":
                played.versions = event["versions"]
                tell(f"{contender.name}: ready")
            case "start":
                tell(f"{contender.name}: {event['case']}, run {event['run']} of {contender.task.repeat}")
                meter = _Meter(pid)
            case "run":
                run = Run(event["seconds"], event["latencies"] or {}, meter.elsewhere())
                played.runs.setdefault(event["case"], []).append(run)
            case "figures":
                played.figures.setdefault(event["case"], {}).update(event["figures"])
            case "done":
                return True
    return False


class _Meter:
    """How much of the machine do others use? Not exact: processes that ended in between count as others."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._start = (time.monotonic(), _busy_s(), self._own_s())

    def elsewhere(self) -> float:
        clock, busy, own = self._start
        capacity = (time.monotonic() - clock) * (os.cpu_count() or 1)
        used = (_busy_s() - busy) - (self._own_s() - own)
        return min(1.0, max(0.0, used / capacity)) if capacity > 0 else 0.0

    def _own_s(self) -> float:
        total = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._pid)
            for each in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = each.cpu_times()
                    total += times.user + times.system
        return total


def _busy_s() -> float:
    times = psutil.cpu_times()._asdict()
    return float(sum(times.get(kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal")))


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Kill the whole group, after `grace_s` seconds at most."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _tail(log: BinaryIO) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - _LOG_TAIL_BYTES))
    return log.read().decode(errors="replace").strip()
