"""How long does an engine take? A fluid model of continuous batching with chunked prefill, and a KV pool that bounds the batch.

A step reads the weights once and each sequence's keys and values once, and feeds one chunk of a prompt if one waits. It gives each decoding
sequence a token. Between two events the step's time is taken as constant, so that a worker's state moves from event to event.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.simulation.traffic import Job

CHUNK = 2_048  # tokens of prompts that a step feeds
OUTPUT_RATIO = 0.5  # of what callers allow, this much comes: what our engine learns, for its room
_RANK = {"interactive": 0, "standard": 1, "batch": 2}

# Assumed: the share of a device's peak that an engine reaches, and what a step costs besides.
_OF_BANDWIDTH = 0.6
_OF_COMPUTE = 0.45
_STEP_S = 0.003
_SEQUENCE_S = 20e-6
_OF_MEMORY = 0.9


@dataclass(frozen=True, slots=True)
class Spec:
    """A kind of worker, in seconds and tokens."""

    gpu: str
    model: str
    base_s: float  # of a step
    kv_token_s: float  # of a step, for each token in the KV pool
    prefill_token_s: float
    kv_tokens: int
    max_seqs: int = 64
    load_s: float = 120.0  # from the start of a worker to its first claim


def spec(
    gpu: str,
    model: str,
    *,
    params: float,
    weight_bytes: int,
    kv_bytes: int,
    memory: float,
    bandwidth: float,
    flops: float,
) -> Spec:
    """By roofline: weights and KV are read at the memory's speed, prompts are computed at the cores'."""
    weights = params * weight_bytes
    return Spec(
        gpu,
        model,
        base_s=_STEP_S + weights / (bandwidth * _OF_BANDWIDTH),
        kv_token_s=kv_bytes / (bandwidth * _OF_BANDWIDTH),
        prefill_token_s=2 * params / (flops * _OF_COMPUTE),
        kv_tokens=int((memory * _OF_MEMORY - weights) / kv_bytes),
    )


# Share of the jobs, and what serves them. Shapes of current open models on GPUs of 80 and 141 GB.
POOLS: dict[str, tuple[float, Spec]] = {
    "small": (
        0.3,
        spec("80 GB", "8B, bf16", params=8e9, weight_bytes=2, kv_bytes=131_072, memory=80e9, bandwidth=3.35e12, flops=0.99e15),
    ),
    "medium": (
        0.3,
        spec("80 GB", "32B, fp8", params=32e9, weight_bytes=1, kv_bytes=262_144, memory=80e9, bandwidth=3.35e12, flops=1.98e15),
    ),
    "large": (
        0.4,
        spec("141 GB", "70B, fp8", params=70e9, weight_bytes=1, kv_bytes=327_680, memory=141e9, bandwidth=4.8e12, flops=1.98e15),
    ),
}  # fmt: skip


def work_s(kind: Spec, job: Job) -> float:
    """About how many seconds of a whole worker a job takes where the KV pool is full: to size pools, not to simulate."""
    step = kind.base_s + kind.kv_tokens * kind.kv_token_s
    return job.prompt * kind.prefill_token_s + job.output * step * (job.prompt + job.output / 2) / kind.kv_tokens


class Engine:
    """One engine's residents, at its own `now`. Whoever changes anything calls `advance` first."""

    def __init__(self, kind: Spec) -> None:
        self.kind = kind
        self.now = 0.0
        self.busy_s = 0.0
        self.over_s = 0.0  # with more in the KV pool than it holds: where a real engine preempts
        self.version = 0  # changes with whatever moves the next event
        self._steps = 0.0  # so many since the start: a sequence ends when its mark is reached
        self._decoding: list[tuple[float, int, Job]] = []  # heap by mark
        self._prefilling: list[tuple[int, int, Job]] = []  # heap by tier, then age
        self._fed: dict[int, float] = {}  # tokens of a prompt that are computed, by order
        self._context = 0.0  # tokens in the pool of those who decode
        self._allowed = 0.0  # tokens that the residents may still bring
        self._to_feed = 0  # tokens of prompts that aren't wholly computed
        self._order = 0

    @property
    def num_seqs(self) -> int:
        """Residents."""
        return len(self._decoding) + len(self._prefilling)

    @property
    def token_room(self) -> int:
        """Tokens of new work that fit, by what is expected of the residents (`workers/engine/engine.py` does the same)."""
        expected = self._context + self._to_feed + OUTPUT_RATIO * self._allowed
        return max(0, int(self.kind.kv_tokens - expected))

    def add(self, jobs: Iterable[Job]) -> None:
        """Take jobs in; one that ran before goes on from its tokens, which are prompt now."""
        for job in jobs:
            heapq.heappush(self._prefilling, (_RANK[job.tier], self._order, job))
            self._fed[self._order] = 0.0
            self._to_feed += job.prompt + job.done
            self._allowed += job.max_tokens - job.done
            self._order += 1
        self.version += 1

    def advance(self, now: float) -> None:
        """Let time pass up to `now`, which is no later than `next_s`."""
        passed = now - self.now
        self.now = now
        if passed <= 0 or not self.num_seqs:
            return
        self.busy_s += passed
        if self._context > self.kind.kv_tokens:
            self.over_s += passed
        feeding = self._feeding()
        steps = passed / self._step_s(feeding=feeding is not None)
        self._steps += steps
        self._context += steps * len(self._decoding)
        self._allowed -= steps * len(self._decoding)
        if feeding is not None:
            self._fed[feeding[1]] += steps * CHUNK

    def next_s(self) -> float | None:
        """When the next prompt is computed or the next sequence ends; None if nothing runs."""
        if not self.num_seqs:
            return None
        feeding = self._feeding()
        steps = []
        if self._decoding:
            steps.append(self._decoding[0][0] - self._steps)
        if feeding is not None:
            _, order, job = feeding
            steps.append((job.prompt + job.done - self._fed[order]) / CHUNK)
        return self.now + max(0.0, min(steps)) * self._step_s(feeding=feeding is not None)

    def take_events(self) -> tuple[list[Job], list[Job]]:
        """(whose first token is there, who has ended) by now."""
        begun: list[Job] = []
        ended: list[Job] = []
        feeding = self._feeding()
        if feeding is not None and self._fed[feeding[1]] >= feeding[2].prompt + feeding[2].done - 1e-3:
            _, order, job = heapq.heappop(self._prefilling)
            del self._fed[order]
            self._to_feed -= job.prompt + job.done
            self._context += job.prompt + job.done
            heapq.heappush(self._decoding, (self._steps + job.output - job.done, order, job))
            begun.append(job)
        while self._decoding and self._decoding[0][0] <= self._steps + 1e-6:
            _, _, job = heapq.heappop(self._decoding)
            self._context -= job.prompt + job.output
            self._allowed -= job.max_tokens - job.output
            ended.append(job)
        if begun or ended:
            self.version += 1
        return begun, ended

    def lose_all(self) -> list[Job]:
        """The engine is gone: its jobs, each with the tokens that its readers have."""
        lost = [job for _, _, job in self._prefilling]
        for mark, _, job in self._decoding:
            job.done = max(job.done, min(job.output - 1, int(job.output - (mark - self._steps))))
            lost.append(job)
        self._decoding, self._prefilling = [], []
        self._fed.clear()
        self._context = self._allowed = 0.0
        self._to_feed = 0
        self.version += 1
        return lost

    def _feeding(self) -> tuple[int, int, Job] | None:
        """Whose prompt is computed: the first one's, unless the KV pool has no room to begin it and others run."""
        if not self._prefilling:
            return None
        _, order, job = first = self._prefilling[0]
        has_begun = self._fed[order] > 0  # then it holds its pages: what the others bring meanwhile doesn't stop it
        if self._decoding and not has_begun and self._context + job.prompt + job.done > self.kind.kv_tokens:
            return None
        return first

    def _step_s(self, *, feeding: bool) -> float:
        kind = self.kind
        step = kind.base_s + self._context * kind.kv_token_s + len(self._decoding) * _SEQUENCE_S
        return step + CHUNK * kind.prefill_token_s if feeding else step
