"""Does `penstock up` keep what it had, leave nothing behind, and say what it can't do?"""

import shutil
import signal
import stat
from pathlib import Path

import httpx

from tests.integration.cli.conftest import QUICK
from tests.support.cli import Run, Up
from tests.support.processes import have_ended
from workers.models import BROOK


def test_a_restart_keeps_data_and_key_and_no_end_leaves_a_process(private_dir: Path, penstock: Run) -> None:
    data_dir = private_dir / "data"
    first = Up("up", "--port", 0, "--data-dir", data_dir, "--workers", 2, **(QUICK | {"PENSTOCK_DRAIN_GRACE_S": "600"}))
    first.wait_until_up()
    for secret in ("api-key", "key-pepper", "url", "servers"):
        assert stat.S_IMODE((data_dir / secret).stat().st_mode) == 0o600
    link = first.wait_for(r"Admin +(http://\S+/admin/link/\S+)")[1]
    assert httpx.get(link, timeout=60).status_code == 200
    password = {"password": "four rivers meet here", "again": "four rivers meet here"}
    assert httpx.post(link, data=password, headers={"Origin": first.url}, timeout=60).status_code == 303
    job_id = penstock("submit", "keep me", "--max-tokens", 2, "--no-wait", "--data-dir", data_dir).out.strip()
    running = penstock("submit", "a", "--max-tokens", 8000, "--no-wait", "--data-dir", data_dir).out.strip()
    tree, key = first.tree(), first.key
    first.process.send_signal(signal.SIGTERM)
    first.wait_for("stopping +worker-2")
    assert first.end(signal.SIGINT) == 0, first.output  # a second signal doesn't wait for the grace
    assert have_ended(tree)
    assert not (data_dir / "url").exists()
    stopped = [first.output.index(f"stopping     {part}") for part in ("api", "worker-1", "maintenance")]
    assert stopped == sorted(stopped)

    second = Up("up", "--port", 0, "--data-dir", data_dir, **QUICK)
    second.wait_until_up()
    assert second.key == key
    assert second.wait_for(r"Admin +(\S+)")[1] == f"{second.url}/admin"  # the owner has a password now
    assert penstock("jobs", "watch", job_id, "--data-dir", data_dir).status == 0
    assert penstock("jobs", "cancel", running, "--data-dir", data_dir).status == 0
    tree = second.tree()
    second.end(signal.SIGKILL)
    assert have_ended(tree, timeout_s=60.0)


def test_a_model_that_isnt_there_is_said_before_anything_starts(environment: dict[str, str], tmp_path: Path) -> None:
    up = Up("up", "--port", 0, "--model", tmp_path / "no-such-folder", **environment)
    assert up.wait() == 1
    failure = up.output[up.output.index("penstock: ") :]
    assert failure.startswith("penstock: model: ")
    assert "no-such-folder isn't a folder" in failure
    assert failure.count("\n") == 1


def test_a_model_that_cant_be_loaded_ends_it_with_the_reason(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(BROOK, folder)
    (folder / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")  # valid, and empty
    up = Up("up", "--port", 0, "--model", folder, **environment)
    assert up.wait() == 1
    failure = up.output[up.output.index("penstock: ") :]
    assert failure.startswith("penstock: worker ended while it started (exit status 1):\n")
    assert "broken" in failure
    assert "Traceback" not in failure


def test_ctrl_c_while_it_starts_stops_it_too(private_dir: Path) -> None:
    up = Up("up", "--port", 0, "--data-dir", private_dir / "data", **QUICK)
    up.wait_for("Penstock starts")
    tree = up.tree()
    assert up.end() == 0, up.output
    assert have_ended(tree)
