"""Which tests fail without a guard? Its killers run in a copy of the tree from which it was taken out."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.mutations.guards import Guard
from tests.mutations.patching import ROOT, apply

COPIED = ("app", "workers", "benchmarks", "migrations", "tests", "pyproject.toml")
TIMEOUT_S = 3600  # all guards' tests in one go, on a busy machine


class Broken(Exception):
    """The check itself can't be made: a killer can't be run, or fails where all is as it should be."""


def check_whole(guards: Sequence[Guard], folder: Path) -> None:
    """All killers pass in a copy from which nothing was taken out.

    Raises:
        Broken: one fails there, or can't be run.
    """
    everything = list(dict.fromkeys(killer for guard in guards for killer in guard.killers))
    if not everything:
        return
    failed = _failures(_copy(folder), everything)
    if failed:
        raise Broken(f"fails with all guards in place: {', '.join(failed)}")


def killers_of(guard: Guard, folder: Path) -> list[str]:
    """The tests that fail without the guard, in a copy at `folder`, which is gone afterwards.

    Raises:
        Broken: its killers can't be run.
        DoesNotApply: the code has moved on.
    """
    tree = _copy(folder)
    for patch in guard.patches:
        apply(patch, tree)
    failed = _failures(tree, guard.killers)
    shutil.rmtree(tree)
    return failed


def _copy(folder: Path) -> Path:
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    return folder


def _failures(tree: Path, tests: Sequence[str]) -> list[str]:
    """Which of these tests fail in this tree. A test that can't even be set up is no proof of anything."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import app, workers; print(app.__file__, workers.__file__)"],
        cwd=tree, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if where.count(str(tree)) != 2:
        raise Broken(f"another tree would be tested: {where.strip()}")
    report = tree / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
    result = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if result.returncode not in {0, 1}:
        raise Broken(f"pytest ended with {result.returncode}:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    cases = list(ET.parse(report).iter("testcase"))
    failed = {str(case.get("name")) for case in cases if case.find("failure") is not None}
    # A test that failed may also leave something behind, for which its end is an error; one that only couldn't be run proves nothing.
    errors = sorted({str(case.get("name")) for case in cases if case.find("error") is not None} - failed)
    if errors or not cases:
        raise Broken(f"errors in {', '.join(errors) or 'no test'}:\n{result.stdout[-2000:]}")
    return sorted({name.partition("[")[0] for name in failed})
