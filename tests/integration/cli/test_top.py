"""Does `penstock top` show what is so, go on from picture to picture, and leave the terminal as it was?"""

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.store import start
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.cli import COMMAND
from tests.support.jobs import POOL, nominations, open_lease, seed, submit, submit_and_nominate

STATS = {
    "jobs": 2, "running": 3, "waiting": 1, "kv_blocks_used": 25, "kv_blocks_total": 100, "preemptions": 4,
    "served_tokens_per_s": 1234.5, "served_by_tier": {}, "capacity_tokens_per_s": 100.0, "drain_tokens_per_s": 100.0,
    "token_yield": 1.0, "paces": {}, "seconds_per_token": 0.01, "load_s": 1.0,
}  # fmt: skip


@pytest.fixture
async def busy(engine: AsyncEngine, redis: Redis, settings: Settings) -> None:
    """A worker, two running jobs of acme's, three waiting ones of zeta's."""
    await seed(engine, "acme", "zeta")
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    async with engine.begin() as conn:
        incarnation = await open_lease(conn, ttl_s=600)
        await conn.execute(text("UPDATE workers SET stats = CAST(:stats AS jsonb)"), {"stats": json.dumps(STATS)})
    accepted = await submit(engine, settings, count=2, tier="batch")
    async with engine.begin() as conn:
        assert len(await start(conn, incarnation, nominations(accepted))) == 2
    await submit_and_nominate(engine, settings, queue, 3, tenant="zeta", tier="interactive")


def run(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "top", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def test_one_picture_says_what_is_so(busy: None, environment: dict[str, str]) -> None:
    result = await asyncio.to_thread(run, environment, "--once", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    picture = json.loads(result.stdout)
    (worker,) = picture["workers"]
    assert worker["tokens_per_s"] == 1234.5
    assert (worker["kv_usage"], worker["batch_sequences"], worker["waiting_sequences"]) == (0.25, 3, 1)
    tiers = {each["tier"]: each for each in picture["tiers"]}
    assert {name: (each["queued"], each["running"]) for name, each in tiers.items()} == {
        "interactive": (3, 0), "standard": (0, 0), "batch": (0, 2),
    }  # fmt: skip
    # Three jobs' tokens at 100 a second; the other tiers have no work.
    assert tiers["interactive"]["predicted_wait_s"] == pytest.approx(tiers["interactive"]["queued_tokens"] / 100)
    assert [(each["tenant"], each["running"], each["queued"]) for each in picture["tenants"]] == [
        ("acme", 2, 0), ("zeta", 0, 3),
    ]  # fmt: skip
    assert picture["is_redis_away"] is False
    for_people = (await asyncio.to_thread(run, environment | {"COLUMNS": "120"}, "--once")).stdout
    assert re.search(r"interactive +3 ", for_people)
    assert "1,23" in for_people
    assert "25%" in for_people


async def test_with_nothing_there_it_says_so(engine: AsyncEngine, environment: dict[str, str]) -> None:
    shown = (await asyncio.to_thread(run, environment, "--once")).stdout
    assert "No worker lives." in shown
    assert "Nobody has a job." in shown


def test_without_postgres_it_says_what_to_look_at(environment: dict[str, str]) -> None:
    nowhere = environment | {"DATABASE_URL": "postgresql://nobody@127.0.0.1:9/x", "PENSTOCK_DATABASE_TIMEOUT_S": "1"}
    result = run(nowhere, "--once")
    assert result.returncode == 1
    assert "DATABASE_URL" in result.stderr
    assert "Traceback" not in result.stderr


class Terminal:
    """A pseudo-terminal with the command on it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(self.ours)
        self.shown = b""
        self.process = subprocess.Popen(
            [*COMMAND, "top"], env=environment | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        self.theirs = theirs

    def until(self, pattern: bytes, times: int = 1) -> None:
        give_up_at = monotonic() + 30
        while len(re.findall(pattern, self.shown)) < times:
            assert monotonic() < give_up_at, self.shown.decode(errors="replace")
            if select.select([self.ours], [], [], 0.1)[0]:
                self.shown += os.read(self.ours, 65_536)

    def ended(self) -> int:
        give_up_at = monotonic() + 30
        while self.process.poll() is None:
            assert monotonic() < give_up_at
            if select.select([self.ours], [], [], 0.05)[0]:
                self.shown += os.read(self.ours, 65_536)
        while select.select([self.ours], [], [], 0)[0]:
            self.shown += os.read(self.ours, 65_536)
        return self.process.returncode


@contextmanager
def terminal(environment: dict[str, str]) -> Iterator[Terminal]:
    it = Terminal(environment)
    try:
        yield it
    finally:
        it.process.kill()
        it.process.wait()
        os.close(it.ours)
        os.close(it.theirs)


@pytest.mark.parametrize("way", ["q", "ctrl-c"])
async def test_it_is_live_and_ends_when_told_with_the_terminal_as_it_was(
    busy: None, environment: dict[str, str], way: str
) -> None:
    def watch() -> None:
        with terminal(environment) as it:
            it.until(rb"predicted wait|PREDICTED WAIT", times=2)  # a second picture
            assert b"\x1b[?1049h" in it.shown
            if way == "q":
                os.write(it.ours, b"q")
            else:
                os.killpg(it.process.pid, signal.SIGINT)
            assert it.ended() == 0
            assert b"\x1b[?1049l" in it.shown  # back from the alternate screen, the cursor shown
            assert it.shown.rindex(b"\x1b[?25h") > it.shown.rindex(b"\x1b[?25l")
            assert termios.tcgetattr(it.ours) == it.before
            assert b"Traceback" not in it.shown

    await asyncio.to_thread(watch)
