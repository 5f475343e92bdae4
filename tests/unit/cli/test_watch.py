"""Is a part that dies started again, and one that dies and dies given up with the end of its log?"""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from app.cli.errors import CommandFailed
from app.cli.parts import ProcessPart, in_words
from app.cli.watch import Report, Restarts, Watch
from tests.support.processes import have_ended


def part_that(code: str, folder: Path) -> ProcessPart:
    """A part whose module is this code."""
    (folder / "part_of_a_test.py").write_text(code)
    return ProcessPart("part", "part_of_a_test", os.environ | {"PYTHONPATH": str(folder)}, folder / "part.log")


def quick() -> Restarts:
    return Restarts(base_s=0.0)


def test_backoff_doubles_with_each_quick_death_and_ends_with_the_fifth() -> None:
    restarts = Restarts(base_s=1.0, cap_s=3.0)
    assert [restarts.delay_s(lived_s=0.1) for _ in range(5)] == [1.0, 2.0, 3.0, 3.0, None]


def test_a_part_that_lived_for_long_has_recovered() -> None:
    restarts = Restarts(base_s=1.0)
    assert [restarts.delay_s(lived_s) for lived_s in (0, 0, 0, 100, 0)] == [1.0, 2.0, 4.0, 1.0, 2.0]


async def test_a_part_that_always_dies_is_given_up_with_its_log(tmp_path: Path) -> None:
    part = part_that("print('no luck'); raise SystemExit(3)", tmp_path)
    reports: list[Report] = []
    await part.start()
    with pytest.raises(CommandFailed, match=r"^part died 5 times in a row \(exit status 3\)") as caught:
        await Watch([part], reports.append, quick).run()
    await part.stop(5, asyncio.Event())
    assert caught.value.detail.count("no luck") == 5
    assert str(part.log_file) in caught.value.detail
    assert [report.event for report in reports] == ["ended"] * 4
    assert "exit status 3" in reports[0].detail


async def test_a_killed_part_runs_again(tmp_path: Path) -> None:
    part = part_that("import time; time.sleep(60)", tmp_path)
    await part.start()
    first = part.pid
    assert first is not None
    watching = asyncio.create_task(Watch([part], lambda _: None, quick).run())
    os.kill(first, signal.SIGKILL)
    await until(lambda: part.pid not in {None, first})
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await part.stop(5, asyncio.Event())
    assert part.pid is None
    assert not psutil.pid_exists(first)


async def test_a_part_that_ignores_everything_is_killed_with_its_children_soon_after_a_hurry(tmp_path: Path) -> None:
    code = """
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)
subprocess.Popen(["sleep", "60"]); print("ignoring", flush=True); time.sleep(60)
"""
    part = part_that(code, tmp_path)
    await part.start()
    await until(lambda: part.log_tail() == ["ignoring"])
    assert part.pid is not None
    tree = [psutil.Process(part.pid), *psutil.Process(part.pid).children(recursive=True)]
    assert len(tree) == 2
    hurry = asyncio.Event()
    hurry.set()
    await part.stop(60, hurry)
    assert have_ended(tree)


def test_our_log_lines_are_told_in_words_and_others_as_they_are() -> None:
    ours = '{"at": "2026-01-01T00:00:00Z", "level": "error", "logger": "x", "event": "worker_failed", "reason": "no model", "tail": ""}'
    assert in_words(ours) == "worker_failed reason=no model"
    assert in_words('{"event": "log", "message": "hello"}') == "hello"
    assert in_words("Segmentation fault") == "Segmentation fault"
    assert in_words("[1, 2") == "[1, 2"


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.02)
