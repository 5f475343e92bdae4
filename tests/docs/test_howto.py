"""Do the how-to pages do what they say? Each page is one session of a shell, against one real stack for all of them."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.cli import Up
from tests.support.processes import have_ended

ROOT = Path(__file__).parents[2]
HOWTO = ROOT / "docs" / "howto"
PAGES = sorted(path for path in HOWTO.glob("*.md") if path.name != "README.md")
# What a snippet may need, by a request that is answered with 404 or 405 where the API hasn't got it: nobody shows a key.
NEEDS = {
    "streams": ("GET", f"/v1/jobs/job_{'0' * 32}/events"),
    "bulk": ("POST", "/v1/jobs/bulk"),
    "batches": ("POST", "/v1/batches"),
    "openai": ("POST", "/v1/chat/completions"),
}
MARK = "@@@ line"
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A snippet of a page, or what the one before it must print."""

    line: int
    language: str
    marks: frozenset[str]
    code: str

    @property
    def runs(self) -> bool:
        return "run" in self.marks

    @property
    def needs(self) -> set[str]:
        return {mark.removeprefix("needs:") for mark in self.marks if mark.startswith("needs:")}

    @property
    def script(self) -> str:
        """What a shell does with it."""
        (name,) = [mark.removeprefix("file=") for mark in self.marks if mark.startswith("file=")] or [None]
        if self.language == "bash":
            return self.code
        assert self.language == "python"
        to = "python -" if name is None else f"cat > {name}"
        return f"{to} <<'END_OF_SNIPPET'\n{self.code}END_OF_SNIPPET\n"


def blocks_of(text: str) -> list[Block]:
    found = []
    for each in FENCE.finditer(text):
        language, *marks = each["info"].split() or [""]
        found.append(Block(text[: each.start()].count("\n") + 1, language, frozenset(marks), each["code"]))
    return found


@dataclass(frozen=True)
class Stack:
    """A running stack, and what a reader's shell knows of it."""

    environment: dict[str, str]
    has: set[str]


@pytest.fixture(scope="module", params=["null", pytest.param("paged", marks=pytest.mark.long)])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """All processes, with the null engine, which writes at once, and in the long matrix with the bundled model."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-tests-"))
    data_dir = folder / "data"
    tools = folder / "bin"
    tools.mkdir()
    for name, module in (("penstock", "-m app.cli.main"), ("python", "")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        tool.chmod(0o755)
    settings = {
        "PENSTOCK_ENGINE": request.param,
        "PENSTOCK_NULL_STEP_S": "0.01",
        "PENSTOCK_KV_CACHE_MIB": "64",
        "PENSTOCK_WEBHOOK_ALLOW_LOCAL": "true",
    }
    up = Up("up", "--port", 0, "--data-dir", data_dir, **settings)
    try:
        up.wait_until_up()
        with httpx.Client(base_url=up.url, trust_env=False) as client:
            has = {name for name, asked in NEEDS.items() if client.request(*asked).status_code not in {404, 405}}
        environment = os.environ | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PENSTOCK_URL": up.url,
            "PENSTOCK_API_KEY": up.key,
            "PENSTOCK_DATA_DIR": str(data_dir),
            "PENSTOCK_ENGINE": request.param,
        }
        yield Stack(environment, has)
    finally:
        tree = up.tree() if up.process.poll() is None else []
        status = up.end()
        shutil.rmtree(folder, ignore_errors=True)
    assert status == 0, up.output
    assert have_ended(tree)


def run_session(blocks: list[Block], folder: Path, environment: dict[str, str]) -> tuple[int, dict[int, str]]:
    """The shell's exit status, and what each snippet printed, by its line; `errors.txt` has standard error. It stops at the first that fails."""
    parts = ["set -euo pipefail", "exec 2> ../errors.txt", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    parts += [f"echo '{MARK} {block.line}'\n{block.script}" for block in blocks]
    (folder / "session.sh").write_text("\n".join(parts), encoding="utf-8")
    work = folder / "work"
    work.mkdir()
    shell = subprocess.Popen(
        ["bash", folder / "session.sh"], cwd=work, env=environment, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = shell.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    printed = {}
    for part in out.split(f"{MARK} ")[1:]:
        line, _, said = part.partition("\n")
        printed[int(line)] = said
    return shell.returncode, printed


def fits(printed: str, wanted: str) -> bool:
    """Whether it is what the page says, `…` standing for anything."""
    pattern = re.escape(wanted.rstrip("\n")).replace("…", ".*")
    return re.fullmatch(pattern, printed.rstrip("\n"), re.DOTALL) is not None


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_runs_and_prints_what_it_says(stack: Stack, path: Path, tmp_path: Path) -> None:
    blocks = blocks_of(path.read_text(encoding="utf-8"))
    runnable = [block for block in blocks if block.runs]
    here = [block for block in runnable if block.needs <= stack.has]
    missing = set().union(*(block.needs for block in runnable)) - stack.has
    if not here:
        pytest.skip(f"needs: {', '.join(sorted(missing))}")
    status, printed = run_session(here, tmp_path, stack.environment)
    last = max(printed)
    assert status == 0, f"{path.name}:{last} failed:\n{printed[last]}{(tmp_path / 'errors.txt').read_text()}"
    for block, following in itertools.pairwise(blocks):
        if block in here and following.marks == {"output"}:
            assert fits(printed[block.line], following.code), f"{path.name}:{following.line}:\n{printed[block.line]}"


def test_each_page_is_listed_and_has_snippets_that_are_checked() -> None:
    listed = (HOWTO / "README.md").read_text(encoding="utf-8")
    assert len(PAGES) >= 8
    for path in PAGES:
        assert f"({path.name})" in listed
        blocks = blocks_of(path.read_text(encoding="utf-8"))
        assert any(block.marks == {"output"} for block in blocks), path.name
        for block in blocks:
            assert block.needs <= NEEDS.keys(), f"{path.name}:{block.line}"
            assert block.runs == (block.language in {"bash", "python"}), f"{path.name}:{block.line} isn't marked"


def test_what_fails_or_prints_something_else_is_found(tmp_path: Path) -> None:
    page = "# A\n\n```bash run\necho one two\n```\n\n```bash run\nfalse\n```\n\n```python run\nprint(3)\n```\n"
    status, printed = run_session(blocks_of(page), tmp_path, dict(os.environ))
    assert (status, printed) == (1, {3: "one two\n", 7: ""})
    assert fits("one two\n", "one …\n")
    assert not fits("one two\n", "one\n")
    assert not fits("one", "o.e")
