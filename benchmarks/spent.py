"""Whose processor time was it? That of each part of a stack, its engines and Postgres' backends included."""

import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from app.embedded.server import EmbeddedServer
from benchmarks.faults.parts import Part


@dataclass(slots=True)
class Spent:
    """Processor seconds (user and system) since this was made, by part; parts of one kind together.

    Parts may be killed and started anew: call `look` now and then, for of one that was killed counts what it had at the last look.
    """

    parts: Mapping[str, Part]
    servers: Mapping[str, EmbeddedServer]
    _seen: dict[tuple[str, int, float], float] = field(default_factory=dict)  # name, pid and birth of a process
    _first: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._first = self._totals()

    def look(self) -> None:
        """Note what the parts' processes have spent so far."""
        for name, part in self.parts.items():
            if part.pid is not None:
                for each in [psutil.Process(part.pid), *part.engines()] if psutil.pid_exists(part.pid) else []:
                    kind = name.partition("-")[0] if each.pid == part.pid else "engine"
                    with suppress(psutil.NoSuchProcess):
                        self._seen[kind, each.pid, each.create_time()] = _own_s(each)

    def by_part(self) -> dict[str, float]:
        """Seconds since the beginning."""
        return {name: seconds - self._first.get(name, 0.0) for name, seconds in self._totals().items()}

    def figures(self, count: int, what: str) -> dict[str, Any]:
        """Milliseconds for each of `count` things: of all, and of each part; and how many processors were busy with them."""
        parts, took_s = self.by_part(), time.perf_counter() - self._began
        found: dict[str, Any] = {f"processor ms a {what}": sum(parts.values()) / count * 1000}
        found |= {f"processor ms a {what}: {name}": seconds / count * 1000 for name, seconds in parts.items()}
        return found | {"processors busy": sum(parts.values()) / took_s}

    def _totals(self) -> dict[str, float]:
        self.look()
        totals: dict[str, float] = defaultdict(float, benchmark=time.process_time())
        for (kind, _, _), seconds in self._seen.items():
            totals[kind] += seconds
        for name, server in self.servers.items():
            assert server.process is not None
            main = psutil.Process(server.process.pid)
            ended = main.cpu_times()  # its children that have ended, whom it has waited for
            totals[name] = ended.children_user + ended.children_system + _own_s(main)
            totals[name] += sum(map(_own_s, main.children(recursive=True)))
        return totals


def _own_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
