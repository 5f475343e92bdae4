"""Does the whole stack come through a hundred faults? The quick form of the chaos benchmark."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(450)  # the system has three minutes to settle, after all that and before the verdict
def test_a_hundred_faults_lose_and_double_nothing(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "chaos", "--minutes", "0.6", "--faults", "105", "--scale", "0.12"]
    done = subprocess.run(
        [*command, "--rate", "5", "--seed", "11", "--check", "--json", str(figures)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())["figures"]
    assert found["faults"] >= 90, found["faults that met nothing"]
    assert found["jobs accepted"] > 50
    assert found["answers lost"] > 0
