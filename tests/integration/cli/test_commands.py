"""Do the commands do their work against a running `penstock up`, found by its data folder?"""

import json
import signal
import socket
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import urlsplit

import pytest

from app.cli.doctor import bundled_model
from tests.support.cli import Run, Up, write_lines
from tests.support.processes import have_ended


@pytest.fixture(autouse=True)
def here(up: Up, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands look into the data folder of `up`."""
    monkeypatch.setenv("PENSTOCK_DATA_DIR", str(data_dir))


def test_a_prompt_gives_its_text_on_standard_output_and_nothing_else(penstock: Run) -> None:
    first = penstock("submit", "Once upon a time", "--max-tokens", 8, "--seed", 5)
    again = penstock("submit", "-", "--max-tokens", 8, "--seed", 5, stdin="Once upon a time\n")
    assert (first.status, first.err) == (0, "")
    assert len(first.out.strip()) > 3
    assert first == again


def test_a_file_of_prompts_gives_results_in_its_order(penstock: Run, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "prompts.txt", "one", "", "two", "three")
    result = penstock("submit", "--file", path, "--max-tokens", 3, "--n", 2, "--tier", "interactive")
    assert result.status == 0
    headings = [line for line in result.out.splitlines() if line.startswith("--- ")]
    assert headings == [f"--- {path}:{line}, choice {choice}" for line in (1, 3, 4) for choice in (1, 2)]


def test_jsonl_gives_a_job_object_a_line(penstock: Run, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "jobs.jsonl",
        '{"prompt": "a", "max_tokens": 2, "metadata": {"line": "1"}}',
        '{"prompt": "b", "tier": "batch", "metadata": {"line": "2"}}',
    )
    result = penstock("submit", "--jsonl", path, "--max-tokens", 3, "--tier", "interactive", "--json")
    jobs = [json.loads(line) for line in result.out.splitlines()]
    assert result.status == 0
    assert [job["metadata"]["line"] for job in jobs] == ["1", "2"]
    assert [(job["tier"], job["usage"]["completion_tokens"]) for job in jobs] == [("interactive", 2), ("batch", 3)]


def test_what_the_server_refuses_is_told_with_its_line_and_the_others_go_on(penstock: Run, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "jobs.jsonl", '{"prompt": "a", "model": "unheard-of"}', '{"prompt": "b"}')
    result = penstock("submit", "--jsonl", path, "--max-tokens", 2, "--json")
    assert result.status == 1
    assert f"{path}:1: " in result.err
    assert "unheard-of" in result.err
    assert [json.loads(line)["status"] for line in result.out.splitlines()] == ["succeeded"]


def test_a_job_is_listed_shown_watched_and_cancelled(penstock: Run) -> None:
    job_id = penstock("submit", "long", "--max-tokens", 6000, "--no-wait").out.strip()
    _until_running(penstock, job_id)
    assert job_id in penstock("jobs", "list", "--status", "running").out
    cancelled = penstock("jobs", "cancel", job_id)
    assert cancelled.status == 0
    assert job_id in cancelled.out
    watched = penstock("jobs", "watch", job_id)
    assert watched.status == 1
    shown = penstock("jobs", "show", job_id)
    assert shown.status == 0
    assert "status    cancelled" in shown.out
    again = penstock("jobs", "watch")
    assert again.status == 0
    assert job_id in again.out
    missing = penstock("jobs", "show", "job_" + "0" * 32)
    assert missing.status == 1
    assert missing.err.startswith("penstock: there is no job job_000")
    assert missing.err.count("\n") == 1


def test_a_key_opens_the_door_until_it_is_revoked(penstock: Run) -> None:
    created = penstock("keys", "create", "new-tenant", "--name", "ci", "--expires-days", 1)
    token = created.out.strip()
    assert created.status == 0
    assert "tenant new-tenant was new" in created.err
    assert token.startswith("pk_")
    assert penstock("submit", "a", "--max-tokens", 1, "--key", token).status == 0
    listed = penstock("keys", "list", "--tenant", "new-tenant").out
    prefix = token.split("_")[1]
    assert prefix in listed
    assert token not in listed
    # Another one, since the API remembers for some seconds what it has seen.
    token = penstock("keys", "create", "new-tenant", "--scope", "jobs:write").out.strip()
    prefix = token.split("_")[1]
    assert penstock("keys", "revoke", token).status == 0
    refused = penstock("submit", "a", PENSTOCK_API_KEY=token)
    assert refused.status == 1
    assert refused.err == "penstock: the API key isn't valid: check it, or have a new one made (unauthenticated)\n"
    twice = penstock("keys", "revoke", prefix)  # changes nothing
    assert (twice.status, twice.out) == (0, f"{prefix} is revoked\n")
    nobody = penstock("keys", "revoke", "0" * 12)
    assert (nobody.status, nobody.err.count("\n")) == (1, 1)
    assert "penstock keys list" in nobody.err


def test_a_job_that_is_shown_says_what_it_cost(penstock: Run) -> None:
    free = json.loads(penstock("submit", "Once", "--max-tokens", 4, "--json").out)
    assert penstock("models", "price", free["model"], "--output", 500_000).status == 0
    try:
        paid = json.loads(penstock("submit", "Once", "--max-tokens", 4, "--json").out)
    finally:
        penstock("models", "price", free["model"], "--output", 0)
    assert (free["cost_micros"], paid["cost_micros"]) == (None, 2)
    assert "\ncost      2 millionths of the currency\n" in penstock("jobs", "show", paid["id"]).out
    assert "\ncost " not in penstock("jobs", "show", free["id"]).out


def test_a_tenants_webhook_secret_is_shown_to_the_operator(penstock: Run) -> None:
    assert penstock("keys", "create", "hooked").status == 0
    shown = penstock("keys", "webhook-secret", "hooked")
    assert shown.status == 0
    assert shown.out.startswith("whsec_")
    rotated = penstock("keys", "rotate-webhook-secret", "hooked", "--overlap-hours", "1")
    assert (rotated.status, rotated.out[:6]) == (0, "whsec_")
    assert penstock("keys", "webhook-secret", "hooked").out == rotated.out != shown.out
    missing = penstock("keys", "webhook-secret", "nobody")
    assert (missing.status, missing.err.count("\n")) == (1, 1)


def test_a_key_for_a_bad_tenant_is_refused_in_one_line(penstock: Run) -> None:
    result = penstock("keys", "create", "No Slug")
    assert result.status == 1
    assert result.err == "penstock: tenant: use 1 to 63 of a-z, 0-9 and -, not beginning with -\n"


def test_an_operator_stops_a_model_and_lets_it_go_on(penstock: Run) -> None:
    assert penstock("models", "breaker", "null").out.startswith("null: takes new jobs (closed by its error rate")
    assert penstock("models", "breaker", "null", "open").out.startswith(
        "null: takes no new jobs (open by an operator's word"
    )
    assert penstock("models", "breaker").out.count("null: takes no new jobs") == 1
    assert "null is open by an operator's word" in penstock("doctor", PENSTOCK_ENGINE="null").out
    assert penstock("models", "breaker", "null", "auto").out.startswith(
        "null: takes new jobs (closed by its error rate"
    )
    assert "breaker" not in penstock("doctor", PENSTOCK_ENGINE="null").out
    unknown = penstock("models", "breaker", "unheard-of")
    assert unknown.status == 1
    assert "'unheard-of' is not known" in unknown.err


def test_doctor_finds_a_running_stack_well(penstock: Run) -> None:
    result = penstock("doctor", PENSTOCK_ENGINE="null")
    assert result.status == 0, result.out
    levels = {line.split()[1]: line.split()[0] for line in result.out.splitlines() if not line.startswith(" ")}
    checks = ("python", "postgres", "schema", "worker", "redis", "model", "device")
    assert {check: levels[check] for check in checks} == dict.fromkeys(checks, "ok")
    assert penstock("migrate").out.startswith("schema: at ")


def test_doctor_speaks_of_the_model_that_is_served_and_not_of_the_bundled_one(penstock: Run) -> None:
    def models(*options: object) -> list[str]:
        lines = penstock("doctor", *options, PENSTOCK_DEVICE="cpu").out.splitlines()
        return [line.split(maxsplit=2)[2] for line in lines if line.split()[1:2] == ["model"]]

    (served,) = models()
    assert served.startswith("null: served by 1 worker, up to ")
    assert [line.partition(":")[0] for line in models("--model", bundled_model())] == ["null", "brook"]


def test_a_second_up_says_in_one_line_what_is_in_use(up: Up, data_dir: Path, tmp_path: Path) -> None:
    port = urlsplit(up.url).port
    other = Up("up", "--port", port, "--data-dir", tmp_path)
    same = Up("up", "--port", 0, "--data-dir", data_dir)
    assert other.wait() == 1
    assert other.output.startswith(f"penstock: port {port} on 127.0.0.1 can't be used (Address already in use)")
    assert other.output.count("\n") == 1
    assert same.wait() == 1
    assert f"is already in use by pid {up.process.pid}" in same.lines[-1]
    assert (data_dir / "url").read_text().strip() == up.url


def test_a_part_that_dies_is_started_again_and_said_so(up: Up, penstock: Run) -> None:
    dead = [up.part("workers.maintenance.main"), up.part("redis-server")]
    for process in dead:
        process.send_signal(signal.SIGKILL)
    up.wait_for(r"ended +maintenance +killed by SIGKILL.*started again in")
    up.wait_for(r"ended +redis +killed by SIGKILL.*started again in")
    assert have_ended(dead)
    result = penstock("submit", "after the crash", "--max-tokens", 2)
    assert result.status == 0, result.err
    assert up.part("workers.maintenance.main").pid != dead[0].pid


def _until_running(penstock: Run, job_id: str) -> None:
    give_up_at = monotonic() + 20
    while json.loads(penstock("jobs", "show", job_id, "--json").out)["status"] != "running":
        assert monotonic() < give_up_at
        sleep(0.05)


def test_a_taken_port_is_found_before_anything_is_started(penstock: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = penstock("up", "--port", taken.getsockname()[1], "--data-dir", tmp_path / "new")
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert "give another --port, or PENSTOCK_API_PORT" in result.err
    assert not (tmp_path / "new").exists()
