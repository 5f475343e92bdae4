"""Do all processes run where nothing can be written but /tmp and a cache, as their images and pods let them?

A mount namespace of the process's own makes the root read-only for it, as a container's is. Where that isn't allowed, the test says so.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from tests.support.api import Tenant, make_tenant

# tmpfs, as the compose file's: private to the process, and gone with it.
CONFINE = """
mount -t tmpfs none "$TMPDIR" && mount -t tmpfs none "$XDG_CACHE_HOME" && mount -o remount,ro,bind / && exec "$@"
"""
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", CONFINE, "sh"]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def confined(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a process that may write to two folders only."""
    folders = {"TMPDIR": tmp_path / "tmp", "XDG_CACHE_HOME": tmp_path / "cache"}
    for folder in folders.values():
        folder.mkdir()
    found = environment | {name: str(path) for name, path in folders.items()}
    found |= {
        "HOME": found["TMPDIR"],
        "PENSTOCK_DATA_DIR": f"{found['TMPDIR']}/penstock",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    probe = ["sh", "-c", f'touch "{tmp_path}/x" 2>/dev/null || touch "$PWD/x" 2>/dev/null || echo read-only']
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    tried = subprocess.run([*UNSHARE, *probe], env=found, capture_output=True, text=True, timeout=30)
    if tried.stdout.strip() != "read-only":
        pytest.skip(f"no read-only root can be made here: {tried.stderr.strip()}")
    return found


@pytest.fixture
def start(confined: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts `penstock ...` confined; its output goes to <name>.log."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(*command: str, **changes: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{command[0]}.log").open("wb") as log:
            process = subprocess.Popen(
                [*UNSHARE, sys.executable, "-m", "app.cli", *command],
                env=confined | changes, stdout=log, stderr=log,
            )  # fmt: skip
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()


def until_logged(tmp_path: Path, name: str, event: str, process: subprocess.Popen[bytes]) -> dict[str, object]:
    ends_at = time.monotonic() + 60
    while time.monotonic() < ends_at:
        text = (tmp_path / f"{name}.log").read_text()
        for line in text.splitlines():
            if line.startswith("{") and json.loads(line)["event"] == event:
                found: dict[str, object] = json.loads(line)
                return found
        assert process.poll() is None, text
        time.sleep(0.05)
    raise AssertionError((tmp_path / f"{name}.log").read_text())


@pytest.fixture
async def tenant(engine: object, settings: Settings) -> Tenant:
    return await make_tenant(engine, settings, "acme")  # type: ignore[arg-type]


async def test_a_job_goes_its_whole_way_on_a_read_only_root(
    start: Start, confined: dict[str, str], tenant: Tenant, tmp_path: Path
) -> None:
    quick = {"PENSTOCK_ENGINE": "null", "PENSTOCK_PROBE_PORT": "0", "PENSTOCK_DRAIN_GRACE_S": "2"}
    assert start("migrate").wait(60) == 0, (tmp_path / "migrate.log").read_text()
    api = start("api", PENSTOCK_API_PORT="0")
    others = {name: start(name, **quick) for name in ("worker", "maintenance", "webhooks")}
    port = until_logged(tmp_path, "api", "api.listening", api)["port"]
    until_logged(tmp_path, "webhooks", "webhook_worker_started", others["webhooks"])
    for name in ("worker", "maintenance"):
        probe = until_logged(tmp_path, name, "probe_listening", others[name])["port"]
        await until_ready(f"http://127.0.0.1:{probe}/readyz", others[name], tmp_path / f"{name}.log")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=tenant.auth, timeout=60) as client:
        answer = await client.post("/v1/jobs", json={"prompt": "once", "max_tokens": 4}, headers={"Prefer": "wait=30"})
    assert answer.json()["status"] == "succeeded", answer.text
    check_health(confined, str(port))
    for process in (api, *others.values()):
        process.send_signal(signal.SIGTERM)
    assert {name: process.wait(60) for name, process in {"api": api, **others}.items()} == dict.fromkeys(
        ("api", *others), 0
    )
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert not re.search(r"read-only file system|errno 30|permission denied", logs, re.IGNORECASE)


def check_health(environment: dict[str, str], port: str) -> None:
    """The images' health check tells well from ill."""

    def asked(*url: str) -> subprocess.CompletedProcess[str]:
        own = environment | {"PENSTOCK_API_PORT": port}
        return subprocess.run(
            [sys.executable, "-m", "app.cli.health", *url], env=own, capture_output=True, text=True, timeout=30
        )

    assert [asked(*url).returncode for url in ((), (f"http://127.0.0.1:{port}/readyz",))] == [0, 0]
    for url, why in (
        ("http://127.0.0.1:1/healthz", "refused"),
        (f"http://127.0.0.1:{port}/nowhere", "404"),
        ("file:///etc/passwd", "must begin"),
    ):
        found = asked(url)
        assert found.returncode == 1
        assert why in found.stdout


async def until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ends_at = time.monotonic() + 60
    async with httpx.AsyncClient() as client:
        while time.monotonic() < ends_at:
            if (await client.get(url)).status_code == 200:
                return
            assert process.poll() is None, log.read_text()
    raise AssertionError(log.read_text())


@pytest.mark.long
async def test_kernels_are_compiled_into_the_cache_and_the_engine_runs(
    start: Start, tenant: Tenant, confined: dict[str, str], tmp_path: Path
) -> None:
    api = start("api", PENSTOCK_API_PORT="0")
    start("maintenance")
    worker = start("worker", PENSTOCK_PROBE_PORT="0", PENSTOCK_KV_CACHE_MIB="64")
    port = until_logged(tmp_path, "api", "api.listening", api)["port"]
    probe = until_logged(tmp_path, "worker", "probe_listening", worker)["port"]
    await until_ready(f"http://127.0.0.1:{probe}/readyz", worker, tmp_path / "worker.log")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=tenant.auth, timeout=60) as client:
        answer = await client.post("/v1/jobs", json={"prompt": "once", "max_tokens": 4}, headers={"Prefer": "wait=30"})
    assert answer.json()["status"] == "succeeded", answer.text
    # Seen from inside: the tmpfs is the worker's own.
    inside = Path(f"/proc/{worker.pid}/root{confined['XDG_CACHE_HOME']}")
    assert [*inside.iterdir()], "the kernels"
