"""How does a generation worker live? Engine up, lease open, loops running; again after a crash or a lost lease; drain at the end."""

import asyncio
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
from app.ids import MODEL_NAME, new_id
from app.jobs import leases
from app.jobs.leases import Incarnation
from app.jobs.models import Model, TokenizerFiles, register_model
from app.jobs.tokenizing import PromptEncoder, tokenizer_digest
from app.observe.tracing import Tracing
from app.queue.events import EventLog
from app.queue.streams import JobQueue
from app.racing import race
from app.redis import Redis
from app.settings import Settings
from app.telemetry import emit
from workers.engine.errors import EngineDied
from workers.generation.canary import EngineUnfit
from workers.generation.claimer import claim_forever
from workers.generation.context import WorkerContext
from workers.generation.engine_config import model_of
from workers.generation.engine_life import EngineHung, EngineLife
from workers.generation.finisher import Finisher
from workers.generation.fitness import watch_fitness
from workers.generation.lease import let_go, renew_forever
from workers.generation.meters import Meters
from workers.generation.outputs import read_engine, watch_callers, watch_deadlines
from workers.generation.publish import publish_forever
from workers.generation.throughput import Throughput

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_MAX_RETRY_S = 10.0


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
        self._worker: WorkerContext | None = None  # once the model is loaded
        self._engines = EngineLife(settings, clock, self._drain)
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
        self._engines.prepare_standby()
        finisher = Finisher(worker)
        try:
            # The finisher outlives incarnations: an end that waits for Postgres is still good under its fence.
            await race(finisher.run(), self._live_on(worker, finisher))
        finally:
            await self._engines.dismiss_standby()
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
        name = settings.model_name or Path(model_of(settings)).name
        if not re.fullmatch(MODEL_NAME, name):
            raise Misconfigured(
                f"{name!r} can't be a model's name: set PENSTOCK_MODEL_NAME to letters, digits and . _ - /"
            )
        engine = await self._engines.start()
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
            canary=self._engines.canary_of(engine),
            meters=self.meters,
            tracing=self._tracing,
        )
        self.meters.serves(name, lambda: worker.stats)
        return worker

    async def _live(self, worker: WorkerContext, finisher: Finisher) -> None:
        """One incarnation: from its lease to its drain, its lost lease or its engine's death."""
        previous, worker.incarnation = worker.incarnation, new_id()
        worker.is_draining = False
        worker.load_s = self._engines.load_s
        worker.is_fit.clear()
        worker.alone.clear()
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
                self._engines.watch_for_hang(worker),
                watch_fitness(worker),
                self._wait_for_drain(worker),
            )
        except LeaseLost as error:
            await let_go(worker, error)
        except (EngineDied, EngineHung) as error:
            await self._engines.bury(worker, finisher, error)
        except EngineUnfit as error:
            await self._engines.retire(worker, finisher, error)

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
        await finisher.let_all_end()
        await finisher.retire()
        emit(log, logging.INFO, "drained")

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
