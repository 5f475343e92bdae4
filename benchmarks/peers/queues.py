"""What else would a user queue with? RQ and Celery, each doing nothing as fast as it can: `python -m benchmarks.peers.queues NAME REDIS_URL JOBS`.

Neither is durable here: what Redis has taken and not yet written to disk is lost in a power cut, and callers are Python processes
beside Redis, not HTTP clients. One process submits; RQ's one worker doesn't fork, Celery's worker has one process a core.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

_START_S = 60.0


def noop(number: int) -> int:
    """A job."""
    return number


def _rq(url: str, jobs: int) -> dict[str, float]:
    from redis import Redis
    from rq import Queue

    from benchmarks.peers.queues import noop  # by the name under which a worker finds it

    connection = Redis.from_url(url)
    idle = Queue("idle", connection=connection)
    start = time.perf_counter()
    for number in range(jobs):
        idle.enqueue(noop, number)
    one_by_one_s = time.perf_counter() - start
    start = time.perf_counter()
    idle.enqueue_many([Queue.prepare_data(noop, (number,)) for number in range(jobs)])
    bulk_s = time.perf_counter() - start
    idle.delete()
    queue = Queue("busy", connection=connection)
    command = [
        sys.executable,
        "-m",
        "rq.cli",
        "worker",
        "busy",
        "--url",
        url,
        "-w",
        "rq.worker.SimpleWorker",
        "--quiet",
    ]
    with _worker(command):
        _until(lambda: queue.enqueue(noop, -1).id is not None and queue.finished_job_registry.count > 0)
        _until(lambda: queue.count == 0)
        before = queue.finished_job_registry.count
        start = time.perf_counter()
        queue.enqueue_many([Queue.prepare_data(noop, (number,)) for number in range(jobs)])
        _until(lambda: queue.finished_job_registry.count >= before + jobs)
        end_to_end_s = time.perf_counter() - start
    return {"one by one": jobs / one_by_one_s, "bulk": jobs / bulk_s, "end to end": jobs / end_to_end_s}


def celery_app(url: str) -> Any:
    """The app, as a worker and a caller have it."""
    from celery import Celery

    app = Celery("bench", broker=url, backend=url)
    app.task(name="noop")(noop)
    return app


def _celery(url: str, jobs: int) -> dict[str, float]:
    from celery import group

    app = celery_app(url)
    task = app.tasks["noop"]
    start = time.perf_counter()
    for number in range(jobs):
        task.apply_async((number,), queue="idle")
    one_by_one_s = time.perf_counter() - start
    with _worker([sys.executable, "-m", "benchmarks.peers.queues", "celery-worker", url]):
        assert task.delay(1).get(timeout=_START_S) == 1
        start = time.perf_counter()
        results = group(task.s(number) for number in range(jobs)).apply_async()
        results.get(timeout=600)
        end_to_end_s = time.perf_counter() - start
    return {"one by one": jobs / one_by_one_s, "end to end": jobs / end_to_end_s}


@contextmanager
def _worker(command: list[str]) -> Any:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 600
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("the worker is too slow")
        time.sleep(0.02)


def main() -> None:
    """Print the figures as JSON."""
    name, url = sys.argv[1:3]
    if name == "celery-worker":
        celery_app(url).worker_main(
            ["worker", "--concurrency", str(len(os.sched_getaffinity(0))), "--loglevel", "ERROR"]
        )
        return
    play = {"rq": _rq, "celery": _celery}[name]
    print(json.dumps(play(url, int(sys.argv[3]))))


if __name__ == "__main__":
    main()
