"""How does a worker's engine live? Started, watched, buried when it dies, retired when it is unfit, replaced; one may stand by for the next."""

import asyncio
import contextlib
import logging

from app.clock import Clock
from app.settings import Settings
from app.telemetry import emit
from workers.engine.errors import EngineDied, EngineStartFailed
from workers.engine.process import EngineProcess
from workers.generation.canary import Canary, EngineUnfit
from workers.generation.context import WorkerContext
from workers.generation.crash_loop import CrashLoop
from workers.generation.engine_config import config_of
from workers.generation.finisher import Finisher
from workers.generation.suspicion import shown, sort_out

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_MAX_RETRY_S = 10.0
_HANG_CHECK_S = 1.0
_MOST_UNFIT = 3  # engines in a row that fail their self-test, before the worker gives up
_LOG_TAIL_CHARS = 480  # the log's end says why; telemetry would keep the beginning of a longer text


class EngineHung(Exception):
    """The engine has work and makes no step."""


class EngineLife:
    """The engines of one worker, one after the other; `worker.engine` is the one that is.

    `start` gives the first. When an incarnation of the worker ends by its engine, `bury` (it died or hung) or `retire` (it failed its
    self-test) gives back the jobs in the hand, closes the lease, and returns with another engine in `worker.engine`; or with the old one,
    if `drain` was set meanwhile. `load_s`: how long the last one took to load.
    """

    def __init__(self, settings: Settings, clock: Clock, drain: asyncio.Event) -> None:
        self.load_s = 0.0
        self._settings = settings
        self._clock = clock
        self._drain = drain
        self._standby: asyncio.Task[EngineProcess] | None = None  # loaded, or being loaded, for the next
        self._deaths = CrashLoop(
            limit=settings.crash_loop_deaths, window_s=settings.crash_loop_window_s, pause_s=settings.crash_loop_pause_s
        )
        self._num_unfit = 0  # engines in a row that failed their self-test

    async def start(self) -> EngineProcess:
        """A new engine, its model loaded.

        Raises:
            EngineStartFailed: the model can't be loaded, or not in time.
            Misconfigured: a setting makes no sense.
        """
        settings, began = self._settings, self._clock.monotonic()
        engine = await EngineProcess.start(
            config_of(settings),
            None,
            timeout_s=settings.engine_start_timeout_s,
            python=settings.engine_python,
        )
        self.load_s = self._clock.monotonic() - began
        return engine

    def canary_of(self, engine: EngineProcess) -> Canary:
        """Its self-test."""
        return Canary(engine, self._settings.engine, timeout_s=self._settings.engine_hang_s)

    def prepare_standby(self) -> None:
        """Begin to load the next engine, where one shall stand by."""
        if self._settings.standby_engine and not self._drain.is_set():
            self._standby = asyncio.create_task(self.start())

    async def watch_for_hang(self, worker: WorkerContext) -> None:
        """Run beside the loops of an incarnation.

        Only time in which this process looked counts: one that was stopped itself hasn't heard yet what its engine did meanwhile.

        Raises:
            EngineHung: it had work, and made no step for `engine_hang_s`.
        """
        step, still_s, looked_at = worker.stats.step, 0.0, self._clock.monotonic()
        while True:
            await asyncio.sleep(_HANG_CHECK_S)
            now = self._clock.monotonic()
            passed_s, looked_at = min(now - looked_at, _HANG_CHECK_S), now
            busy = any(not job.is_ending for job in worker.hand.values())
            if not busy or worker.stats.step != step:
                step, still_s = worker.stats.step, 0.0
                continue
            still_s += passed_s
            if still_s >= self._settings.engine_hang_s:
                raise EngineHung(f"no step for {still_s:.0f} s with {len(worker.hand)} jobs at hand")

    async def bury(self, worker: WorkerContext, finisher: Finisher, error: EngineDied | EngineHung) -> None:
        """Give back what the dead engine had, those who may have killed it to run alone, and start another."""
        flight = worker.engine.last_flight()
        worker.engine.kill()
        tail = error.log_tail[-_LOG_TAIL_CHARS:] if isinstance(error, EngineDied) else ""
        reason = str(error).partition("\n")[0]
        jobs = [job for job in worker.hand.values() if not job.is_ending]
        detail = {"reason": reason, "log_tail": tail, "flight": shown(flight)}
        if isinstance(error, EngineDied) and error.is_outage:
            # Who waits for an upstream that is away had no part in that, and is nothing the worse for it.
            emit(log, logging.ERROR, "engine_died", reason=reason, jobs=len(worker.hand), log_tail=tail)
            await finisher.give_back(jobs, "upstream_away", detail)
        else:
            found = sort_out(jobs, flight)
            emit(
                log, logging.ERROR, "engine_died", reason=reason, jobs=len(worker.hand), suspects=len(found.suspects),
                lane=found.lane, log_tail=tail,
            )  # fmt: skip
            if not any(job.started.lane != "normal" for job in found.suspects):  # else it was to be expected
                self._deaths.note(self._clock.monotonic())
            await finisher.give_back(found.suspects, "engine_crash", detail, lane=found.lane)
            await finisher.give_back(found.bystanders, "bystander", detail)
        await self._replace(worker, finisher)

    async def retire(self, worker: WorkerContext, finisher: Finisher, error: EngineUnfit) -> None:
        """Give back what the unfit engine has, without any token that it may have got wrong, and start another.

        Raises:
            EngineStartFailed: three engines in a row were unfit: it isn't the process, it is this machine.
        """
        if worker.canary.is_accepted or error.is_trusted:
            self._num_unfit = 0
        self._num_unfit += 0 if error.is_trusted else 1
        emit(log, logging.ERROR, "engine_unfit", reason=str(error), jobs=len(worker.hand), in_a_row=self._num_unfit)
        jobs = [job for job in worker.hand.values() if not job.is_ending]
        detail = {"reason": f"the engine was taken out: {error}"}
        await finisher.give_back([job for job in jobs if not job.has_output], "engine_unfit", detail)
        touched = [job for job in jobs if job.has_output]
        await finisher.give_back(touched, "engine_unfit", detail, keep_tokens=error.is_trusted)
        if self._num_unfit >= _MOST_UNFIT:
            await finisher.let_all_end()
            await finisher.retire()
            raise EngineStartFailed(f"{self._num_unfit} engines in a row were unfit: {error}")
        await self._replace(worker, finisher)

    async def _replace(self, worker: WorkerContext, finisher: Finisher) -> None:
        worker.is_fit.clear()
        await finisher.let_all_end()
        await finisher.retire()
        await worker.engine.stop(0)
        pause_s = self._deaths.pause_s(self._clock.monotonic())
        if pause_s:
            emit(log, logging.ERROR, "crash_loop", deaths=self._deaths.num_recent, pause_s=pause_s)
            await self._sleep_unless_drained(pause_s)
        delay_s = _RETRY_S
        while not self._drain.is_set():
            try:
                worker.engine = await self._next()
            except EngineStartFailed as failed:
                emit(
                    log,
                    logging.ERROR,
                    "engine_start_failed",
                    reason=str(failed),
                    log_tail=failed.log_tail[-_LOG_TAIL_CHARS:],
                )
                await self._sleep_unless_drained(delay_s)
                delay_s = min(_MAX_RETRY_S, delay_s * 2)
            else:
                worker.canary = self.canary_of(worker.engine)
                worker.stats = type(worker.stats)()
                return

    async def _next(self) -> EngineProcess:
        """The one that stands by, where one does, or a new one. Where one shall stand by, the next is begun."""
        standby, self._standby = self._standby, None
        try:
            engine = await (standby or self.start())
        except BaseException:
            if standby is not None:
                standby.cancel()
            raise
        self.prepare_standby()
        return engine

    async def dismiss_standby(self) -> None:
        """End the one that stands by, loaded or not."""
        standby, self._standby = self._standby, None
        if standby is None:
            return
        standby.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await (await standby).stop(0)

    async def _sleep_unless_drained(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._drain.wait()
