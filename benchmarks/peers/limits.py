"""The machine's limits, measured with the threads that contenders get."""

from dataclasses import asdict

from benchmarks.peers.task import Reporter, Task, take_part
from benchmarks.roofline import measure_limits


def play(task: Task, report: Reporter) -> None:
    """No case: the limits are the same for all."""
    report.ready()
    report.figures("", asdict(measure_limits(task.device, task.num_threads)))


if __name__ == "__main__":
    take_part(play)
