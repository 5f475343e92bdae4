"""Does the server obey a signal at once, though it hardly ever looks?"""

import asyncio
import signal

import pytest
import uvicorn
from fastapi import FastAPI

from app.api import main
from app.api.main import ApiServer


async def test_a_signal_ends_the_serving_at_once_and_a_second_sigint_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "TICK_S", 3600.0)
    app = FastAPI()
    server = ApiServer(uvicorn.Config(app), app)
    serving = asyncio.create_task(server.main_loop())
    while not server.server_state.default_headers:
        await asyncio.sleep(0)
    server.handle_exit(signal.SIGINT, None)
    async with asyncio.timeout(30):
        await serving
    assert not server.force_exit
    server.handle_exit(signal.SIGINT, None)
    assert server.force_exit


async def test_a_signal_that_came_before_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "TICK_S", 3600.0)
    app = FastAPI()
    server = ApiServer(uvicorn.Config(app), app)
    server.handle_exit(signal.SIGTERM, None)
    async with asyncio.timeout(30):
        await server.main_loop()


async def test_the_date_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "TICK_S", 0.001)
    app = FastAPI()
    server = ApiServer(uvicorn.Config(app), app)
    serving = asyncio.create_task(server.main_loop())
    async with asyncio.timeout(30):
        while not server.server_state.default_headers:
            await asyncio.sleep(0)
        server.server_state.default_headers = []
        while not server.server_state.default_headers:
            await asyncio.sleep(0.001)
    server.handle_exit(signal.SIGTERM, None)
    await serving
