"""Real worker and maintenance processes for failure tests, with short intervals so that repair is seen in seconds."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

import psutil
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.processes import have_ended

# The lease outlasts any pause that a busy machine makes: who isn't to lose it doesn't fence itself for being starved.
QUICK = {
    "PENSTOCK_LEASE_TTL_S": "15",
    "PENSTOCK_LEASE_RENEW_S": "0.5",
    "PENSTOCK_LEASE_FENCE_S": "12",
    "PENSTOCK_REAP_EVERY_S": "0.3",
    "PENSTOCK_SWEEP_EVERY_S": "0.3",
    "PENSTOCK_SWEEP_AFTER_S": "1",
    "PENSTOCK_RENOMINATE_AFTER_S": "2",
    "PENSTOCK_EXPIRE_EVERY_S": "0.2",
}
# For a worker that is to be lost, and for maintenance, which believes no expiry for such a time after a start of Postgres.
SHORT_LEASE = {"PENSTOCK_LEASE_TTL_S": "3", "PENSTOCK_LEASE_RENEW_S": "0.2", "PENSTOCK_LEASE_FENCE_S": "2.5"}
# For tests of what goes well, whose processes may be held up for seconds on a busy machine, which is no death.
LONG_LEASE = {"PENSTOCK_LEASE_TTL_S": "60", "PENSTOCK_LEASE_FENCE_S": "50"}
NULL_ENGINE = {"PENSTOCK_ENGINE": "null", "PENSTOCK_MODEL_NAME": "tiny"}
WORKER, MAINTENANCE = "workers.generation.main", "workers.maintenance.main"


class Process:
    """One process of the stack; its log is a file."""

    def __init__(self, module: str, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module], env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )

    def children(self) -> list[psutil.Process]:
        """Its live child processes."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill_all(self) -> None:
        """SIGKILL to it and its children, as a power cut."""
        children = self.children()
        self.process.kill()  # first: it must not see them die
        for each in children:
            with suppress(psutil.NoSuchProcess):  # it went with its parent
                each.kill()
        self.process.wait(10)

    def terminate(self, timeout_s: float = 30.0) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextmanager
def running(module: str, environment: dict[str, str], folder: Path, **changes: str) -> Iterator[Process]:
    """A process with these settings, gone at the end whatever happened."""
    number = len(list(folder.glob("*.log")))
    leases = SHORT_LEASE if module == MAINTENANCE else {}
    process = Process(module, environment | QUICK | leases | changes, folder / f"{module}.{number}.log")
    children: list[psutil.Process] = []
    try:
        yield process
    finally:
        if process.process.poll() is None:
            children = process.children()
            process.process.kill()
            process.process.wait(10)
        assert have_ended(children), "an engine outlived its supervisor"


async def wait_for(engine: AsyncEngine, query: str, *, timeout_s: float = 60.0, **parameters: object) -> None:
    """Until the query gives true."""
    async with asyncio.timeout(timeout_s):
        while True:
            async with engine.connect() as conn:
                if await conn.scalar(text(query), parameters):
                    return
            await asyncio.sleep(0.05)


async def wait_until_ended(engine: AsyncEngine, job_ids: Sequence[UUID], *, timeout_s: float = 60.0) -> dict[str, int]:
    """Until all jobs have ended; how many ended how."""
    await wait_for(
        engine,
        "SELECT NOT EXISTS (SELECT 1 FROM jobs WHERE id = ANY(:ids) AND finished_at IS NULL)",
        timeout_s=timeout_s,
        ids=list(job_ids),
    )
    async with engine.connect() as conn:
        rows = await conn.execute(
            text("SELECT status, count(*) AS jobs FROM jobs WHERE id = ANY(:ids) GROUP BY status"),
            {"ids": list(job_ids)},
        )
        return {row.status: row.jobs for row in rows}


EXACTLY_ONCE = text("""
    SELECT count(*) AS jobs,
           count(*) FILTER (WHERE (SELECT count(*) FROM job_results r WHERE r.job_id = j.id) = 1) AS with_one_result,
           count(*) FILTER (WHERE (SELECT count(*) FROM usage u WHERE u.job_id = j.id AND kind = 'billed') = 1) AS billed_once
    FROM jobs j WHERE j.id = ANY(:ids)
""")


async def assert_exactly_once(engine: AsyncEngine, job_ids: Sequence[UUID]) -> None:
    """Each job has one result and one billed usage row."""
    async with engine.connect() as conn:
        row = (await conn.execute(EXACTLY_ONCE, {"ids": list(job_ids)})).one()
    assert (row.jobs, row.with_one_result, row.billed_once) == (len(job_ids),) * 3
