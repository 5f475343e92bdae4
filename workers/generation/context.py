"""What do all loops of a generation worker share?"""

import asyncio
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine
from tokenizers import Tokenizer

from app.clock import Clock
from app.jobs.store import Fate
from app.jobs.tokenizing import PromptEncoder
from app.observe.tracing import Tracing
from app.queue.events import EventLog, Publication
from app.queue.streams import JobQueue
from app.settings import Settings
from workers.engine.process import EngineProcess
from workers.engine.protocol import EngineStats
from workers.generation.canary import Canary
from workers.generation.hand import RunningJob
from workers.generation.meters import Meters
from workers.generation.throughput import Throughput


@dataclass(slots=True)
class WorkerContext:
    """One worker's resources and the jobs in its hand. All loops run in one event loop, so no locks."""

    settings: Settings
    clock: Clock
    db: AsyncEngine
    queue: JobQueue
    events: EventLog
    random: Random
    model_name: str
    engine: EngineProcess
    canary: Canary  # of this engine
    tokenizer: Tokenizer
    tokenizer_hash: str
    encoder: PromptEncoder
    incarnation: UUID
    lost_incarnation: UUID | None = None  # whose lease was lost last
    hand: dict[str, RunningJob] = field(default_factory=dict)  # by the engine's request id
    stats: EngineStats = field(default_factory=EngineStats)
    unsent: dict[UUID, list[Publication]] = field(default_factory=dict)  # events that Redis may or may not have
    throughput: Throughput = field(default_factory=lambda: Throughput(0.0))
    meters: Meters = field(default_factory=Meters)
    tracing: Tracing | None = None
    load_s: float = 0.0  # how long the engine took to load
    is_draining: bool = False
    is_paused: bool = False  # an operator has drained it: it claims nothing, and may again
    is_fit: asyncio.Event = field(default_factory=asyncio.Event)  # the engine has passed its self-test
    alone: set[str] = field(default_factory=set)  # request ids of suspects, who run without company
    first_tokens: asyncio.Event = field(default_factory=asyncio.Event)  # of a job that somebody reads
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # room or hand changed

    @property
    def fate(self) -> Fate:
        """How many failures a job survives."""
        return Fate.of(self.settings)

    @property
    def made_by(self) -> str:
        """Hashes of whatever decides tokens: a job may go on only from tokens that were made by the same."""
        info = self.engine.info
        return f"{info.model_hash}:{self.tokenizer_hash}:{info.settings_hash}"

    @property
    def num_sequences(self) -> int:
        """Sequences that the engine was given and that haven't ended."""
        return sum(job.num_unfinished for job in self.hand.values())

    def find(self, job_id: UUID) -> RunningJob | None:
        """The job in the hand."""
        return next((job for job in self.hand.values() if job.started.job_id == job_id), None)

    def drop(self, request_id: str) -> None:
        """Forget a job whose end is written, or that isn't ours any more."""
        job = self.hand.pop(request_id, None)
        if job is not None:
            self.unsent.pop(job.started.job_id, None)
        self.changed.set()

    async def wait_for_change(self, timeout_s: float) -> None:
        """Until the hand or the engine's room changed, or the time is over."""
        self.changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self.changed.wait()
        except TimeoutError:
            return

    async def until_hand_is_empty(self) -> None:
        """Until all ends that are on their way are written."""
        while self.hand:
            await self.wait_for_change(0.1)
