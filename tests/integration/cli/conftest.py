"""What do the command line's tests stand on? One `penstock up` with its own servers and the null engine, for all of a module."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Run, Up, runner
from tests.support.processes import have_ended

QUICK = {
    "PENSTOCK_ENGINE": "null",
    "PENSTOCK_NULL_STEP_S": "0.01",
    "PENSTOCK_DRAIN_GRACE_S": "2",
    "PENSTOCK_SWEEP_EVERY_S": "0.3",
    "PENSTOCK_SWEEP_AFTER_S": "1",
}


@pytest.fixture
def penstock(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """A data folder for all of a module."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-tests-"))
    yield folder / "data"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def up(data_dir: Path) -> Iterator[Up]:
    """A `penstock up`, ready."""
    up = Up("up", "--port", 0, "--data-dir", data_dir, **QUICK)
    try:
        up.wait_until_up()
        yield up
    finally:
        tree = up.tree() if up.process.poll() is None else []
        status = up.end()
    assert status == 0, up.output
    assert have_ended(tree)
