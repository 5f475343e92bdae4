"""What runs under Triton's interpreter: kernels on the CPU, with numpy instead of a compiler.

Triton decides at its import whether to interpret, so this is a process of its own, with a pytest of its own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.timeout(960)  # a whole pytest each: a minute, or several where all else is busy
@pytest.mark.skipif(find_spec("triton") is None, reason="triton isn't installed (it comes with PyTorch for CUDA)")
@pytest.mark.parametrize("matrix", ["not long", pytest.param("long", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.py")))
def test_under_the_interpreter(name, matrix):
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-m", matrix]
    command = [sys.executable, "-m", "pytest", *options, str(FOLDER / name)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
