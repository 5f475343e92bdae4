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
- What a waiting sequence needs of its tokens' keys and values may be in the pool already: in blocks that an earlier
  request left there (the prefix cache), in its own, after a preemption, or in those of a sibling, which has the same
  prompt. Siblings run beside the first of them without being fed until that one has computed the prompt.
- No block is written while somebody else holds it: who writes first gets a copy.
"""

import math
from bisect import insort
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from workers.engine import multistep
from workers.engine.blocks import BlockPool, block_key, salt_key
from workers.engine.sequence import Sequence, SequenceState
from workers.engine.speculate import Speculator

_MOST_MOVES = 1000  # that are kept for who asks; the oldest go


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `start + count` of a sequence, to be fed in this step."""

    sequence: Sequence
    start: int
    count: int
    samples: bool  # whether they are its last pending ones, so that the next token can be chosen
    guess: list[int] = field(default_factory=list)  # tokens that may follow: fed too, and a token chosen after each

    @property
    def num_fed(self) -> int:
        """Tokens, the guessed ones included."""
        return self.count + len(self.guess)


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """The keys and values of a whole block, in all layers, from one block to another."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's work. No chunks: nothing to do."""

    chunks: list[Chunk]
    left: list[int]  # arrivals of the sequences that left since the last plan: forget what was kept for them
    copies: list[BlockCopy] = field(default_factory=list)  # to be made in this order, before anything is fed
    num_steps: int = 1  # tokens that each chunk generates in a row; more than 1 only if all of them decode


@dataclass(frozen=True, slots=True)
class Move:
    """A sequence was preempted, or came back after it."""

    sequence: Sequence
    is_back: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """Blocks that hold the first `num_tokens` of a sequence's tokens; the last one may be shared in part."""

    blocks: list[int]
    num_tokens: int


class Scheduler:
    """Holds every sequence in the engine, and the block pool. Not thread-safe."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_batch_tokens: int,
        watermark_ratio: float = 0.01,
        prefix_cache: bool = True,
        speculator: Speculator | None = None,
    ) -> None:
        if max_batch_tokens < max_num_seqs:
            raise ValueError("max_batch_tokens must be at least max_num_seqs")
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_batch_tokens = max_batch_tokens
        self.watermark = math.ceil(pool.num_blocks * watermark_ratio)  # blocks
        self.num_preemptions = 0
        self._prefix_cache = prefix_cache
        self._speculator = speculator
        self._running: list[Sequence] = []  # by order
        self._waiting: dict[int, deque[Sequence]] = {}  # tier -> by arrival, since the preempted go to the head
        self._left: list[int] = []
        self._copies: list[BlockCopy] = []  # of the plan that is being made
        self._moves: deque[Move] = deque(maxlen=_MOST_MOVES)

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
        if self._speculator is not None:
            self._speculator.forget(sequence.arrival)

    def limit(self, max_num_seqs: int, max_batch_tokens: int) -> None:
        """Plan at most so much from now on; running sequences beyond that are preempted, from the end of the order."""
        self.max_num_seqs = max_num_seqs
        self.max_batch_tokens = max_batch_tokens
        while len(self._running) > max_num_seqs:
            self._preempt(self._running[-1])

    def plan(self, most_steps: int = 1) -> StepPlan:
        """Decide the next step: admit, preempt, take blocks. Once it was run, `advance` each of its chunks.

        Where all sequences decode it may be up to `most_steps` steps at once (see `multistep`).
        """
        chunks: list[Chunk] = []
        budget = self.max_batch_tokens
        # Every running decode gets its token; prefill shares what they leave. Victims make this an overestimate.
        reserved = sum(sequence.num_pending == 1 for sequence in self._running)
        admitting = True
        for tier in self._tiers():
            for sequence in [sequence for sequence in self._running if sequence.priority == tier]:
                reserved -= sequence.num_pending == 1
                chunk = self._feed(sequence, budget - reserved)
                if chunk is not None:
                    budget -= chunk.num_fed
                    chunks.append(chunk)
            queue = self._waiting.get(tier)
            while admitting and queue:
                admitting = budget > reserved and self._admit(queue[0])
                if admitting:
                    chunk = self._feed(queue.popleft(), budget - reserved)
                    if chunk is not None:
                        budget -= chunk.num_fed
                        chunks.append(chunk)
        num_steps = self._reserve(chunks, most_steps)
        left, self._left = self._left, []
        copies, self._copies = self._copies, []
        return StepPlan(chunks, left, copies, num_steps)

    def advance(self, chunk: Chunk, num_right: int = 0) -> None:
        """A chunk was fed, and so many of its guessed tokens were right and are the sequence's now.

        Its full blocks can be found from now on, and siblings share its prompt.
        """
        sequence = chunk.sequence
        size = self.pool.block_size
        end = chunk.start + chunk.count + num_right
        sequence.num_computed = end
        if chunk.guess and self._speculator is not None:
            self._speculator.learn(sequence, len(chunk.guess), num_right)
        if self._prefix_cache and end // size > chunk.start // size:
            keys = _keys_of(sequence, end // size, size)
            for place in range(chunk.start // size, end // size):
                self.pool.publish(sequence.block_table[place], keys[place])
        if sequence.siblings and chunk.start < sequence.num_prompt_tokens <= end:
            for sibling in sequence.siblings:
                if sibling.state is SequenceState.RUNNING and not sibling.block_table:
                    self._attach(sibling, self._find(sibling))

    def _tiers(self) -> list[int]:
        self._waiting = {tier: queue for tier, queue in self._waiting.items() if queue}
        return sorted({*self._waiting, *(sequence.priority for sequence in self._running)})

    def _feed(self, sequence: Sequence, room: int) -> Chunk | None:
        """A chunk of a running sequence, of at most `room` tokens, or None if it gets none in this step."""
        if room <= 0 or sequence.state is not SequenceState.RUNNING or _leader_of(sequence) is not None:
            return None
        if not sequence.block_table:  # whom it followed has left
            self._attach(sequence, self._find(sequence))
        count = min(sequence.num_pending, room)
        if not self._grow(sequence, count):
            return None
        samples = count == sequence.num_pending
        guess = self._guess(sequence, room - 1) if samples and count == 1 and self._speculator is not None else []
        return Chunk(sequence, sequence.num_computed, count, samples, guess)

    def _guess(self, sequence: Sequence, room: int) -> list[int]:
        """Tokens to try after the pending one, and blocks for them, as far as nobody is preempted for that."""
        assert self._speculator is not None
        pool, table = self.pool, sequence.block_table
        spare = max(0, pool.num_free - self.watermark)
        room = min(
            room,
            sequence.num_remaining - 1,
            (len(table) + spare) * pool.block_size - len(sequence.token_ids),
        )
        guess = self._speculator.guess(sequence, room)
        missing = pool.blocks_for(len(sequence.token_ids) + len(guess)) - len(table)
        if missing > 0:
            table += pool.allocate(missing)
        return guess

    def _reserve(self, chunks: list[Chunk], most_steps: int) -> int:
        """How many steps may go in a row; blocks for them are taken, as far as nobody is preempted for that."""
        pool = self.pool
        waits = any(self._waiting.values())
        steps = multistep.num_steps(chunks, len(self._running), most_steps, someone_waits=waits)
        while steps > 1:
            missing = [
                pool.blocks_for(chunk.start + min(steps, chunk.sequence.num_remaining))
                - len(chunk.sequence.block_table)
                for chunk in chunks
            ]
            if sum(count for count in missing if count > 0) <= pool.num_free - self.watermark:
                for chunk, count in zip(chunks, missing, strict=True):
                    if count > 0:
                        chunk.sequence.block_table += pool.allocate(count)
                break
            steps //= 2
        return steps

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Take what the next `count` tokens are written to, at the cost of the last in the order; False if it was the last."""
        pool, table = self.pool, sequence.block_table
        missing = pool.blocks_for(sequence.num_computed + count) - len(table)
        place = sequence.num_computed // pool.block_size  # only the block that is written first can be a shared one
        while missing + (is_shared := place < len(table) and pool.ref_count(table[place]) > 1) > pool.num_free:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        if is_shared:
            source, (target,) = table[place], pool.allocate(1)
            self._copies.append(BlockCopy(source, target))
            pool.release([source])
            table[place] = target
        elif place < len(table):
            pool.unpublish(table[place])
        if missing > 0:
            table += pool.allocate(missing)
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Let a waiting sequence run, at the cost of running ones of lower tiers if that suffices; else do nothing."""
        pool = self.pool
        need = pool.blocks_for(len(sequence.token_ids))
        leader = _leader_of(sequence)
        if leader is None:
            found = self._find(sequence)
            need -= sum(pool.ref_count(block) > 0 for block in found.blocks)
            need += found.num_tokens % pool.block_size > 0  # the copy
        else:
            found = _Found([], 0)
            need -= sequence.num_prompt_tokens // pool.block_size  # what the leader will share
        free, others = pool.num_free, len(self._running)
        given_up: Counter[int] = Counter()
        # The watermark is for those who run. With none of them it would only keep a large prompt out forever.
        while others >= self.max_num_seqs or free < need + (self.watermark if others else 0):
            if others == 0 or self._running[others - 1].priority <= sequence.priority:
                return False
            others -= 1
            for block in self._running[others].block_table:
                given_up[block] += 1
                if given_up[block] == pool.ref_count(block):
                    free += 1
                    need += block in found.blocks
        for victim in reversed(self._running[others:]):
            self._preempt(victim)
        if leader is None:
            self._attach(sequence, found)
            missing = pool.blocks_for(len(sequence.token_ids)) - len(sequence.block_table)
            sequence.block_table += pool.allocate(missing)
        if sequence.num_preemptions:
            self._moves.append(Move(sequence, is_back=True))
        sequence.state = SequenceState.RUNNING
        insort(self._running, sequence, key=lambda other: other.order)
        return True

    def _find(self, sequence: Sequence) -> _Found:
        """What the pool has of a sequence's tokens. Never the last token: its logits are wanted, so it must be fed."""
        pool = self.pool
        known = len(sequence.token_ids) - 1
        blocks: list[int] = []
        if self._prefix_cache:
            count = known // pool.block_size
            blocks = pool.find(_keys_of(sequence, count, pool.block_size)[:count])
        found = _Found(blocks, len(blocks) * pool.block_size)
        shared = min(sequence.num_prompt_tokens, known)
        if shared > found.num_tokens:
            for sibling in sequence.siblings:
                if sibling.state is SequenceState.RUNNING and sibling.num_computed >= sequence.num_prompt_tokens:
                    return _Found(sibling.block_table[: pool.blocks_for(shared)], shared)
        return found

    def _attach(self, sequence: Sequence, found: _Found) -> None:
        """Hold what was found."""
        self.pool.share(found.blocks)
        sequence.block_table = found.blocks
        sequence.num_computed = found.num_tokens
        if sequence.num_cached_tokens is None:
            # What siblings computed for each other wasn't there before their request: they all report the same.
            known = (sibling.num_cached_tokens for sibling in sequence.siblings)
            hit = min(found.num_tokens, sequence.num_prompt_tokens)
            sequence.num_cached_tokens = next((number for number in known if number is not None), hit)

    def take_moves(self) -> list[Move]:
        """Who was preempted since the last call, and who came back after that, in order."""
        moves = list(self._moves)
        self._moves.clear()
        return moves

    def _preempt(self, sequence: Sequence) -> None:
        assert sequence is self._running[-1]
        self._running.pop()
        self._free_blocks(sequence)
        sequence.num_computed = 0
        sequence.state = SequenceState.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self._moves.append(Move(sequence, is_back=False))
        self._waiting.setdefault(sequence.priority, deque()).appendleft(sequence)

    def _free_blocks(self, sequence: Sequence) -> None:
        # Reversed, so that the tail, the part least likely to be shared, is reused first.
        self.pool.release(reversed(sequence.block_table))
        sequence.block_table = []


def _leader_of(sequence: Sequence) -> Sequence | None:
    """The sibling that computes the prompt which a sequence without blocks is waiting for."""
    if sequence.block_table:
        return None
    for sibling in sequence.siblings:
        if sibling is sequence:
            return None
        if sibling.state is SequenceState.RUNNING and sibling.num_computed < sequence.num_prompt_tokens:
            return sibling
    return None


def _keys_of(sequence: Sequence, count: int, block_size: int) -> list[bytes]:
    """The keys of a sequence's full blocks, at least `count` of them."""
    keys = sequence.block_keys
    for place in range(len(keys), count):
        parent = keys[-1] if keys else salt_key(sequence.cache_salt)
        keys.append(block_key(parent, sequence.token_ids[place * block_size : (place + 1) * block_size]))
    return keys
