"""Anything may arrive, go or run at any time: no block leaks, nobody is lost, everyone finishes, and nobody reads a page
that holds another text."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.pages import PageOracle
from workers.engine.blocks import BlockPool
from workers.engine.protocol import Request, SamplingParams
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import Sequence, SequenceState, sequences_of
from workers.engine.speculate import Speculator

BLOCK_SIZE = 4
NUM_BLOCKS = 12
MAX_LEN = BLOCK_SIZE * NUM_BLOCKS


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(prefix_cache=st.booleans(), speculative_tokens=st.sampled_from([0, 5]))
    def start(self, prefix_cache, speculative_tokens):
        pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
        self.scheduler = Scheduler(
            pool,
            max_num_seqs=5,
            max_batch_tokens=9,
            watermark_ratio=0.1,
            prefix_cache=prefix_cache,
            speculator=Speculator(speculative_tokens) if speculative_tokens else None,
        )
        self.oracle = PageOracle(pool)
        self.alive: list[Sequence] = []
        self.num_arrived = 0

    @rule(
        prompt=st.integers(1, MAX_LEN - 1),
        own=st.integers(0, 8),
        text=st.integers(0, 1),
        salt=st.sampled_from(["", "a"]),
        max_tokens=st.integers(1, 30),
        priority=st.integers(0, 2),
        resumed=st.lists(st.integers(0, 10), max_size=3),
        n=st.integers(1, 3),
    )
    def add(self, prompt, own, text, salt, max_tokens, priority, resumed, n):
        """A prompt is the beginning of one of two texts, with up to eight tokens of its own at its end."""
        room = min(max_tokens, MAX_LEN - prompt) - 1
        shared = [text + 1 + (place % 7) for place in range(max(0, prompt - own))]
        request = Request(
            id=str(self.num_arrived),
            prompt_ids=[*shared, *[10 + self.num_arrived] * (prompt - len(shared))],
            sampling=SamplingParams(max_tokens=max_tokens, seed=text, ignore_eos=True),
            n=n,
            priority=priority,
            cache_salt=salt,
            resume=[list(range(20, 20 + min(count, room))) for count in resumed[:n]],
        )
        for sequence in sequences_of(request, self.num_arrived, MAX_LEN):
            self.scheduler.add(sequence)
            self.alive.append(sequence)
        self.num_arrived += n

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def abort(self, data):
        sequence = data.draw(st.sampled_from(self.alive))
        self.scheduler.remove(sequence)
        self.alive.remove(sequence)

    @rule(times=st.integers(1, 5))
    def run(self, times):
        for _ in range(times):
            self.step()

    def step(self):
        running_before = list(self.scheduler.running)
        plan = self.scheduler.plan()
        assert bool(plan.chunks) == bool(self.alive), "where there is work, some of it is done"
        assert sum(chunk.num_fed for chunk in plan.chunks) <= self.scheduler.max_batch_tokens
        fed = [chunk.sequence for chunk in plan.chunks]
        assert len(set(map(id, fed))) == len(fed)
        # The first in the order is always served.
        first = min(self.alive, key=lambda sequence: sequence.order, default=None)
        assert first is None or first in fed
        # Whoever was preempted stands behind everyone who runs: victims come from the end of the order.
        preempted = [sequence for sequence in running_before if sequence.state is SequenceState.WAITING]
        if preempted and self.scheduler.running:
            assert min(s.order for s in preempted) > max(
                s.order for s in self.scheduler.running if s in running_before or s.priority < preempted[0].priority
            )
        for chunk in plan.chunks:
            sequence = chunk.sequence
            assert sequence.state is SequenceState.RUNNING
            assert chunk.start == sequence.num_computed
            assert 1 <= chunk.count <= sequence.num_pending
            assert chunk.samples == (chunk.count == sequence.num_pending)
        results = iter(self.oracle.run(plan))
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if not chunk.samples:
                self.scheduler.advance(chunk)
            else:
                chosen = [next(results).token_id for _ in range(1 + len(chunk.guess))]
                pairs = zip(chosen, chunk.guess, strict=False)
                num_right = next((i for i, (a, b) in enumerate(pairs) if a != b), len(chunk.guess))
                sequence.token_ids += chosen[: num_right + 1]
                self.scheduler.advance(chunk, num_right)
                if sequence.num_remaining == 0:
                    self.scheduler.remove(sequence)
                    self.alive.remove(sequence)

    @invariant()
    def every_block_is_free_or_held_and_counts_its_holders(self):
        pool = self.scheduler.pool
        held = Counter(block for sequence in self.alive for block in sequence.block_table)
        assert [pool.ref_count(block) for block in range(NUM_BLOCKS)] == [held[block] for block in range(NUM_BLOCKS)]
        assert len(held) == pool.num_used
        assert pool.num_cached == sum(pool.is_published(b) for b in range(NUM_BLOCKS) if not held[b])
        for sequence in self.alive:
            assert len(set(sequence.block_table)) == len(sequence.block_table)

    @invariant()
    def nobody_is_lost_and_nobody_is_there_twice(self):
        known = [*self.scheduler.running, *self.scheduler.waiting]
        assert sorted(map(id, known)) == sorted(map(id, self.alive))
        assert len(self.scheduler.running) <= self.scheduler.max_num_seqs
        orders = [sequence.order for sequence in self.scheduler.running]
        assert orders == sorted(orders)
        waiting = [sequence.order for sequence in self.scheduler.waiting]
        assert waiting == sorted(waiting)

    @invariant()
    def blocks_cover_what_is_computed_and_the_waiting_hold_none(self):
        for sequence in self.scheduler.running:
            assert len(sequence.block_table) * BLOCK_SIZE >= sequence.num_computed
            assert sequence.num_pending >= 1
        for sequence in self.scheduler.waiting:
            assert (sequence.block_table, sequence.num_computed) == ([], 0)

    def teardown(self):
        if not hasattr(self, "alive"):
            return
        tokens = sum(sequence.max_len for sequence in self.alive)
        for _ in range(10 * tokens + 10):
            if not self.alive:
                break
            self.step()
        assert not self.alive, "under fair stepping everyone finishes"
        assert self.scheduler.pool.num_used == 0
        assert not self.scheduler.has_work()


SchedulerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase
