"""How does a generation worker live? Engine up, lease open, loops running; again after a crash or a lost lease; drain at the end."""

import asyncio
import contextlib
import logging
import os
import re
import socket
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy.exc import ProgrammingError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from tokenizers import Tokenizer

from app.clock import Clock
from app.errors import LeaseLost, Misconfigured
from app.ids import new_id
from app.jobs import leases
from app.jobs.leases import Incarnation
from app.jobs.models import Model, TokenizerFiles, register_model
from app.jobs.request import NAME
from app.jobs.tokenizing import PromptEncoder, tokenizer_digest
from app.observe.tracing import Tracing
from app.queue.events import EventLog
from app.queue.streams import JobQueue
from app.racing import race
from app.redis import Redis
from app.settings import Settings
from app.telemetry import emit
from workers.engine.config import EngineConfig
from workers.engine.errors import EngineDied, EngineStartFailed
from workers.engine.process import EngineProcess
from workers.engine.upstream_config import UpstreamConfig
from workers.generation.canary import Canary, EngineUnfit
from workers.generation.claimer import claim_forever
from workers.generation.context import WorkerContext
from workers.generation.crash_loop import CrashLoop
from workers.generation.finisher import Finisher
from workers.generation.fitness import watch_fitness
from workers.generation.lease import let_go, renew_forever
from workers.generation.meters import Meters
from workers.generation.outputs import read_engine, watch_callers, watch_deadlines
from workers.generation.publish import publish_forever
from workers.generation.suspicion import shown, sort_out
from workers.generation.throughput import Throughput
from workers.models import BROOK

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_MAX_RETRY_S = 10.0
_HANG_CHECK_S = 1.0
_MOST_UNFIT = 3  # engines in a row that fail their self-test, before the worker gives up
_LOG_TAIL_CHARS = 480  # the log's end says why; telemetry would keep the beginning of a longer text


class EngineHung(Exception):
    """The engine has work and makes no step."""


class Supervisor:
    """One generation worker. `run` returns when the worker has drained."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        db: AsyncEngine,
        redis: Redis,
        random: Random,
        tracing: Tracing | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._db = db
        self._redis = redis
        self._random = random
        self._drain = asyncio.Event()
        self._hurry = asyncio.Event()
        self._log_path: Path | None = None
        self._worker: WorkerContext | None = None  # once the model is loaded
        self._standby: asyncio.Task[EngineProcess] | None = (
            None  # an engine that is loaded, or being loaded, for the next
        )
        self._deaths = CrashLoop(
            limit=settings.crash_loop_deaths, window_s=settings.crash_loop_window_s, pause_s=settings.crash_loop_pause_s
        )
        self._load_s = 0.0  # how long the last engine took to load
        self._num_unfit = 0  # engines in a row that failed their self-test
        self.meters = Meters(db)
        self._tracing = tracing

    def drain(self) -> None:
        """Stop claiming; end when nothing runs any more or the grace is over. A second call doesn't wait for the grace."""
        if self._drain.is_set():
            self._hurry.set()
        self._drain.set()

    def why_not_ready(self) -> str | None:
        """Why this worker takes no jobs now; None where it does."""
        worker = self._worker
        if self._drain.is_set() or (worker is not None and worker.is_draining):
            return "draining"
        if worker is None:
            return "the model is being loaded"
        if worker.is_paused:
            return "drained by an operator"
        return None if worker.is_fit.is_set() else "the engine is being started or tested"

    async def run(self) -> None:
        """Work until drained.

        Raises:
            EngineStartFailed: the model can't be loaded at the first start.
            Misconfigured: a setting makes no sense.
        """
        worker = await self._first_start_or_drain()
        if worker is None:
            return
        self._worker = worker
        self._prepare_standby()
        finisher = Finisher(worker)
        try:
            # The finisher outlives incarnations: an end that waits for Postgres is still good under its fence.
            await race(finisher.run(), self._live_on(worker, finisher))
        finally:
            await self._dismiss_standby()
            await worker.engine.stop()

    async def _live_on(self, worker: WorkerContext, finisher: Finisher) -> None:
        while not self._drain.is_set():
            await self._live(worker, finisher)
        await self._give_up_the_rest(worker, finisher)

    async def _first_start_or_drain(self) -> WorkerContext | None:
        """The loaded worker, or None where a signal came before it was loaded."""
        starting, draining = asyncio.create_task(self._first_start()), asyncio.create_task(self._drain.wait())
        await asyncio.wait({starting, draining}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return None
        return starting.result()

    async def _first_start(self) -> WorkerContext:
        settings = self._settings
        name = settings.model_name or Path(self._model()).name
        if not re.fullmatch(NAME, name):
            raise Misconfigured(
                f"{name!r} can't be a model's name: set PENSTOCK_MODEL_NAME to letters, digits and . _ - /"
            )
        engine = await self._start_engine()
        bundle = engine.tokenizer
        tokenizer_json = bundle.tokenizer_json.encode()
        digest = tokenizer_digest(tokenizer_json, bundle.chat_template)
        files = TokenizerFiles(digest, tokenizer_json, bundle.chat_template, bundle.special_tokens)
        info = engine.info
        model = Model(name, name, files.hash, info.model_hash, info.max_model_len, info.vocab_size)
        await self._until_written(register_model, model, files)
        emit(log, logging.INFO, "model_registered", model=name, device=info.device, kv_blocks=info.num_blocks)
        worker = WorkerContext(
            settings=settings,
            clock=self._clock,
            db=self._db,
            queue=JobQueue(self._redis, name),
            events=EventLog(self._redis, ttl_s=settings.event_ttl_s, max_entries=settings.event_max_entries),
            random=self._random,
            model_name=name,
            engine=engine,
            tokenizer=Tokenizer.from_str(bundle.tokenizer_json),
            tokenizer_hash=files.hash,
            encoder=PromptEncoder(files.tokenizer_json, files.chat_template, files.special_tokens),
            incarnation=new_id(),
            throughput=Throughput(self._clock.monotonic()),
            canary=self._canary_of(engine),
            meters=self.meters,
            tracing=self._tracing,
        )
        self.meters.serves(name, lambda: worker.stats)
        return worker

    async def _live(self, worker: WorkerContext, finisher: Finisher) -> None:
        """One incarnation: from its lease to its drain, its lost lease or its engine's death."""
        previous, worker.incarnation = worker.incarnation, new_id()
        worker.is_draining = False
        worker.load_s = self._load_s
        worker.is_fit.clear()
        await self._until_written(self._open_lease, worker, previous)
        emit(log, logging.INFO, "worker_ready", incarnation=worker.incarnation.hex, model=worker.model_name)
        try:
            await race(
                claim_forever(worker, finisher),
                renew_forever(worker, finisher),
                read_engine(worker, finisher),
                publish_forever(worker),
                watch_callers(worker, finisher),
                watch_deadlines(worker, finisher),
                self._watch_for_hang(worker),
                watch_fitness(worker),
                self._wait_for_drain(worker),
            )
        except LeaseLost as error:
            await let_go(worker, error)
        except (EngineDied, EngineHung) as error:
            await self._bury_engine(worker, finisher, error)
        except EngineUnfit as error:
            await self._retire_engine(worker, finisher, error)

    async def _open_lease(self, conn: Any, worker: WorkerContext, previous: UUID) -> None:
        info = worker.engine.info
        incarnation = Incarnation(
            worker.incarnation, worker.queue.keys.pool, worker.model_name, socket.gethostname(), os.getpid(),
            info.device, info.model_hash,
        )  # fmt: skip
        worker.is_paused = await leases.register(conn, incarnation, ttl_s=self._settings.lease_ttl_s, previous=previous)

    async def _wait_for_drain(self, worker: WorkerContext) -> None:
        """End the incarnation once a drain has nothing left to wait for."""
        await self._drain.wait()
        worker.is_draining = True
        worker.changed.set()
        emit(log, logging.INFO, "draining", jobs=len(worker.hand), grace_s=self._settings.drain_grace_s)
        until = self._clock.monotonic() + self._settings.drain_grace_s
        while worker.hand and not self._hurry.is_set() and self._clock.monotonic() < until:
            await worker.wait_for_change(0.1)

    async def _give_up_the_rest(self, worker: WorkerContext, finisher: Finisher) -> None:
        """Wait for ends that are on their way, give back what still runs, close the lease."""
        rest = [job for job in worker.hand.values() if not job.is_ending]
        for job in rest:
            await worker.engine.abort(job.request_id)
        if rest:
            emit(log, logging.INFO, "given_back", jobs=len(rest))
            await finisher.give_back(rest, "drained")
        await self._until_hand_is_empty(worker)
        await finisher.retire()
        emit(log, logging.INFO, "drained")

    async def _until_hand_is_empty(self, worker: WorkerContext) -> None:
        """Until all ends that are on their way are written."""
        while worker.hand:
            await worker.wait_for_change(0.1)

    async def _watch_for_hang(self, worker: WorkerContext) -> None:
        step, since = worker.stats.step, self._clock.monotonic()
        while True:
            await asyncio.sleep(_HANG_CHECK_S)
            now = self._clock.monotonic()
            busy = any(not job.is_ending for job in worker.hand.values())
            if not busy or worker.stats.step != step:
                step, since = worker.stats.step, now
            elif now - since >= self._settings.engine_hang_s:
                raise EngineHung(f"no step for {now - since:.0f} s with {len(worker.hand)} jobs at hand")

    async def _bury_engine(self, worker: WorkerContext, finisher: Finisher, error: EngineDied | EngineHung) -> None:
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
        await self._replace_engine(worker, finisher)

    async def _retire_engine(self, worker: WorkerContext, finisher: Finisher, error: EngineUnfit) -> None:
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
            await self._until_hand_is_empty(worker)
            await finisher.retire()
            raise EngineStartFailed(f"{self._num_unfit} engines in a row were unfit: {error}")
        await self._replace_engine(worker, finisher)

    async def _replace_engine(self, worker: WorkerContext, finisher: Finisher) -> None:
        worker.is_fit.clear()
        await self._until_hand_is_empty(worker)
        await finisher.retire()
        await worker.engine.stop(0)
        pause_s = self._deaths.pause_s(self._clock.monotonic())
        if pause_s:
            emit(log, logging.ERROR, "crash_loop", deaths=self._deaths.num_recent, pause_s=pause_s)
            await self._sleep_unless_drained(pause_s)
        delay_s = _RETRY_S
        while not self._drain.is_set():
            try:
                worker.engine = await self._next_engine()
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
                worker.canary = self._canary_of(worker.engine)
                worker.stats = type(worker.stats)()
                return

    async def _sleep_unless_drained(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._drain.wait()

    def _canary_of(self, engine: EngineProcess) -> Canary:
        return Canary(engine, self._settings.engine, timeout_s=self._settings.engine_hang_s)

    async def _next_engine(self) -> EngineProcess:
        """The one that stands by, where one does, or a new one. Where one shall stand by, the next is begun."""
        standby, self._standby = self._standby, None
        try:
            engine = await (standby or self._start_engine())
        except BaseException:
            if standby is not None:
                standby.cancel()
            raise
        self._prepare_standby()
        return engine

    def _prepare_standby(self) -> None:
        if self._settings.standby_engine and not self._drain.is_set():
            self._standby = asyncio.create_task(self._start_engine())

    async def _dismiss_standby(self) -> None:
        standby, self._standby = self._standby, None
        if standby is None:
            return
        standby.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await (await standby).stop(0)

    def _model(self) -> str:
        settings = self._settings
        if settings.model is None:
            if settings.engine == "upstream":
                raise Misconfigured(
                    "the engine `upstream` needs PENSTOCK_MODEL: the Hugging Face id or the folder of the server's model, "
                    "for its tokenizer"
                )
            return "null" if settings.engine == "null" else str(BROOK)
        return settings.model

    async def _start_engine(self) -> EngineProcess:
        settings = self._settings
        fields: dict[str, Any] = {
            "engine": settings.engine,
            "model": (settings.model or "") if settings.engine == "null" else self._model(),
            "device": settings.device,
            "dtype": settings.dtype,
            "max_num_seqs": settings.max_num_seqs,
            "max_model_len": settings.max_model_len or 0,
            "quantization": settings.quantization,
            "prefix_cache": settings.prefix_cache,
            "speculative_tokens": settings.speculative_tokens,
            "grammar_check_s": settings.grammar_check_s,
            "threads": settings.engine_threads or 0,
            "kernels": settings.kernels,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "attention": settings.attention,
            "cuda_graphs": settings.cuda_graphs,
            "decode_steps": settings.decode_steps or 0,
            "deterministic": settings.deterministic,
            "null_step_s": settings.null_step_s,
            "slow_step_s": settings.slow_step_s,
            "profile_dir": str(settings.profile_dir or ""),
            "profile_steps": settings.profile_steps,
            "engine_options": settings.engine_options or {},
        }
        if settings.max_batch_tokens is not None:
            fields["max_batch_tokens"] = settings.max_batch_tokens
        if settings.kv_cache_mib is not None:
            fields["kv_cache_bytes"] = settings.kv_cache_mib * 2**20
        try:
            if settings.engine == "upstream":
                fields["upstream"] = self._upstream()
            config = EngineConfig(**fields)
        except ValueError as error:
            raise Misconfigured(str(error)) from error
        began = self._clock.monotonic()
        engine = await EngineProcess.start(
            config, self._log_path, timeout_s=settings.engine_start_timeout_s, python=settings.engine_python
        )
        self._load_s = self._clock.monotonic() - began
        return engine

    def _upstream(self) -> UpstreamConfig:
        settings = self._settings
        if settings.upstream_url is None:
            raise Misconfigured("the engine `upstream` needs PENSTOCK_UPSTREAM_URL")
        return UpstreamConfig(
            url=settings.upstream_url,
            api_key=settings.upstream_api_key.get_secret_value() if settings.upstream_api_key else "",
            model=settings.upstream_model or "",
            dialect=settings.upstream_dialect,
            send_priority=settings.upstream_priority,
            timeout_s=settings.upstream_timeout_s,
            outage_s=settings.upstream_outage_s,
        )

    async def _until_written(self, write: Any, *args: Any) -> None:
        """Run a write in its own transaction, again and again until Postgres takes it."""
        delay_s = _RETRY_S
        while True:
            try:
                async with self._db.begin() as conn:
                    await write(conn, *args)
                return
            except ProgrammingError as error:
                raise Misconfigured("the database's schema isn't this version's: run `penstock migrate`") from error
            except (SQLAlchemyError, OSError) as error:
                emit(log, logging.WARNING, "postgres_unavailable", error=error, retry_in_s=delay_s)
                await asyncio.sleep(delay_s)
                delay_s = min(_MAX_RETRY_S, delay_s * 2)
