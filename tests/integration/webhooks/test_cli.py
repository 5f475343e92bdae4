"""Does the command line manage webhooks, and does `listen` show what arrives and whether it is genuine? A real server, real commands."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import httpx
import pytest
import uvicorn
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.clock import SystemClock
from app.settings import Settings
from app.webhooks.endpoints import new_secret
from app.webhooks.nominate import Rooms, nominate
from app.webhooks.signing import sign
from tests.support.api import make_tenant
from workers.webhooks.courier import Courier

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow_local": True})


@pytest.fixture
async def target(settings: Settings, engine: AsyncEngine) -> AsyncIterator[dict[str, str]]:
    """A real API, and the environment in which commands find it."""
    tenant = await make_tenant(engine, settings, "acme")
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_config=None, lifespan="on"))
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(20):
        while not server.started:
            await asyncio.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield os.environ | {"PENSTOCK_URL": f"http://127.0.0.1:{port}", "PENSTOCK_API_KEY": tenant.token}
    server.should_exit = True
    await serving


async def penstock(target: dict[str, str], *words: str) -> str:
    """What a `penstock webhooks` command prints."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "app.cli", "webhooks", *words],
        env=target, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


class Listening:
    """A `penstock webhooks listen` process."""

    def __init__(self, environment: dict[str, str], folder: Path, *words: str) -> None:
        self._out = folder / "out"
        self._err = folder / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "webhooks", "listen", "--port", "0", *words],
                env=environment, stdout=out, stderr=err,
            )  # fmt: skip

    async def url(self) -> str:
        async with asyncio.timeout(30):
            while not (found := re.search(r"listening on (\S+?/)[ ;]", self._err.read_text())):
                assert self.popen.poll() is None, self._err.read_text()
                await asyncio.sleep(0.05)
        return found[1]

    async def lines(self, count: int) -> list[str]:
        async with asyncio.timeout(30):
            while len(found := self._out.read_text().splitlines()) < count:
                await asyncio.sleep(0.05)
        return found

    async def end(self) -> int:
        self.popen.send_signal(signal.SIGINT)
        return await asyncio.to_thread(self.popen.wait, 20)


@pytest.fixture
def listening(target: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Listening]]:
    started: list[Listening] = []

    def start(*words: str) -> Listening:
        started.append(Listening(target, tmp_path, *words))
        return started[-1]

    yield start
    for each in started:
        with suppress(ProcessLookupError):
            each.popen.kill()
        each.popen.wait(10)


async def deliver_all(settings: Settings, engine: AsyncEngine) -> None:
    courier = Courier(settings, SystemClock(), engine, Random(0))
    async with engine.begin() as conn:
        found = await nominate(conn, Rooms.of(settings), limit=10)
    for each in found:
        await courier.deliver(each)


async def test_a_developer_listens_pings_looks_and_sends_again(
    target: dict[str, str], settings: Settings, engine: AsyncEngine, listening: Callable[..., Listening]
) -> None:
    listener = listening()
    url = await listener.url()
    _, line = (await penstock(target, "list")).splitlines()
    endpoint = line.split("\t")[0]
    assert endpoint.startswith("we_")
    assert url in line
    await penstock(target, "ping", endpoint)
    await deliver_all(settings, engine)
    first, data = await listener.lines(2)
    assert "webhook.ping" in first
    assert first.endswith("  verified")
    assert json.loads(data)["id"] == endpoint
    shown = json.loads(await penstock(target, "deliveries", "--json"))
    assert (shown["status"], shown["type"], shown["endpoint"]) == ("delivered", "webhook.ping", endpoint)
    await penstock(target, "resend", shown["id"])
    await deliver_all(settings, engine)
    again = (await listener.lines(4))[2]
    assert again.endswith("  verified  again")
    assert again.split()[2] == first.split()[2]
    assert "2 tries" in await penstock(target, "show", shown["id"])
    assert await listener.end() == 0
    assert await penstock(target, "list") == "", "it is deleted with the listener"


async def test_an_endpoint_is_made_rotated_disabled_enabled_and_deleted(target: dict[str, str]) -> None:
    made = await penstock(target, "create", "https://hooks.example.com/", "--event", "job.*", "--description", "x")
    endpoint, secret = made.split()
    assert secret.startswith("whsec_")
    rotated = (await penstock(target, "rotate", endpoint, "--overlap-hours", "1")).strip()
    assert rotated.startswith("whsec_")
    assert rotated != secret
    assert "disabled  https://hooks.example.com/  job.*  by its owner" in await penstock(target, "disable", endpoint)
    assert f"{endpoint}  enabled" in await penstock(target, "enable", endpoint)
    assert "0 are sent again" in await penstock(target, "recover", endpoint)
    assert await penstock(target, "delete", endpoint) == f"{endpoint} is deleted\n"


async def test_what_isnt_genuine_is_shown_as_such_and_refused(
    listening: Callable[..., Listening],
) -> None:
    good, bad = new_secret(), new_secret()
    listener = listening("--secret", good, "--json", "--status", "202")
    url = await listener.url()
    body = b'{"type": "job.dead", "data": {}}'

    def headers(secret: str, age_s: int = 0) -> dict[str, str]:
        return sign([secret], webhook_id="evt_1", timestamp=int(time.time()) - age_s, body=body)

    async with httpx.AsyncClient() as http:
        statuses = [
            (await http.post(url, content=body, headers=each)).status_code
            for each in (headers(good), headers(bad), headers(good, 3600), {}, headers(good))
        ]
    assert statuses == [202, 401, 401, 401, 202]
    found = [json.loads(line) for line in await listener.lines(5)]
    assert [(each["verified"], each["repeated"]) for each in found] == [
        (True, False),
        (False, True),
        (False, True),
        (False, False),
        (True, True),
    ]
    assert "no signature fits" in found[1]["problem"]
    assert "too far from now" in found[2]["problem"]
    assert "missing" in found[3]["problem"]
    assert await listener.end() == 0
