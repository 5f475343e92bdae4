"""Anything may arrive, go or run at any time: no block leaks, nobody is lost, and everyone finishes."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.engine.blocks import BlockPool
from workers.engine.protocol import SamplingParams
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import Sequence, SequenceState

BLOCK_SIZE = 4
NUM_BLOCKS = 12


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.scheduler = Scheduler(
            BlockPool(NUM_BLOCKS, BLOCK_SIZE), max_num_seqs=5, max_batch_tokens=9, watermark_ratio=0.1
        )
        self.alive: list[Sequence] = []
        self.num_arrived = 0

    @rule(
        prompt=st.integers(1, NUM_BLOCKS * BLOCK_SIZE - 1),
        max_tokens=st.integers(1, 30),
        priority=st.integers(0, 2),
        resumed=st.integers(0, 10),
    )
    def add(self, prompt, max_tokens, priority, resumed):
        sequence = Sequence(
            request_id="r",
            choice=0,
            priority=priority,
            arrival=self.num_arrived,
            sampling=SamplingParams(max_tokens=max_tokens),
            max_len=min(prompt + max_tokens, NUM_BLOCKS * BLOCK_SIZE),
            token_ids=[0] * prompt,
            num_prompt_tokens=prompt,
        )
        sequence.token_ids += [0] * min(resumed, sequence.num_remaining - 1)
        self.num_arrived += 1
        self.scheduler.add(sequence)
        self.alive.append(sequence)

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
        assert sum(chunk.count for chunk in plan.chunks) <= self.scheduler.max_batch_tokens
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
            sequence.num_computed += chunk.count
            if chunk.samples:
                sequence.token_ids.append(0)
                if sequence.num_remaining == 0:
                    self.scheduler.remove(sequence)
                    self.alive.remove(sequence)

    @invariant()
    def every_block_is_free_or_held_exactly_once(self):
        held = [block for sequence in self.alive for block in sequence.block_table]
        assert len(set(held)) == len(held) == self.scheduler.pool.num_used

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
