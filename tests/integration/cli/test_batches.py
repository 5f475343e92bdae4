"""Does `penstock batches` hand a file in, watch it and bring its results?"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import httpx

from tests.support.batches import chat_line, jsonl
from tests.support.cli import Run, Up


def test_a_batch_from_its_file_to_its_results(up: Up, penstock: Run, data_dir: Path, tmp_path: Path) -> None:
    where = ("--data-dir", data_dir)
    file = tmp_path / "in.jsonl"
    file.write_bytes(jsonl([chat_line(f"c{n}", f"Question {n}") for n in range(5)]))
    ran = penstock("batches", "submit", file, "--json", *where)
    assert ran.status == 0, ran.err
    batch = json.loads(ran.out)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 5)

    shown = penstock("batches", "show", batch["id"], *where).out
    assert "5 of 5" in shown
    assert batch["output_file_id"] in shown
    assert batch["id"] in penstock("batches", "list", *where).out

    saved = tmp_path / "out.jsonl"
    assert penstock("batches", "download", batch["id"], "--output", saved, *where).status == 0
    lines = [json.loads(line) for line in saved.read_text().splitlines()]
    assert sorted(each["custom_id"] for each in lines) == [f"c{n}" for n in range(5)]

    refused = penstock("batches", "cancel", batch["id"], *where)
    assert refused.status == 1
    assert "completed" in refused.err
    assert penstock("batches", "change", batch["id"], *where).status == 1


def test_a_file_with_a_wrong_line_is_said_by_its_line(up: Up, penstock: Run, data_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(jsonl([chat_line("a"), chat_line("a")]))
    ran = penstock("batches", "submit", file, "--data-dir", data_dir)
    assert ran.status == 1
    assert "line 2" in ran.out
    assert "duplicate_custom_id" in ran.out
    assert penstock("batches", "submit", tmp_path / "absent.jsonl", "--data-dir", data_dir).status == 1


def test_lines_that_failed_are_told_by_code_with_the_next_step(
    up: Up, penstock: Run, data_dir: Path, tmp_path: Path
) -> None:
    where = ("--data-dir", data_dir)
    file, errors, output = tmp_path / "in.jsonl", tmp_path / "errors.jsonl", tmp_path / "out.jsonl"
    greedy = [chat_line(f"greedy-{n}", max_tokens=100_000) for n in range(4)]
    file.write_bytes(jsonl([chat_line("good"), *greedy]))
    ran = penstock("batches", "submit", file, *where)
    assert ran.status == 1
    assert "1 of 5, 4 failed" in ran.out
    assert "\n  4 x context_length_exceeded (greedy-" in ran.out
    assert ", …): max_tokens: must be at most " in ran.out
    (name,) = set(re.findall(r"batch_\w+", ran.out))
    assert f"`penstock batches download {name} --errors FILE`" in ran.out
    assert "4 x context_length_exceeded" in penstock("batches", "show", name, *where).out

    only_errors = penstock("batches", "download", name, "--errors", errors, *where)
    assert only_errors.out == f"{errors}: {errors.stat().st_size} bytes\n"
    assert len(errors.read_text().splitlines()) == 4
    both = penstock("batches", "download", name, "--errors", errors, "--output", output, *where)
    assert (len(errors.read_text().splitlines()), len(output.read_text().splitlines())) == (4, 1)
    assert both.out.count(" bytes\n") == 2

    shown = json.loads(penstock("batches", "show", name, "--json", *where).out)
    bearer = {"Authorization": f"Bearer {up.key}"}
    httpx.delete(f"{up.url}/v1/files/{shown['error_file_id']}", headers=bearer, timeout=60).raise_for_status()
    late = penstock("batches", "show", name, *where)
    assert "why they failed can't be read" in late.out
    assert "--errors FILE" not in late.out, "there is nothing to save"


def test_ctrl_c_tells_what_goes_on(up: Up, penstock: Run, data_dir: Path, tmp_path: Path) -> None:
    where = ("--data-dir", data_dir)
    file = tmp_path / "slow.jsonl"
    file.write_bytes(jsonl([chat_line("slow", max_tokens=7000)]))  # 70 s
    watching = Up("batches", "submit", file, *where)
    wait_until(lambda: "in_progress" in penstock("batches", "list", *where).out)
    assert watching.end() == 130, watching.output
    assert (found := re.search(r"(batch_\w+) goes on", watching.output)), watching.output
    assert penstock("batches", "cancel", found[1], *where).status == 0
    wait_until(lambda: "running" not in penstock("jobs", "list", *where).out)

    waiting = Up("submit", "Hello", "--max-tokens", 7000, *where)
    wait_until(lambda: "running" in penstock("jobs", "list", *where).out)
    assert waiting.end() == 130, waiting.output
    assert (found := re.search(r"(job_\w+) goes on", waiting.output)), waiting.output
    assert penstock("jobs", "cancel", found[1], *where).status == 0


def wait_until(is_so: Callable[[], bool], timeout_s: float = 20.0) -> None:
    give_up_at = monotonic() + timeout_s
    while not is_so():
        assert monotonic() < give_up_at
        sleep(0.1)
