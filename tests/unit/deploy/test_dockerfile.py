"""Would the Dockerfile build what it should? There is no engine in the tests: it is parsed, and held against the repository."""

import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

from tests.support.deployment import COMMANDS, ROOT, setting_names

TARGETS = ("cpu", "cuda")


@pytest.fixture(scope="module")
def steps() -> list[dict[str, str]]:
    """Instructions in their order."""
    parser = DockerfileParser(path=str(ROOT / "Dockerfile"))
    return [step for step in parser.structure if step["instruction"] != "COMMENT"]


def stages(steps: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Instructions of each stage, by its name, FROM first."""
    found: dict[str, list[dict[str, str]]] = {}
    for step in steps:
        if step["instruction"] == "FROM":
            words = step["value"].split()
            assert words[1].upper() == "AS", f"a stage has a name: {step['value']}"
            found[words[2]] = []
        found[next(reversed(found))].append(step)
    return found


def lineage(steps: list[dict[str, str]], stage: str) -> list[dict[str, str]]:
    """All instructions that an image of this stage comes from by FROM, oldest first."""
    known = stages(steps)
    parent = known[stage][0]["value"].split()[0]
    return (lineage(steps, parent) if parent in known else []) + known[stage]


def values(steps: list[dict[str, str]], instruction: str) -> list[str]:
    return [step["value"] for step in steps if step["instruction"] == instruction]


def test_each_base_image_has_one_version(steps: list[dict[str, str]]) -> None:
    known = stages(steps)
    outside = {step["value"].split()[0] for step in steps if step["instruction"] == "FROM"} - set(known)
    assert outside == {"python:3.11.13-slim-bookworm"}
    assert all(re.fullmatch(r"[^:]+:\d+\.\d+\.\d+[a-z0-9.-]*", image) for image in outside), "never latest"


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_nobody_under_an_init_and_says_how_it_is(steps: list[dict[str, str]], target: str) -> None:
    image = lineage(steps, target)
    user, group = values(image, "USER")[-1].split(":")
    assert min(int(user), int(group)) >= 10_000
    assert values(image, "ENTRYPOINT") == ['["tini", "--", "penstock"]']
    (command,) = values(image, "CMD")
    assert command.strip('[]"') in COMMANDS
    assert 'CMD ["python", "-P", "-m", "app.cli.health"]' in values(image, "HEALTHCHECK")[0]
    after = image[[step["instruction"] for step in image].index("USER") :]
    assert "RUN" not in {step["instruction"] for step in after}, "what comes after USER installs nothing"


@pytest.mark.parametrize("target", TARGETS)
def test_what_it_copies_exists_and_goes_past_dockerignore(steps: list[dict[str, str]], target: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    (copied,) = values(stages(steps)[target], "COPY")
    source = re.match(r"--from=(\S+) (\S+) (\S+)", copied)
    assert source
    assert source[2] == source[3] == "/opt/penstock"
    for value in values(lineage(steps, source[1]), "COPY"):
        for name in value.split()[:-1]:
            assert (ROOT / name).exists(), name
            assert f"!{name}" in ignored, name


def test_both_images_are_built_alike_but_for_torch(steps: list[dict[str, str]]) -> None:
    cpu, cuda = [stages(steps)[f"build-{target}"][1:] for target in TARGETS]
    assert [step["content"].replace(" --index-url https://download.pytorch.org/whl/cpu", "") for step in cpu] == [
        step["content"] for step in cuda
    ]


def test_torch_is_the_one_that_is_tested(steps: list[dict[str, str]]) -> None:
    pinned = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned
    installed = [each for value in values(steps, "RUN") for each in re.findall(r"torch==\S+", value)]
    assert installed == [pinned[0]] * 2
    assert all(
        "-c constraints.txt" in line
        for value in values(steps, "RUN")
        for line in re.findall(r"pip install [^&]*", value)
        if "--no-deps" not in line
    )


def test_its_settings_are_ours(steps: list[dict[str, str]]) -> None:
    names = re.findall(r"\b(PENSTOCK_[A-Z_]+)=", " ".join(values(steps, "ENV")))
    assert names
    assert set(names) <= setting_names()


def test_the_dependencies_are_read_from_pyproject_as_the_step_does(steps: list[dict[str, str]], tmp_path: Path) -> None:
    (command,) = [value for value in values(steps, "RUN") if "tomllib" in value]
    code = re.search(r'python -c "(.*)" > requirements.txt', command)
    assert code
    made = subprocess.run([sys.executable, "-c", code[1]], cwd=ROOT, capture_output=True, text=True, timeout=30)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert made.stdout.splitlines() == wanted


def test_secrets_are_drawn_once_and_for_their_owner_only(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "deploy/make_env.py"), str(tmp_path / "env")]
    first = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert first.returncode == 0, first.stderr
    made = {path.name: path.read_text() for path in (tmp_path / "env").iterdir()}
    assert set(made) == {"penstock.env", "postgres.env", "redis.env", "grafana.env"}
    assert all(stat.S_IMODE((tmp_path / "env" / name).stat().st_mode) == 0o600 for name in made)
    variables = {line.split("=")[0] for line in made["penstock.env"].splitlines()}
    assert variables <= setting_names()
    password = re.search(r"POSTGRES_PASSWORD=(\S+)", made["postgres.env"])
    assert password
    assert f":{password[1]}@postgres:5432/penstock" in made["penstock.env"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert again.returncode == 1
    assert {path.name: path.read_text() for path in (tmp_path / "env").iterdir()} == made
