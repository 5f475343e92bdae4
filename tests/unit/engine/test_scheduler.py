"""Plans, step by step. No model and no torch: a step is played by advancing the chunks."""

import itertools
import subprocess
import sys

import pytest

from workers.engine.blocks import BlockPool
from workers.engine.protocol import Request, SamplingParams
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import Sequence, SequenceState, sequences_of

_arrivals = itertools.count()


def scheduler(num_blocks=100, block_size=4, max_num_seqs=8, max_batch_tokens=32, watermark_ratio=0.0, **more):
    return Scheduler(
        BlockPool(num_blocks, block_size),
        max_num_seqs=max_num_seqs,
        max_batch_tokens=max_batch_tokens,
        watermark_ratio=watermark_ratio,
        **more,
    )


def sequence(prompt=8, max_tokens=50, priority=0):
    """Whose tokens are like nobody else's."""
    arrival = next(_arrivals)
    return Sequence(
        request_id="r",
        choice=0,
        priority=priority,
        arrival=arrival,
        sampling=SamplingParams(max_tokens=max_tokens),
        max_len=prompt + max_tokens,
        token_ids=[arrival] * prompt,
        num_prompt_tokens=prompt,
    )


def choices(prompt, n=1, salt="", resume=(), max_tokens=20):
    """The sequences of a request with this prompt."""
    first, *_ = [next(_arrivals) for _ in range(n)]
    sampling = SamplingParams(max_tokens=max_tokens)
    request = Request(id="r", prompt_ids=prompt, sampling=sampling, n=n, cache_salt=salt, resume=list(resume))
    return sequences_of(request, first, 1000)


def add(target, *sequences):
    for each in sequences:
        target.add(each)
    return sequences


def step(target):
    """Play one step: {sequence: tokens fed}."""
    plan = target.plan()
    assert sum(chunk.count for chunk in plan.chunks) <= target.max_batch_tokens
    for chunk in plan.chunks:
        assert chunk.start == chunk.sequence.num_computed
        target.advance(chunk)
        assert len(chunk.sequence.block_table) * target.pool.block_size >= chunk.sequence.num_computed
        if chunk.samples:
            chunk.sequence.token_ids.append(2)
    return {chunk.sequence: chunk.count for chunk in plan.chunks}


def test_prefill_is_chunked_and_shares_the_batch_with_decoding():
    target = scheduler(max_batch_tokens=10)
    first, second = add(target, sequence(prompt=4), sequence(prompt=15))
    assert step(target) == {first: 4, second: 6}
    assert step(target) == {first: 1, second: 9}
    assert step(target) == {first: 1, second: 1}


def test_every_running_decode_gets_its_token_however_long_the_prompts_before_it():
    target = scheduler(max_batch_tokens=8, max_num_seqs=8)
    (low,) = add(target, sequence(prompt=2, priority=5))
    step(target)
    (high,) = add(target, sequence(prompt=30, priority=0))
    for _ in range(4):
        assert step(target) == {high: 7, low: 1}


def test_no_more_run_than_there_are_slots_and_order_is_by_arrival():
    target = scheduler(max_num_seqs=2)
    first, second, third = add(target, sequence(), sequence(), sequence())
    assert set(step(target)) == {first, second}
    target.remove(first)
    assert set(step(target)) == {second, third}


def test_higher_tiers_are_admitted_first():
    target = scheduler(max_num_seqs=1)
    _, high = add(target, sequence(priority=1), sequence(priority=0))
    assert set(step(target)) == {high}


def test_a_large_prompt_is_not_passed_by_a_small_one_behind_it():
    target = scheduler(num_blocks=20, max_batch_tokens=64)
    running, large, _small = add(
        target, sequence(prompt=40, max_tokens=4), sequence(prompt=60, max_tokens=4), sequence()
    )
    assert set(step(target)) == {running}
    assert set(step(target)) == {running}
    target.remove(running)
    assert large in step(target)


def test_nobody_of_a_lower_tier_slips_past_a_higher_tier_that_waits_for_blocks():
    target = scheduler(num_blocks=20, max_batch_tokens=64)
    (running,) = add(target, sequence(prompt=40, max_tokens=4, priority=0))
    step(target)
    add(target, sequence(prompt=60, max_tokens=4, priority=1), sequence(prompt=4, max_tokens=4, priority=2))
    assert set(step(target)) == {running}


def test_out_of_blocks_the_latest_of_the_lowest_tier_is_preempted_and_waits_at_the_head():
    target = scheduler(num_blocks=6, block_size=4)
    high, low, lower = add(
        target,
        sequence(prompt=8, max_tokens=12, priority=0),
        sequence(prompt=8, max_tokens=12, priority=1),
        sequence(prompt=8, max_tokens=12, priority=1),
    )
    (later,) = add(target, sequence(prompt=4, max_tokens=12, priority=1))
    assert set(step(target)) == {high, low, lower}
    assert set(step(target)) == {high, low}  # each needs a third block: lower's two
    assert lower.state is SequenceState.WAITING
    assert (lower.num_computed, lower.block_table, lower.num_preemptions) == (0, [], 1)
    assert list(target.waiting) == [lower, later]
    assert target.num_preemptions == 1


def test_a_preempted_sequence_is_computed_again_with_all_of_its_tokens():
    target = scheduler(num_blocks=6, block_size=4)
    first, second, third = add(target, *(sequence(prompt=8, max_tokens=12) for _ in range(3)))
    step(target)
    step(target)
    target.remove(first)
    assert step(target) == {second: 1, third: 9}


def test_the_only_sequence_that_needs_a_block_may_be_the_victim_itself():
    target = scheduler(num_blocks=5, block_size=4)
    first, second = add(target, sequence(prompt=9, max_tokens=8), sequence(prompt=8, max_tokens=8))
    assert set(step(target)) == {first, second}
    assert set(step(target)) == {first}
    assert second.state is SequenceState.WAITING


def test_a_waiting_sequence_preempts_a_running_one_of_a_lower_tier_for_a_slot():
    target = scheduler(max_num_seqs=2)
    first, second = add(target, sequence(priority=1), sequence(priority=1))
    step(target)
    (high,) = add(target, sequence(priority=0))
    assert set(step(target)) == {high, first}
    assert second.state is SequenceState.WAITING


def test_who_was_preempted_and_who_came_back_is_told_once_in_order():
    target = scheduler(max_num_seqs=2)
    first, second = add(target, sequence(priority=1), sequence(priority=1))
    step(target)
    assert target.take_moves() == []
    (high,) = add(target, sequence(priority=0))
    step(target)
    target.remove(first)
    step(target)
    assert [(each.sequence, each.is_back) for each in target.take_moves()] == [(second, False), (second, True)]
    assert target.take_moves() == []
    assert high.num_preemptions == 0


def test_a_waiting_sequence_preempts_running_ones_of_a_lower_tier_for_blocks():
    target = scheduler(num_blocks=10, max_batch_tokens=64)
    first, second = add(target, *(sequence(prompt=16, max_tokens=8, priority=2) for _ in range(2)))
    step(target)
    (high,) = add(target, sequence(prompt=20, max_tokens=8, priority=1))
    assert set(step(target)) == {high, first}
    assert list(target.waiting) == [second]


def test_it_never_preempts_its_own_tier():
    target = scheduler(max_num_seqs=1)
    first, _ = add(target, sequence(priority=1), sequence(priority=1))
    for _ in range(5):
        assert set(step(target)) == {first}
    assert target.num_preemptions == 0


def test_it_preempts_nobody_if_that_does_not_suffice():
    target = scheduler(num_blocks=20, max_batch_tokens=64)
    high, low = add(target, sequence(prompt=48, max_tokens=8, priority=0), sequence(prompt=8, max_tokens=8, priority=1))
    step(target)
    add(target, sequence(prompt=60, max_tokens=8, priority=0))
    assert set(step(target)) == {high, low}
    assert target.num_preemptions == 0


def test_admission_leaves_the_watermark_free_but_not_for_nobody():
    target = scheduler(num_blocks=10, watermark_ratio=0.2, max_batch_tokens=64)
    first, second = add(target, sequence(prompt=16, max_tokens=4), sequence(prompt=20, max_tokens=4))
    assert set(step(target)) == {first}  # 4 + 5 blocks fit 10, but not with 2 to spare
    target.remove(first)
    assert set(step(target)) == {second}
    target.remove(second)
    (whole,) = add(target, sequence(prompt=39, max_tokens=1))
    assert set(step(target)) == {whole}


def test_the_plan_tells_once_who_left():
    target = scheduler()
    first, second = add(target, sequence(), sequence())
    step(target)
    target.remove(first)
    target.remove(first)
    assert target.plan().left == [first.arrival]
    assert target.plan().left == []
    target.remove(second)
    assert not target.has_work()
    assert target.pool.num_used == 0


def test_a_waiting_sequence_can_be_removed():
    target = scheduler(max_num_seqs=1)
    _, second, third = add(target, sequence(), sequence(), sequence())
    step(target)
    target.remove(second)
    assert list(target.waiting) == [third]
    assert target.num_waiting == 1


def test_a_prompt_that_is_known_is_not_computed_again_but_for_its_last_token():
    target = scheduler()
    prompt = list(range(12))
    (first,) = add(target, *choices(prompt))
    step(target)
    target.remove(first)
    whole, longer, other = add(target, *choices(prompt), *choices([*prompt, 1, 2]), *choices([99, *prompt[1:]]))
    assert step(target) == {whole: 4, longer: 2, other: 12}
    assert [each.num_cached_tokens for each in (whole, longer, other)] == [8, 12, 0]
    assert whole.block_table[:2] == longer.block_table[:2]


@pytest.mark.parametrize(("salt", "prefix_cache"), [("another tenant", True), ("", False)])
def test_no_block_is_found_under_another_salt_or_with_the_cache_switched_off(salt, prefix_cache):
    target = scheduler(prefix_cache=prefix_cache)
    (first,) = add(target, *choices([1] * 20))
    step(target)
    (second,) = add(target, *choices([1] * 20, salt=salt))
    assert step(target) == {first: 1, second: 20}


def test_a_preempted_sequence_finds_its_own_blocks_again():
    target = scheduler(num_blocks=7, block_size=4)
    first, second, third = add(target, *(sequence(prompt=8, max_tokens=12) for _ in range(3)))
    step(target)
    assert set(step(target)) == {first, second}  # one of third's blocks was needed for something else: its tail
    target.remove(first)
    assert step(target) == {second: 1, third: 5}


def test_the_tail_of_a_prompt_goes_before_its_head():
    target = scheduler(num_blocks=6)
    prompt = list(range(16))
    (first,) = add(target, *choices(prompt, max_tokens=1))
    step(target)
    target.remove(first)  # 4 full blocks, 2 blank ones
    (other,) = add(target, *choices([50] * 13, max_tokens=1))
    step(target)
    target.remove(other)
    (again,) = add(target, *choices(prompt, max_tokens=1))
    step(target)
    assert again.num_cached_tokens == 8


def test_choices_share_their_prompt_which_is_computed_once():
    target = scheduler()
    prompt = list(range(10))
    leader, second, third = add(target, *choices(prompt, n=3))
    assert step(target) == {leader: 10}
    plan = target.plan()
    assert [chunk.count for chunk in plan.chunks] == [1, 1, 1]
    assert [chunk.start for chunk in plan.chunks] == [10, 9, 9]
    # Three write into the third block: two get a copy, the last keeps it.
    assert [copy.source for copy in plan.copies] == [third.block_table[2]] * 2
    assert [copy.target for copy in plan.copies] == [leader.block_table[2], second.block_table[2]]
    assert leader.block_table[:2] == second.block_table[:2] == third.block_table[:2]
    assert target.pool.num_used == 5
    assert [each.num_cached_tokens for each in (leader, second, third)] == [0, 0, 0]


def test_choices_that_were_resumed_share_their_prompt_too():
    target = scheduler()
    leader, second = add(target, *choices(list(range(10)), n=2, resume=[[1, 2], [3, 4, 5]]))
    assert step(target) == {leader: 12}
    assert step(target) == {leader: 1, second: 3}


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_if_the_choice_that_computes_the_prompt_is_cancelled_the_next_one_goes_on(prefix_cache):
    target = scheduler(max_batch_tokens=8, prefix_cache=prefix_cache)
    leader, second, third = add(target, *choices(list(range(20)), n=3))
    assert step(target) == {leader: 8}
    target.remove(leader)
    assert step(target) == {second: 8}
    for _ in range(2):
        step(target)
    assert step(target) == {second: 1, third: 1}


def test_a_choice_that_is_admitted_later_shares_the_prompt_of_one_that_runs():
    target = scheduler(max_num_seqs=2, prefix_cache=False)
    first, second, third = add(target, *choices(list(range(10)), n=3))
    step(target)
    step(target)
    target.remove(second)
    assert step(target) == {first: 1, third: 1}


def test_a_block_that_is_about_to_be_written_is_found_no_more():
    """A choice was given the prompt's blocks; who computed them has left, so that nothing needs to be copied."""
    target = scheduler(num_blocks=8)
    first, second = add(target, *choices([1, 2, 3, 4, 5, 6, 7, 8], n=2))
    assert step(target) == {first: 8}
    last = second.block_table[1]
    assert target.pool.is_published(last)
    target.remove(first)
    plan = target.plan()
    assert [(chunk.sequence, chunk.start, chunk.count) for chunk in plan.chunks] == [(second, 7, 1)]
    assert (second.block_table[1], plan.copies) == (last, [])
    assert not target.pool.is_published(last)


def test_scheduling_needs_no_torch():
    code = (
        "import sys, workers.engine.scheduler, workers.engine.null, workers.engine.process, workers.engine.detokenize\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_engine_without_a_model_loads_no_numpy():
    code = (
        "import sys, workers.engine.child, workers.engine.load, workers.engine.null; sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
