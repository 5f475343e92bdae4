"""The API as a real process on a free port."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ApiProcess:
    """`python -m app.api.main` on a free port; its log, line by line."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.api.main"],
                env=environment,
                stdout=stream,
                stderr=stream,
            )

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    async def until_logged(self, event: str) -> dict[str, object]:
        """The first line with this event, once there is one."""
        async with asyncio.timeout(60):
            while True:
                for line in self.log.read_text().splitlines(keepends=True):
                    if line.endswith("\n") and json.loads(line)["event"] == event:
                        found: dict[str, object] = json.loads(line)
                        return found
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.02)

    async def url(self) -> str:
        return f"http://127.0.0.1:{(await self.until_logged('api.listening'))['port']}"

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self.process.wait, 60)


@contextmanager
def running_process(environment: dict[str, str], folder: Path, **changes: str) -> Iterator[ApiProcess]:
    api = ApiProcess(environment | {"PENSTOCK_API_PORT": "0", "PYTHONWARNINGS": "error"} | changes, folder / "api.log")
    try:
        yield api
    finally:
        api.process.kill()
        api.process.wait()
