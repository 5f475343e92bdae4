"""What does a generation worker count? Waits and ends of its jobs, gaps between their tokens, and what its engine says of itself."""

from collections import Counter as Count
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.states import END_STATUSES, TIERS
from app.jobs.store import Cause
from app.observe.ends import count_ends
from app.observe.metrics import AtScrape, Family, Tally, counter, family, histogram, preset
from workers.engine.protocol import EngineStats, TokenDelta
from workers.generation.hand import RunningJob


class Meters:
    """One worker's metrics, in a registry of its own; every series is there from `serves` on."""

    def __init__(self, db: AsyncEngine | None = None) -> None:
        self.registry = CollectorRegistry()
        self._ends = None if db is None else count_ends(db, self.registry)
        self._queue_wait = histogram("penstock_queue_wait_seconds", self.registry)
        self._first_token = histogram("penstock_time_to_first_token_seconds", self.registry)
        self._e2e = histogram("penstock_e2e_seconds", self.registry)
        self._between = Tally("penstock_inter_token_seconds", self.registry)
        self._given_back = counter("penstock_given_back_total", self.registry)
        self._slow_steps = counter("penstock_slow_steps_total", self.registry)
        self._gaps: Count[tuple[str, float]] = Count()  # of the step that is being taken in: tier, seconds -> how often
        self._model = ""

    def serves(self, model: str, stats: Callable[[], EngineStats]) -> None:
        """The model is loaded. `stats`: the engine's latest word."""
        self._model = model
        for each in (self._queue_wait, self._first_token, self._e2e, self._between):
            preset(each, TIERS, [model])
        preset(self._given_back, get_args(Cause), [model])
        preset(self._slow_steps, [model])
        if self._ends is not None:
            preset(self._ends, sorted(END_STATUSES), TIERS, [model])
        AtScrape(lambda: self._engine(stats()), self.registry)

    def started(self, job: RunningJob) -> None:
        """A job was started here."""
        self._queue_wait.labels(job.started.tier, self._model).observe(max(0.0, job.started.waited_s))

    def took(self, job: RunningJob, delta: TokenDelta, now: float) -> None:
        """Tokens of a choice came, which the job hasn't taken in yet. Those that come together came as slowly as their mean."""
        if job.first_token_at is None:
            job.first_token_at = now
            if not (job.num_resumed or job.num_discarded or job.started.died_at):  # else it isn't the job's first
                self._first_token.labels(job.started.tier, self._model).observe(job.age_s(now))
        choice, number = job.choices[delta.choice], len(delta.token_ids)
        if choice.last_token_at is not None and number:
            self._gaps[job.started.tier, (now - choice.last_token_at) / number] += number
        choice.last_token_at = now

    def stepped(self) -> None:
        """All that one step brought was taken in. Sequences that decode side by side have the same gaps: they are counted together."""
        for (tier, gap_s), times in self._gaps.items():
            self._between.add((tier, self._model), gap_s, times)
        self._gaps.clear()

    def succeeded(self, job: RunningJob, now: float) -> None:
        """A job's success was written."""
        if not job.started.died_at:
            self._e2e.labels(job.started.tier, self._model).observe(job.age_s(now))

    def given_back(self, jobs: Sequence[RunningJob], cause: Cause) -> None:
        """Attempts ended without a result."""
        self._given_back.labels(cause, self._model).inc(len(jobs))

    def slow_step(self) -> None:
        """A step took longer than it should."""
        self._slow_steps.labels(self._model).inc()

    def _engine(self, stats: EngineStats) -> Iterator[Family]:
        model = [self._model]
        tokens = family("penstock_tokens_total")
        for kind, number in (
            ("prompt", stats.prompt_tokens), ("cached", stats.cached_tokens), ("generated", stats.generated_tokens),
        ):  # fmt: skip
            tokens.add_metric([kind, *model], number)
        yield tokens
        values: dict[str, float] = {
            "penstock_running_sequences": stats.running,
            "penstock_waiting_sequences": stats.waiting,
            "penstock_kv_usage_ratio": _ratio(stats.kv_blocks_used, stats.kv_blocks_total),
            "penstock_prefix_cache_hit_ratio": _ratio(stats.cached_tokens, stats.prompt_tokens),
            "penstock_preemptions_total": stats.preemptions,
            "penstock_engine_steps_total": stats.step,
        }
        for name, value in values.items():
            shown = family(name)
            shown.add_metric(model, value)
            yield shown


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
