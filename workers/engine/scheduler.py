"""Which sequences run in the next step, with how many tokens each?

There are no phases. A sequence has tokens that are computed and tokens that are pending; a step feeds pending tokens
under a token budget, so decoding (one pending token) and chunked prefill (many) share a batch.

One pass over one order, tier then arrival, decides everything; within a tier the running come before the waiting.
Blocks are taken away from the end of that same order, so a victim always stands behind the sequence that it makes room
for, and nothing that was planned is ever taken back:

- A running sequence that lacks a block preempts the last running one, which may be itself. The victim gives up its
  blocks, waits at the head of its tier, and is computed again later.
- A waiting sequence preempts only running ones of a lower tier, never of its own (no ping-pong), and only if that
  suffices. While it can't come in, nobody behind it does: large prompts don't starve.
- Admission takes the blocks of all tokens known so far and leaves a watermark of blocks free, so that those who run can
  grow for a while before someone is preempted.
"""

import math
from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from workers.engine.blocks import BlockPool
from workers.engine.sequence import Sequence, SequenceState


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `start + count` of a sequence, to be fed in this step."""

    sequence: Sequence
    start: int
    count: int
    samples: bool  # whether they are its last pending ones, so that the next token can be chosen


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's work. No chunks: nothing to do."""

    chunks: list[Chunk]
    left: list[int]  # arrivals of the sequences that left since the last plan: forget what was kept for them


class Scheduler:
    """Holds every sequence in the engine, and the block pool. Not thread-safe."""

    def __init__(
        self, pool: BlockPool, *, max_num_seqs: int, max_batch_tokens: int, watermark_ratio: float = 0.01
    ) -> None:
        if max_batch_tokens < max_num_seqs:
            raise ValueError("max_batch_tokens must be at least max_num_seqs")
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_batch_tokens = max_batch_tokens
        self.watermark = math.ceil(pool.num_blocks * watermark_ratio)  # blocks
        self.num_preemptions = 0
        self._running: list[Sequence] = []  # by order
        self._waiting: dict[int, deque[Sequence]] = {}  # tier -> by arrival, since the preempted go to the head
        self._left: list[int] = []

    @property
    def running(self) -> list[Sequence]:
        """The sequences in the batch, in order. Not yours to change."""
        return self._running

    @property
    def waiting(self) -> Iterator[Sequence]:
        """The sequences that aren't in the batch, in order."""
        for tier in sorted(self._waiting):
            yield from self._waiting[tier]

    @property
    def num_waiting(self) -> int:
        """How many sequences wait."""
        return sum(map(len, self._waiting.values()))

    def has_work(self) -> bool:
        """Whether there is a sequence at all."""
        return bool(self._running) or any(self._waiting.values())

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn. Alone in the pool, it must fit: the caller has checked that."""
        assert sequence.state is SequenceState.WAITING
        assert self.pool.blocks_for(sequence.max_len) <= self.pool.num_blocks
        self._waiting.setdefault(sequence.priority, deque()).append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence go, finished or aborted, and free its blocks. Does nothing if it has left already."""
        if sequence.state is SequenceState.LEFT:
            return
        if sequence.state is SequenceState.RUNNING:
            self._running.remove(sequence)
        else:
            self._waiting[sequence.priority].remove(sequence)
        self._free_blocks(sequence)
        sequence.state = SequenceState.LEFT
        self._left.append(sequence.arrival)

    def plan(self) -> StepPlan:
        """Decide the next step: admit, preempt, take blocks. After feeding a chunk, advance its `num_computed`."""
        chunks: list[Chunk] = []
        budget = self.max_batch_tokens
        # Every running decode gets its token; prefill shares what they leave. Victims make this an overestimate.
        reserved = sum(sequence.num_pending == 1 for sequence in self._running)
        admitting = True
        for tier in self._tiers():
            for sequence in [sequence for sequence in self._running if sequence.priority == tier]:
                reserved -= sequence.num_pending == 1
                count = min(sequence.num_pending, budget - reserved)
                if count > 0 and sequence.state is SequenceState.RUNNING and self._grow(sequence, count):
                    budget -= count
                    chunks.append(_chunk(sequence, count))
            queue = self._waiting.get(tier)
            while admitting and queue:
                admitting = budget > reserved and self._admit(queue[0])
                if admitting:
                    sequence = queue.popleft()
                    count = min(sequence.num_pending, budget - reserved)
                    budget -= count
                    chunks.append(_chunk(sequence, count))
        left, self._left = self._left, []
        return StepPlan(chunks, left)

    def _tiers(self) -> list[int]:
        self._waiting = {tier: queue for tier, queue in self._waiting.items() if queue}
        return sorted({*self._waiting, *(sequence.priority for sequence in self._running)})

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Take the blocks for `count` more tokens, at the cost of the last in the order; False if it was the last."""
        missing = self.pool.blocks_for(sequence.num_computed + count) - len(sequence.block_table)
        while missing > self.pool.num_free:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        if missing > 0:
            sequence.block_table += self.pool.allocate(missing)
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Let a waiting sequence run, at the cost of running ones of lower tiers if that suffices; else do nothing."""
        need = self.pool.blocks_for(len(sequence.token_ids))
        free, others = self.pool.num_free, len(self._running)
        # The watermark is for those who run. With none of them it would only keep a large prompt out forever.
        while others >= self.max_num_seqs or free < need + (self.watermark if others else 0):
            if others == 0 or self._running[others - 1].priority <= sequence.priority:
                return False
            victim = self._running[others - 1]
            others -= 1
            free += sum(self.pool.ref_count(block) == 1 for block in victim.block_table)
        for victim in reversed(self._running[others:]):
            self._preempt(victim)
        sequence.block_table += self.pool.allocate(need)
        sequence.state = SequenceState.RUNNING
        insort(self._running, sequence, key=lambda other: other.order)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        assert sequence is self._running[-1]
        self._running.pop()
        self._free_blocks(sequence)
        sequence.num_computed = 0
        sequence.state = SequenceState.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.setdefault(sequence.priority, deque()).appendleft(sequence)

    def _free_blocks(self, sequence: Sequence) -> None:
        # Reversed, so that the tail, the part least likely to be shared, is reused first.
        self.pool.release(reversed(sequence.block_table))
        sequence.block_table = []


def _chunk(sequence: Sequence, count: int) -> Chunk:
    return Chunk(sequence, sequence.num_computed, count, samples=count == sequence.num_pending)
