"""How long does an engine take? A fluid model of continuous batching with chunked prefill, and a KV pool with preemption.

A step reads the weights once and each sequence's keys and values once, and feeds one chunk of a prompt if one waits. It gives each decoding
sequence a token. Between two events the step's time is taken as constant, so that a worker's state moves from event to event.
"""

import heapq
import math
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

from app.jobs.states import TIERS
from app.queue.fairness import LEVELS, priority_of
from app.queue.streams import Room
from benchmarks.simulation.gpus import Spec
from benchmarks.simulation.traffic import Job
from workers.engine.protocol import EngineStats, TierLoad

CHUNK = 2_048  # tokens of prompts that a step feeds
MAX_CLAIM = 64  # jobs, as in `workers/generation/claimer.py`
_WATERMARK = 0.01  # share of the pool that admission leaves free
_LEARN = 0.05  # weight of a job that ends in the expectation of what others bring

_NUM_PRIORITIES = LEVELS * len(TIERS)
_SEQUENCE_S = 20e-6  # of a step, for each sequence that decodes; assumed


@dataclass(slots=True, eq=False)
class _Sequence:
    """A job in the engine. Stands in the order of priority, then arrival."""

    rank: int  # its priority: `app.queue.fairness.priority_of`
    order: int
    job: Job
    fed: float = 0.0  # tokens of its prompt that are computed
    ends_at: float = math.inf  # in steps since the start; infinite until its prompt is computed
    has_output: bool = False  # in this attempt

    def __lt__(self, other: "_Sequence") -> bool:
        return (self.rank, self.order) < (other.rank, other.order)

    @property
    def size(self) -> int:
        """Tokens that must be computed before it brings new ones."""
        return self.job.prompt + self.job.done

    def tokens(self, steps: float) -> float:
        """Prompt and output after so many steps."""
        return self.size if self.ends_at == math.inf else self.job.prompt + self.job.output - (self.ends_at - steps)


class Engine:
    """One engine's residents, at its own `now`. Whoever changes anything calls `advance` first.

    The rules of admission and preemption are those of `workers/engine/scheduler.py`, in tokens instead of pages and without a prefix
    cache: what was preempted is computed again. One prompt is fed at a time.
    """

    def __init__(self, kind: Spec) -> None:
        self.kind = kind
        self.now = 0.0
        self.busy_s = 0.0
        self.output_tokens = 0.0
        self.num_displaced = 0  # preempted for a higher tier
        self.num_evicted = 0  # preempted because the pool was full
        self.lost_tokens = 0.0  # that were computed and will be again
        self.version = 0  # changes with whatever moves the next event
        self.output_ratio = 1.0  # of what residents may bring, the part that is expected
        self.watermark = math.ceil(kind.kv_tokens * _WATERMARK)
        self._empty()

    def _empty(self) -> None:
        self._steps = 0.0
        self._order = 0
        self._waiting: list[_Sequence] = []  # heap
        self._running: list[_Sequence] = []  # sorted
        self._feeding: list[_Sequence] = []  # sorted; those of the running whose prompts aren't computed
        self._decoding: list[tuple[float, int, _Sequence]] = []  # heap by end; the rest of the running
        self._held = 0.0  # tokens of the pool that the running hold
        self._context = 0.0  # those of them that a step reads
        # Each by priority: residents, and those of them that decode; tokens that residents have and may still bring; costs of those
        # who have brought nothing yet.
        self._num_seqs, self._num_decoding = [0] * _NUM_PRIORITIES, [0] * _NUM_PRIORITIES
        self._known, self._left = [0.0] * _NUM_PRIORITIES, [0.0] * _NUM_PRIORITIES
        self._fresh = [0] * _NUM_PRIORITIES

    @property
    def num_seqs(self) -> int:
        """Residents."""
        return len(self._running) + len(self._waiting)

    @property
    def seq_capacity(self) -> int:
        """Residents before it takes no more: a few wait, so that a slot that falls free is filled at once."""
        return self.kind.max_seqs + max(1, self.kind.max_seqs // 8)

    def stats(self) -> EngineStats:
        """As the engine process reports it (`workers/engine/engine.py`); what `rooms` goes by."""
        ratio, capacity = self.output_ratio, self.kind.kv_tokens - self.watermark
        load = {
            rank: TierLoad(self._num_seqs[rank], round(self._known[rank] + ratio * self._left[rank]))
            for rank in range(_NUM_PRIORITIES)
            if self._num_seqs[rank]
        }
        room = capacity - sum(each.tokens for each in load.values())
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_blocks_total=self.kind.kv_tokens,
            token_room=max(0, room) if self.num_seqs < self.seq_capacity else 0,
            token_capacity=capacity,
            sequence_capacity=self.seq_capacity,
            load=load,
        )

    @property
    def held_tokens(self) -> int:
        """What the residents have and are expected to bring: `EngineStats.held_tokens`."""
        return round(sum(self._known) + self.output_ratio * sum(self._left))

    @property
    def is_saturated(self) -> bool:
        """Whether it has all the work that it can take, as `workers/generation/outputs.py` tells."""
        if self._waiting or len(self._running) >= 0.9 * self.kind.max_seqs:
            return True
        return sum(self._known) + self.output_ratio * sum(self._left) >= self.kind.kv_tokens - self.watermark

    def rooms(self) -> dict[str, list[Room]]:
        """What may be claimed now of each tier, by level: `room` of `workers/generation/claimer.py`, in sums that are kept."""
        rooms: dict[str, list[Room]] = {tier: [] for tier in TIERS}
        seqs, tokens, fresh = 0, 0.0, 0
        capacity, most = self.kind.kv_tokens - self.watermark, self.seq_capacity
        for rank in range(_NUM_PRIORITIES):
            seqs += self._num_seqs[rank]
            tokens += self._known[rank] + self.output_ratio * self._left[rank]
            fresh += self._fresh[rank]
            free = 0 if seqs >= most else max(0, capacity - round(tokens))
            free -= fresh
            if not self._running and not self._waiting:
                free = max(free, 1)
            rooms[TIERS[rank // LEVELS]].append(Room(max(0, free), max(0, min(most - seqs, MAX_CLAIM))))
        return rooms

    def add(self, jobs: Iterable[Job]) -> None:
        """Take jobs in; one that ran before goes on from its tokens, which are prompt now."""
        for job in jobs:
            sequence = _Sequence(priority_of(TIERS.index(job.tier), job.level), self._order, job)
            heapq.heappush(self._waiting, sequence)
            self._num_seqs[sequence.rank] += 1
            self._known[sequence.rank] += sequence.size
            self._left[sequence.rank] += job.max_tokens - job.done
            self._fresh[sequence.rank] += job.cost
            self._order += 1
        self._schedule()
        self.version += 1

    def advance(self, now: float) -> None:
        """Let time pass up to `now`, which is no later than `next_s`."""
        passed = now - self.now
        self.now = now
        if passed <= 0 or not self._running:
            return
        self.busy_s += passed
        steps = passed / self._step_s()
        self._steps += steps
        for rank, count in enumerate(self._num_decoding):
            if count:
                self._known[rank] += steps * count
                self._left[rank] -= steps * count
        brought = steps * len(self._decoding)
        self._held += brought
        self._context += brought
        self.output_tokens += brought
        if self._feeding:
            self._feeding[0].fed += steps * CHUNK

    def next_s(self) -> float | None:
        """When the next prompt is computed, the next sequence ends or the pool is full; None if nothing runs."""
        if not self._running:
            return None
        steps = []
        if self._decoding:
            steps.append(self._decoding[0][0] - self._steps)
            if len(self._running) > 1:
                steps.append((self.kind.kv_tokens - self._held) / len(self._decoding))
        if self._feeding:
            steps.append((self._feeding[0].size - self._feeding[0].fed) / CHUNK)
        return self.now + max(0.0, min(steps)) * self._step_s()

    def take_events(self) -> tuple[list[Job], list[Job]]:
        """(whose prompt is computed, who has ended) by now. Who finds the pool full is preempted."""
        begun = [self._begin(self._feeding[0])] if self._is_fed() else []
        ended = []
        while self._decoding and self._decoding[0][0] <= self._steps + 1e-6:
            ended.append(self._end(heapq.heappop(self._decoding)[2]))
        while self._decoding and len(self._running) > 1 and self._held >= self.kind.kv_tokens - 1e-3:
            self.num_evicted += 1
            self._preempt(self._running[-1])
        if not self.num_seqs:
            self._empty()
        self._schedule()
        self.version += 1
        return begun, ended

    def lose_all(self) -> list[Job]:
        """The engine is gone: its jobs, each with the tokens that its readers have."""
        for _, _, sequence in self._decoding:
            self._note_output(sequence)
        lost = [each.job for each in sorted([*self._running, *self._waiting])]
        self._empty()
        self.version += 1
        return lost

    def _is_fed(self) -> bool:
        return bool(self._feeding) and self._feeding[0].fed >= self._feeding[0].size - 1e-3

    def _begin(self, sequence: _Sequence) -> Job:
        self._feeding.remove(sequence)
        job = sequence.job
        if not sequence.has_output:
            sequence.has_output = True
            self._fresh[sequence.rank] -= job.cost
        sequence.ends_at = self._steps + job.output - job.done
        heapq.heappush(self._decoding, (sequence.ends_at, sequence.order, sequence))
        self._num_decoding[sequence.rank] += 1
        self._context += sequence.size
        return job

    def _end(self, sequence: _Sequence) -> Job:
        job, rank = sequence.job, sequence.rank
        self._running.remove(sequence)
        self._num_seqs[rank] -= 1
        self._num_decoding[rank] -= 1
        self._held -= job.prompt + job.output
        self._context -= job.prompt + job.output
        self._known[rank] -= job.prompt + job.output
        self._left[rank] -= job.max_tokens - job.output
        self.output_ratio += _LEARN * (job.output / job.max_tokens - self.output_ratio)
        return job

    def _schedule(self) -> None:
        """Let in whom this step reaches: those before the first prompt that is being fed, or the first of its tier if there is none."""
        while self._waiting and (not self._feeding or self._waiting[0].rank < self._feeding[0].rank):
            if not self._admit(self._waiting[0]):
                return
            sequence = heapq.heappop(self._waiting)
            self._held += sequence.size
            insort(self._running, sequence)
            insort(self._feeding, sequence)

    def _admit(self, sequence: _Sequence) -> bool:
        """Make room at the cost of running ones of lower tiers if that suffices; else do nothing."""
        free, others = self.kind.kv_tokens - self._held, len(self._running)
        while others and (others >= self.kind.max_seqs or free < sequence.size + self.watermark):
            last = self._running[others - 1]
            if last.rank <= sequence.rank:
                return False
            others -= 1
            free += last.tokens(self._steps)
        for victim in reversed(self._running[others:]):
            self.num_displaced += 1
            self._preempt(victim)
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        """The last running one gives up its place and what was computed for it."""
        self._running.remove(sequence)
        tokens = sequence.tokens(self._steps)
        self._held -= tokens
        if sequence.ends_at == math.inf:
            self.lost_tokens += sequence.fed
            self._feeding.remove(sequence)
        else:
            self.lost_tokens += tokens
            self._context -= tokens
            self._decoding = [each for each in self._decoding if each[2] is not sequence]
            heapq.heapify(self._decoding)
            self._num_decoding[sequence.rank] -= 1
            self._note_output(sequence)
            sequence.ends_at = math.inf
            part = tokens - sequence.size  # of a token that isn't there yet
            self._known[sequence.rank] -= part
            self._left[sequence.rank] += part
        sequence.fed = 0.0
        heapq.heappush(self._waiting, sequence)

    def _note_output(self, sequence: _Sequence) -> None:
        job = sequence.job
        job.done = max(job.done, min(job.output - 1, int(job.output - (sequence.ends_at - self._steps) + 1e-6)))

    def _step_s(self) -> float:
        kind = self.kind
        step = kind.base_s + self._context * kind.kv_token_s + len(self._decoding) * _SEQUENCE_S
        return step + CHUNK * kind.prefill_token_s if self._feeding else step
