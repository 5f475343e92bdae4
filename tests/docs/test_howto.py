"""Do the how-to pages do what they say? Each page is one session of a shell, against one real stack for all of them."""

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

import httpx
import pytest

from tests.support.cli import Up
from tests.support.processes import have_ended
from tests.support.shell import blocks_of, commands_of, fits, fits_but_for_figures, run_session

ROOT = Path(__file__).parents[2]
HOWTO = ROOT / "docs" / "howto"
PAGES = sorted(path for path in HOWTO.glob("*.md") if path.name != "README.md")
QUICKSTART = HOWTO.parent / "quickstart.md"
# What a snippet may need, by a request that is answered with 404 or 405 where the API hasn't got it: nobody shows a key.
NEEDS = {
    "streams": ("GET", f"/v1/jobs/job_{'0' * 32}/events"),
    "bulk": ("POST", "/v1/jobs/bulk"),
    "batches": ("POST", "/v1/batches"),
    "openai": ("POST", "/v1/chat/completions"),
}


@dataclass(frozen=True)
class Stack:
    """A running stack, and what a reader's shell knows of it."""

    environment: dict[str, str]
    has: set[str]


@pytest.fixture(scope="module", params=["null", pytest.param("paged", marks=pytest.mark.long)])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """All processes, with the null engine, which writes at once, and in the long matrix with the bundled model; one for all pages."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-tests-"))
    data_dir = folder / "data"
    tools = folder / "bin"
    tools.mkdir()
    for name, module in (("penstock", "-m app.cli"), ("python", "")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        tool.chmod(0o755)
    settings = {
        "PENSTOCK_ENGINE": request.param,
        "PENSTOCK_NULL_STEP_S": "0.01",
        "PENSTOCK_MODEL_NAME": "brook",
        "PENSTOCK_KV_CACHE_MIB": "64",
        "PENSTOCK_WEBHOOK_ALLOW_LOCAL": "true",
    }
    up = Up("up", "--port", 0, "--data-dir", data_dir, **settings)
    try:
        up.wait_until_up()
        with httpx.Client(base_url=up.url, trust_env=False, timeout=60) as client:
            has = {name for name, asked in NEEDS.items() if client.request(*asked).status_code not in {404, 405}}
            has |= {"model"} if request.param == "paged" else set()
        environment = os.environ | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PENSTOCK_URL": up.url,
            "PENSTOCK_API_KEY": up.key,
            "PENSTOCK_DATA_DIR": str(data_dir),
        }
        if request.param == "null":  # a reader names no engine: theirs is the default
            environment["PENSTOCK_ENGINE"] = "null"
        yield Stack(environment, has)
    finally:
        tree = up.tree() if up.process.poll() is None else []
        status = up.end()
        shutil.rmtree(folder, ignore_errors=True)
    assert status == 0, up.output
    assert have_ended(tree)


def test_the_quickstart_prints_what_it_says(stack: Stack, tmp_path: Path) -> None:
    """A transcript of one shell, on a stack that did nothing before; what the model writes, and the dead letter, are part of the long matrix."""
    text = QUICKSTART.read_text(encoding="utf-8")
    for shown, here in {
        "http://127.0.0.1:8000": stack.environment["PENSTOCK_URL"],
        "/home/you/penstock/.venv": sys.prefix,
        "/home/you/penstock/.penstock": stack.environment["PENSTOCK_DATA_DIR"],
        "--port 9798": "--port 0",
        " on vm": f" on {gethostname()}",
    }.items():
        assert shown in text
        text = text.replace(shown, here)
    blocks = [block for block in blocks_of(text) if block.runs and block.needs <= stack.has]
    commands = [command for block in blocks for command in commands_of(block)]
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".penstock").symlink_to(stack.environment["PENSTOCK_DATA_DIR"])
    status, printed = run_session([command.block for command in commands], tmp_path, stack.environment, 150.0)
    last = max(printed)
    assert status == 0, f"{last} failed:\n{printed[last]}{(tmp_path / 'errors.txt').read_text()}"
    for command in commands:
        said = printed[command.block.line]
        assert fits_but_for_figures(said, command.wanted), f"{command.block.line}:\n{command.block.code}\n{said}"


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


def test_a_transcript_is_held_against_what_is_printed_but_for_figures(tmp_path: Path) -> None:
    (block,) = blocks_of(
        "```console run\n$ echo job_0123456789abcdef0123456789abcdef  at 12\njob_ID at 7\n\n$ X=5\n$ echo $X no >&2\n3 yes\n```\n"
    )
    commands = commands_of(block)
    status, printed = run_session([each.block for each in commands], tmp_path, dict(os.environ))
    assert status == 0
    assert [fits_but_for_figures(printed[each.block.line], each.wanted) for each in commands] == [True, True, False]
