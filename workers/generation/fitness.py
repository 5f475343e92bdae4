"""Is the engine fit to serve? A self-test before the first job and when it idles; its memory within the limit."""

import asyncio
import logging

import psutil
from sqlalchemy.exc import SQLAlchemyError

from app.racing import race
from app.telemetry import emit
from workers.generation.canary import EngineUnfit
from workers.generation.context import WorkerContext

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_MEMORY_CHECK_S = 1.0
_MIB = 1 << 20


async def watch_fitness(worker: WorkerContext) -> None:
    """Let claims begin once the engine has passed, and watch it from then on.

    Raises:
        EngineUnfit: it is to be replaced.
    """
    if worker.settings.canary:
        await worker.canary.sing()
        await _compare(worker)
        worker.canary.is_accepted = True
    worker.is_fit.set()
    await race(_sing_at_idle(worker), _watch_memory(worker))


async def _compare(worker: WorkerContext) -> None:
    threads = worker.settings.engine_threads or 0
    while True:
        try:
            await worker.canary.compare_with_before(worker.db, worker.made_by, f"threads={threads}")
        except (SQLAlchemyError, OSError) as error:
            emit(log, logging.WARNING, "canary_not_compared", error=error)
            await asyncio.sleep(_RETRY_S)
        else:
            return


async def _sing_at_idle(worker: WorkerContext) -> None:
    """Every so often, when there is nothing else to do: while there is, the jobs' own tokens show that the engine lives."""
    while True:
        await asyncio.sleep(worker.settings.canary_every_s)
        if worker.settings.canary and not worker.hand:
            worker.is_fit.clear()  # nothing beside it in the engine
            try:
                await worker.canary.sing()
            except EngineUnfit:
                if not worker.hand:  # else a claim was under way: its jobs ran beside it, and will show a hang
                    raise
            worker.is_fit.set()


async def _watch_memory(worker: WorkerContext) -> None:
    """An engine that has grown past its limit takes no more jobs, ends those that it has, and makes room for another."""
    limit_mib = worker.settings.engine_memory_mib
    while limit_mib is not None:
        await asyncio.sleep(_MEMORY_CHECK_S)
        used_mib = resident_bytes(worker.engine.pid) / _MIB
        if used_mib <= limit_mib:
            continue
        emit(log, logging.WARNING, "engine_too_large", mib=round(used_mib), limit_mib=limit_mib, jobs=len(worker.hand))
        worker.is_draining = True
        worker.changed.set()
        until = worker.clock.monotonic() + worker.settings.drain_grace_s
        while worker.hand and worker.clock.monotonic() < until:
            await worker.wait_for_change(0.1)
        raise EngineUnfit(f"it takes {used_mib:.0f} MiB, more than {limit_mib} MiB", is_trusted=True)
    await asyncio.Event().wait()


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all that it started; 0 for one that is gone."""
    total = 0
    try:
        engine = psutil.Process(pid)
        for process in [engine, *engine.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.Error:
        return total
    return total
