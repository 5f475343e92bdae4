"""Are errors one clear line, is bad input named by its line, and does the help come at once?"""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.configured import settings_of
from app.cli.doctor import bundled_model
from app.cli.errors import without_password
from app.cli.folder import DataFolder, completed, process_environment
from app.cli.prompts import JOBS, TENANTS
from app.cli.stack import base_url
from app.jobs.request import JobRequest
from app.jobs.states import TIERS
from app.settings import Settings
from tests.support.cli import Run, write_lines

HEAVY = {"httpx", "pydantic", "sqlalchemy", "redis", "fastapi", "torch", "tokenizers", "app.settings"}


def test_the_help_loads_nothing_that_is_heavy() -> None:
    code = (
        "import sys; sys.argv = ['penstock', '--help']\n"
        "from app.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('loaded:', *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    help_text, _, loaded = out.rpartition("loaded:")
    assert HEAVY & set(loaded.split()) == set()
    for command in (
        "up",
        "demo",
        "api",
        "worker",
        "maintenance",
        "webhooks",
        "migrate",
        "doctor",
        "submit",
        "jobs",
        "keys",
    ):
        assert f" {command} " in help_text


def test_ctrl_c_while_it_imports_is_quiet() -> None:
    code = (
        "import sys\n"
        "class Pressed:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'app.cli.job_commands': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "from app.cli.__main__ import main\n"
        "main()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-command"], "penstock: no such command 'no-such-command'; `penstock --help` shows how"),
        (["submit"], "penstock submit: invalid value: give exactly one of PROMPT, --file and --jsonl"),
        (["submit", "a", "--tier", "fast"], "penstock submit: invalid value for '--tier': 'fast' is not one of"),
        (["submit", "a", "--max-tokens", "0"], "penstock submit: invalid value for '--max-tokens'"),
        (["up", "--port", "70000"], "penstock up: invalid value for '--port'"),
        (["jobs", "show"], "penstock jobs show: missing argument 'ID'"),
        (["keys", "create", "t", "--scope", "root"], "penstock keys create: invalid value for '--scope'"),
    ],
)
def test_a_wrong_call_is_told_in_one_line_with_status_2(penstock: Run, arguments: list[str], message: str) -> None:
    result = penstock(*arguments)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(message)
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"PENSTOCK_API_PORT": "99999"},
            "PENSTOCK_API_PORT: input should be less than or equal to 65535 (it is '99999')",
        ),
        ({"PENSTOCK_LEASE_TTL_S": "soon"}, "PENSTOCK_LEASE_TTL_S: input should be a valid number"),
        (
            {"PENSTOCK_LEASE_RENEW_S": "100"},
            "lease_renew_s < lease_fence_s < lease_ttl_s must hold: a worker",
        ),
        ({}, "DATABASE_URL isn't set"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL must look like postgresql://"),
        ({"DATABASE_URL": "postgresql://u:p@127.0.0.1:1/d"}, "Postgres doesn't answer: "),
    ],
)
def test_a_wrong_configuration_is_told_in_one_line(
    penstock: Run, tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    for command in (["migrate"], ["keys", "list"]):
        result = penstock(*command, "--data-dir", tmp_path, **environment)
        assert (result.status, result.out) == (1, "")
        assert result.err.startswith(f"penstock: {message}")
        assert result.err.count("\n") == 1


def test_no_api_is_told_in_one_line(penstock: Run, tmp_path: Path) -> None:
    result = penstock("jobs", "list", "--url", "http://127.0.0.1:1", "--key", "pk", "--data-dir", tmp_path)
    assert result.status == 1
    assert result.err == (
        "penstock: no answer from http://127.0.0.1:1 (Connection refused): is `penstock up` running?\n"
    )


def test_every_bad_line_is_named_and_nothing_is_handed_in(penstock: Run, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "jobs.jsonl",
        '{"prompt": "good"}',
        "not json",
        '["a list"]',
        "",
        '{"prompt": "hot", "temperature": 3}',
        '{"promt": "typo"}',
    )
    result = penstock("submit", "--jsonl", path, "--url", "http://127.0.0.1:1", "--key", "pk")
    assert result.status == 1
    assert result.out == ""
    lines = result.err.splitlines()
    assert lines[0] == f"penstock: {path}:2: not JSON: Expecting value: line 1 column 1 (char 0)"
    assert lines[1].startswith(f"{path}:3: must be a JSON object")
    assert lines[2] == f"{path}:5: temperature: must be less than or equal to 2"
    assert lines[3] == f"{path}:6: promt: isn't a known field"
    assert lines[-1] == "nothing was handed in: 4 things to mend"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\n\xff\n", ":2: not UTF-8"),
        (b"\n\n", "there is no prompt in it"),
        (b"a\x00b\n", ":1: prompt: must not contain"),
    ],
)
def test_a_file_that_isnt_one_is_refused(penstock: Run, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    result = penstock("submit", "--file", path)
    assert result.status == 1
    assert message in result.err
    missing = penstock("submit", "--file", tmp_path / "missing.txt")
    assert missing.err == f"penstock: No such file or directory: {tmp_path / 'missing.txt'}\n"


def test_the_pepper_is_made_once_for_its_owner_only_and_found_by_other_commands(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    pepper = folder.make_pepper()
    assert folder.make_pepper() == pepper
    assert len(pepper) >= 32
    assert stat.S_IMODE((tmp_path / "key-pepper").stat().st_mode) == 0o600
    folder.announce("http://x", database_url="postgresql://up", redis_url="redis://up")
    found = completed(Settings(data_dir=tmp_path))
    assert (found.database_url, found.redis_url) == ("postgresql://up", "redis://up")
    assert process_environment(found)["PENSTOCK_KEY_PEPPER"] == pepper
    folder.retract()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key-pepper"]
    assert completed(Settings(data_dir=tmp_path)).database_url is None


def test_a_restored_database_isnt_paired_with_the_redis_of_a_running_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    DataFolder(tmp_path).announce("http://x", database_url="postgresql://up/penstock", redis_url="redis://up")
    monkeypatch.setenv("DATABASE_URL", "postgresql://up/restored")
    found = settings_of(tmp_path)
    assert (found.database_url, found.redis_url) == ("postgresql://up/restored", None)
    said = capsys.readouterr().err
    assert said.startswith("penstock: DATABASE_URL isn't that of the `penstock up` in")
    assert "set REDIS_URL" in said
    monkeypatch.setenv("REDIS_URL", "redis://mine")
    assert settings_of(tmp_path).redis_url == "redis://mine"
    monkeypatch.delenv("DATABASE_URL")
    assert settings_of(tmp_path).database_url is None
    assert "REDIS_URL isn't that of" in capsys.readouterr().err


def test_servers_that_are_the_ups_own_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    DataFolder(tmp_path).announce("http://x", database_url="postgresql://mine", redis_url="redis://up")
    monkeypatch.setenv("DATABASE_URL", "postgresql://mine")
    assert settings_of(tmp_path).redis_url == "redis://up"
    assert capsys.readouterr().err == ""


def test_a_configured_pepper_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DataFolder(tmp_path).make_pepper()
    monkeypatch.setenv("PENSTOCK_KEY_PEPPER", "own")
    assert completed(Settings(data_dir=tmp_path)).key_pepper.get_secret_value() == "own"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p%40ss@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("redis://:secret@[::1]:6379/0", "redis://:***@[::1]:6379/0"),
        ("redis://h/0", "redis://h/0"),
        ("unix://:secret@/run/redis.sock?db=0", "unix://:***@/run/redis.sock?db=0"),
        ("unix:///run/redis.sock?db=0&password=secret", "unix:///run/redis.sock?db=0&password=***"),
    ],
)
def test_passwords_arent_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("::1", "http://[::1]:80"), ("h", "http://h:80")],
)
def test_the_url_is_one_that_can_be_called(host: str, url: str) -> None:
    assert base_url(Settings(api_host=host, api_port=80)) == url


def test_the_demos_jobs_are_valid_and_use_what_there_is() -> None:
    for job in JOBS:
        JobRequest.model_validate(job.body)
    assert len(JOBS) == 20
    assert {job.tier for job in JOBS} == set(TIERS)
    assert {job.tenant for job in JOBS} == set(TENANTS)
    assert any("seed" in job.body for job in JOBS)
    assert any(job.body.get("n") == 2 for job in JOBS)
    assert any("prompt" in job.body for job in JOBS)
    assert json.loads(json.dumps([job.body for job in JOBS]))


def test_doctor_says_what_fails_and_what_to_do(penstock: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = penstock(
        "doctor",
        DATABASE_URL="postgresql://u:secret@127.0.0.1:1/d",
        REDIS_URL="redis://:secret@127.0.0.1:1/0",
        PENSTOCK_MODEL=str(tmp_path),
        PENSTOCK_DEVICE="cpu",
    )
    assert result.status == 1
    assert "secret" not in result.out
    failed = [line.split()[1] for line in result.out.splitlines() if line.startswith("fail")]
    assert failed == ["postgres", "redis", "model"]
    assert result.out.count("→ ") >= 3
    assert "has no tokenizer.json" in result.out or "No such file" in result.out


def test_doctor_says_how_an_address_of_redis_looks(penstock: Run, tmp_path: Path) -> None:
    result = penstock("doctor", REDIS_URL="unix://run/redis.sock?password=secret", PENSTOCK_ENGINE="null")
    (line,) = [each for each in result.out.splitlines() if each.startswith("fail  redis")]
    assert "REDIS_URL must look like redis://" in line
    assert "secret" not in result.out


def test_doctor_finds_weights_that_were_cut_short(penstock: Run, tmp_path: Path) -> None:
    for path in bundled_model().iterdir():
        (tmp_path / path.name).symlink_to(path)
    weights = tmp_path / "model.safetensors"
    cut = weights.read_bytes()[:-10]
    weights.unlink()
    weights.write_bytes(cut)
    result = penstock("doctor", PENSTOCK_MODEL=str(tmp_path), PENSTOCK_DEVICE="cpu")
    assert "was cut short" in result.out
    assert result.status == 1


def test_doctor_deep_runs_the_engine(penstock: Run, tmp_path: Path) -> None:
    result = penstock("doctor", "--deep", "--data-dir", tmp_path, PENSTOCK_ENGINE="null", PENSTOCK_DEVICE="cpu")
    assert result.status == 0, result.out
    assert "ok    engine     null on cpu" in result.out
    bad = penstock("doctor", "--deep", "--model", tmp_path, "--data-dir", tmp_path, PENSTOCK_ENGINE="null")
    assert bad.status == 1
    assert [line for line in bad.out.splitlines() if line.startswith("fail  engine")]
