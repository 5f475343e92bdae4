"""What do the command line's unit tests share?"""

from pathlib import Path

import pytest

from app.settings import Settings
from tests.support.cli import Run, runner


@pytest.fixture
def settings_in(tmp_path: Path) -> Settings:
    """Settings whose data folder is empty."""
    return Settings(data_dir=tmp_path)


@pytest.fixture
def penstock(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)
