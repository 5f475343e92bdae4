"""Do the probes of a worker and of maintenance say what is so? Real processes."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.embedded import EmbeddedRedis
from tests.support.jobs import seed
from tests.support.stack import MAINTENANCE, NULL_ENGINE, WORKER, Process, running

PROBE = {"PENSTOCK_PROBE_PORT": "0"}


async def port_of(process: Process) -> int:
    async with asyncio.timeout(60):
        while True:
            for line in process.log.read_text().splitlines(keepends=True):
                if line.endswith("\n") and '"probe_listening"' in line:
                    return int(json.loads(line)["port"])
            await asyncio.sleep(0.05)


async def until(client: httpx.AsyncClient, path: str, status: int, *, naming: str = "") -> dict[str, Any]:
    """The answer's body, once its status is so, and it names this."""
    async with asyncio.timeout(60):
        while True:
            answer = await client.get(path)
            if answer.status_code == status and naming in answer.text:
                return dict(answer.json())
            await asyncio.sleep(0.05)


async def test_a_worker_is_ready_when_its_engine_has_passed_and_not_without_one(
    engine: AsyncEngine, environment: dict[str, str], tmp_path: Path
) -> None:
    await seed(engine)
    held, python = tmp_path / "held", tmp_path / "python"
    python.write_text(f"#!/bin/sh\nwhile [ -e '{held}' ]; do sleep 0.05; done\nexec '{sys.executable}' \"$@\"\n")
    python.chmod(0o755)
    engine_of_ours = {"PENSTOCK_ENGINE_PYTHON": str(python)}
    with running(WORKER, environment, tmp_path, **NULL_ENGINE, **PROBE, **engine_of_ours) as worker:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port_of(worker)}") as client:
            assert await until(client, "/readyz", 200) == {"status": "ready"}
            held.touch()  # the next engine waits until it has been missed
            (child,) = worker.children()
            child.kill()
            assert (await until(client, "/readyz", 503))["reason"] == "the engine is being started or tested"
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            held.unlink()
            await until(client, "/readyz", 200)
        assert await asyncio.to_thread(worker.terminate) == 0


async def test_a_stopped_worker_does_not_answer(
    engine: AsyncEngine, environment: dict[str, str], tmp_path: Path
) -> None:
    await seed(engine)
    with running(WORKER, environment, tmp_path, **NULL_ENGINE, **PROBE) as worker:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port_of(worker)}", timeout=20) as client:
            await until(client, "/readyz", 200)
            psutil.Process(worker.process.pid).suspend()
            with pytest.raises(httpx.TimeoutException):
                await client.get("/healthz", timeout=0.5)
            worker.process.send_signal(signal.SIGCONT)
            await until(client, "/healthz", 200)


async def test_maintenance_is_not_ready_while_its_rounds_fail(
    engine: AsyncEngine, environment: dict[str, str], tmp_path: Path, private_redis: EmbeddedRedis
) -> None:
    await seed(engine)
    with running(MAINTENANCE, environment | {"REDIS_URL": private_redis.url}, tmp_path, **PROBE) as keeper:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port_of(keeper)}") as client:
            await until(client, "/readyz", 200)
            private_redis.kill()
            await until(
                client, "/readyz", 503, naming="rebuild"
            )  # which round of those that begin together fails first is open
            private_redis.start()
            await until(client, "/readyz", 200)


async def test_a_port_that_is_taken_is_said(engine: AsyncEngine, environment: dict[str, str], tmp_path: Path) -> None:
    await seed(engine)
    with running(WORKER, environment, tmp_path, **NULL_ENGINE, **PROBE) as first:
        port = await port_of(first)
        with running(WORKER, environment, tmp_path, **NULL_ENGINE, PENSTOCK_PROBE_PORT=str(port)) as second:
            assert await asyncio.to_thread(second.process.wait, 60) == 1
            assert f"port {port} on 127.0.0.1 can't be used" in second.log.read_text()
