"""What is a contender told, and what does it answer? Lines of JSON. Standard library only: any interpreter runs it.

The task comes in on stdin, events go out on the descriptor that the command line names. When stdin ends, whoever
started the contender is gone, and it ends itself with all its children.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from benchmarks.workload import Prompt, cases


@dataclass(frozen=True, slots=True)
class Task:
    """One contender's work: each case `repeat` times, with the model loaded once."""

    model: str  # folder
    cases: list[str]
    repeat: int = 1
    mode: str = ""  # what its module needs to know, such as "static8"
    device: str = "cpu"
    threads: int = 0  # 0 = the contender's own choice where it has one, else one a core
    settings: dict[str, Any] = field(default_factory=dict)  # our engine's

    @property
    def num_threads(self) -> int:
        """Threads for a contender that makes no choice of its own."""
        return self.threads or len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of one run; all requests come at once, so the first token waits for a place in the batch, too."""

    ttft_p50_s: float  # time to first token
    itl_p50_s: float  # between two tokens of a request
    itl_p99_s: float


class Reporter:
    """The contender's end of the pipe."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)

    def ready(self, **versions: str) -> None:
        """The model is loaded and warm."""
        self._send("ready", versions=versions)

    def start(self, case: str, run: int) -> None:
        """A timed run begins; `run` counts from 1."""
        self._send("start", case=case, run=run)

    def run(self, case: str, seconds: float, latencies: Latencies | None) -> None:
        """A run has ended, and the contender has made sure that every request got all its tokens."""
        self._send("run", case=case, seconds=seconds, latencies=latencies and asdict(latencies))

    def figures(self, case: str, figures: dict[str, float]) -> None:
        """Something that was measured about a case."""
        self._send("figures", case=case, figures=figures)

    def done(self) -> None:
        """All is said."""
        self._send("done")

    def _send(self, event: str, **values: Any) -> None:
        self._file.write(json.dumps({"event": event} | values) + "\n")


def take_part(play: Callable[[Task, Reporter], None]) -> None:
    """A contender's main: read the task, play it, die with whoever asked."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    report = Reporter(int(sys.argv[1]))
    task = Task(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_die_with_stdin, daemon=True).start()
    play(task, report)
    report.done()


def _die_with_stdin() -> None:
    while os.read(0, 1):  # not sys.stdin: its lock, held here at the interpreter's end, would abort it
        pass
    os.killpg(0, signal.SIGKILL)  # a group of our own: `benchmarks.contest` starts each contender in a session


def prompts_of(case: str) -> list[Prompt]:
    """The requests of a case."""
    return cases()[case]


def now() -> float:
    """Seconds on the clock of all measurements."""
    return time.perf_counter()


def check_counts(case: str, prompts: list[Prompt], counts: list[int]) -> None:
    """Every request must have got exactly its tokens: an engine that stops early isn't fast."""
    wrong = [(i, prompt.num_tokens, got) for i, (prompt, got) in enumerate(zip(prompts, counts, strict=True))]
    wrong = [each for each in wrong if each[1] != each[2]]
    if wrong:
        index, wanted, got = wrong[0]
        raise RuntimeError(f"{case}: {len(wrong)} requests have the wrong length; request {index}: {got}, not {wanted}")


def latencies(start: float, arrivals: list[list[float]]) -> Latencies:
    """From the clock at the start and at each token's arrival, by request."""
    gaps = [later - earlier for times in arrivals for earlier, later in pairwise(times)]
    return Latencies(
        ttft_p50_s=percentile([times[0] - start for times in arrivals], 50),
        itl_p50_s=percentile(gaps, 50),
        itl_p99_s=percentile(gaps, 99),
    )


def percentile(values: list[float], percent: float) -> float:
    """By nearest rank; 0 for no values."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
