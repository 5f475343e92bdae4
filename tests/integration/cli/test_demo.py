"""Does `penstock demo` run the real thing, end well, and clean up?"""

import re
import tempfile
from pathlib import Path

from tests.support.cli import Up


def test_the_demo_runs_twenty_jobs_with_the_bundled_model_and_leaves_nothing(tmp_path: Path) -> None:
    demo = Up("demo", TMPDIR=str(tmp_path))
    assert demo.wait(170) == 0, demo.output
    assert "\x1b" not in demo.output
    assert "\r" not in demo.output
    assert len(re.findall(r" succeeded +(?:interactive|standard|batch) ", demo.output)) == 20
    assert "20 of 20 jobs succeeded" in demo.output
    assert re.search(r"valley-school +8 +[\d,]+ +[\d,]+ +[\d,]+\n", demo.output)
    assert "> Write a short story about a fox and a lantern." in demo.output
    assert list(tmp_path.glob("penstock-demo-*")) == []
    assert tempfile.gettempdir() != str(tmp_path)
