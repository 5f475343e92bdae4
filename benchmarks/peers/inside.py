"""What happens inside our engine during a case? One more run, in one process, with instruments; its speed isn't counted.

KV waste: of the slots in blocks that sequences hold, those without keys and values; averaged over the steps' time. A block
that several sequences share counts once.

Python: of the time of full steps, the share in which no operator runs on the CPU (or no kernel on the GPU), as torch's
profiler sees it. All of scheduler, bookkeeping and framework is in it, and so is the profiler's own cost: an upper bound.
"""

import os
from typing import Any

from benchmarks.peers.penstock import engine_config, requests_of
from benchmarks.peers.task import Reporter, Task, check_counts, now, prompts_of, take_part
from benchmarks.workload import Prompt

_PROFILED_STEPS = 24


def play(task: Task, report: Reporter) -> None:
    """Each case once."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as in workers.engine.child; before torch is loaded
    from workers.engine.load import load_engine

    engine = load_engine(engine_config(task)).engine
    _drain(engine, [Prompt([6] * 8, 4)])
    report.ready()
    for case in task.cases:
        report.start(case, 1)
        report.figures(case, _look(engine, case, prompts_of(case)))


def _drain(engine: Any, prompts: list[Prompt]) -> None:
    for request in requests_of(prompts, 0):
        engine.add(request)
    while engine.has_work():
        engine.step()


def _look(engine: Any, case: str, prompts: list[Prompt]) -> dict[str, float]:
    """Figures of one case. Reads the engine's scheduler, which is nobody else's business."""
    scheduler = engine._scheduler
    for request in requests_of(prompts, 1):
        engine.add(request)
    profile = _Profile(engine.info.device)
    counts = [0] * len(prompts)
    allocated_time = unused_time = 0.0
    while engine.has_work():
        # Full: everyone who can run does, and nobody has a prompt to be fed.
        running = scheduler.running
        is_full = bool(running) and scheduler.num_waiting == 0 and all(each.num_pending == 1 for each in running)
        start = now()
        if is_full and profile.num_steps < _PROFILED_STEPS:
            output = profile.step(engine)
        else:
            output = engine.step()
        seconds = now() - start
        for delta in output.deltas:
            counts[int(delta.request_id.rsplit("-", 1)[1])] += len(delta.token_ids)
        held = slots(scheduler.running, engine.info.block_size)
        allocated_time += len(held) * engine.info.block_size * seconds
        unused_time += sum(engine.info.block_size - used for used in held.values()) * seconds
    check_counts(case, prompts, counts)
    figures = {"kv_waste": unused_time / allocated_time if allocated_time else 0.0}
    if profile.num_steps:
        figures |= {"python_share": profile.idle_share(), "profiled_steps": profile.num_steps}
    return figures


def slots(running: list[Any], block_size: int) -> dict[int, int]:
    """How many slots of each held block are filled."""
    filled: dict[int, int] = {}
    for sequence in running:
        left = sequence.num_computed
        for block in sequence.block_table:
            filled[block] = max(filled.get(block, 0), min(block_size, max(0, left)))
            left -= block_size
    return filled


class _Profile:
    """Steps under torch's profiler, one profile each: the time between them is nobody's."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        self.num_steps = 0
        self._wall_ns = 0
        self._busy_ns = 0

    def step(self, engine: Any) -> Any:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        with profile(activities=activities, acc_events=True) as profiler:
            start = now()
            output = engine.step()
            wall_s = now() - start
        self._wall_ns += int(wall_s * 1e9)
        self._busy_ns += self._union_ns(profiler)
        self.num_steps += 1
        return output

    def idle_share(self) -> float:
        """Share of the steps' time in which nothing ran."""
        return max(0.0, 1.0 - self._busy_ns / self._wall_ns)

    def _union_ns(self, profiler: Any) -> int:
        intervals = sorted(
            (event.start_ns(), event.start_ns() + event.duration_ns())
            for event in profiler.profiler.kineto_results.events()
            if ("CUDA" in str(event.device_type())) == self._on_gpu and not event.name().startswith("ProfilerStep")
        )
        busy_ns = end = 0
        for start, stop in intervals:
            busy_ns += max(0, stop - max(start, end))
            end = max(end, stop)
        return busy_ns


if __name__ == "__main__":
    take_part(play)
