"""Several steps between two looks of the host: how many, and in batches of which sizes."""

import numpy as np
import pytest

from workers.engine.blocks import BlockPool
from workers.engine.multistep import batch_sizes, fitting_size, needs_host, num_steps
from workers.engine.noise import row_key
from workers.engine.noise_rows import row_keys
from workers.engine.protocol import Grammar, SamplingParams
from workers.engine.scheduler import Chunk, Scheduler
from workers.engine.sequence import Sequence


def sequence(remaining=20, prompt=4, arrival=0, **sampling):
    params = SamplingParams(**({"max_tokens": remaining} | sampling))
    return Sequence(
        request_id="r",
        choice=0,
        priority=0,
        arrival=arrival,
        sampling=params,
        max_len=prompt + remaining,
        token_ids=[arrival + 1] * prompt,
        num_prompt_tokens=prompt,
    )


def decoding(**more):
    return Chunk(sequence(**more), 3, 1, samples=True)


def test_all_that_decode_go_as_far_as_the_longest_of_them():
    chunks = [decoding(remaining=2), decoding(remaining=7)]
    assert num_steps(chunks, 2, 16, someone_waits=False) == 7
    assert num_steps(chunks, 2, 4, someone_waits=False) == 4
    assert num_steps(chunks, 2, 1, someone_waits=False) == 1


def test_while_someone_waits_they_go_to_the_first_end_that_is_known():
    assert num_steps([decoding(remaining=2), decoding(remaining=7)], 2, 16, someone_waits=True) == 2


@pytest.mark.parametrize(
    "other",
    [
        Chunk(sequence(), 0, 3, samples=False),
        Chunk(sequence(), 0, 4, samples=True),
        Chunk(sequence(), 3, 1, samples=True, guess=[5]),
        decoding(logprobs=0),
    ],
    ids=["prefill", "prompt's end", "guess", "logprobs"],
)
def test_one_that_does_something_else_keeps_all_to_single_steps(other):
    assert num_steps([decoding(), other], 2, 8, someone_waits=False) == 1


def test_one_that_runs_and_is_not_fed_keeps_all_to_single_steps():
    assert num_steps([decoding()], 2, 8, someone_waits=False) == 1
    assert num_steps([], 0, 8, someone_waits=False) == 1


@pytest.mark.parametrize(
    "sampling",
    [
        {"grammar": Grammar("regex", "a")},
        {"logit_bias": {1: 2.0}},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"repetition_penalty": 1.1},
        {"logprobs": 0},
        {"min_tokens": 1},
    ],
    ids=str,
)
def test_who_needs_the_host(sampling):
    assert needs_host(sequence(**sampling))


def test_who_does_not():
    assert not needs_host(sequence(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, stop_repeating=3, ignore_eos=True))
    after = sequence(min_tokens=1)
    after.token_ids.append(1)
    assert not needs_host(after)


def test_batch_sizes_are_few_and_no_batch_is_filled_up_far():
    assert batch_sizes(1) == [1]
    assert batch_sizes(6) == [1, 2, 4, 6]
    assert batch_sizes(32) == [1, 2, 4, 8, 16, 24, 32]
    for most in (64, 200, 256, 1000, 4096):
        sizes = batch_sizes(most)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == most
        assert len(sizes) < 85
        for rows in range(1, most + 1):
            assert fitting_size(sizes, rows) - rows < max(8, rows / 3)
    assert fitting_size([1, 2, 4], 5) is None


def scheduler(num_blocks, **more):
    return Scheduler(BlockPool(num_blocks, 4), max_num_seqs=4, max_batch_tokens=16, watermark_ratio=0.0, **more)


def test_pages_for_all_steps_are_taken_beforehand_and_only_if_nobody_has_to_go():
    target = scheduler(num_blocks=4)
    for arrival in range(2):
        target.add(sequence(remaining=12, arrival=arrival))
    for chunk in target.plan(8).chunks:
        chunk.sequence.token_ids.append(9)
        target.advance(chunk)
    plan = target.plan(8)
    assert plan.num_steps == 4  # 8 would take 3 pages of each
    assert [len(chunk.sequence.block_table) for chunk in plan.chunks] == [2, 2]
    assert target.num_preemptions == 0
    for chunk in plan.chunks:
        chunk.sequence.token_ids += [9] * 4
        target.advance(chunk, num_right=3)
        assert chunk.sequence.num_pending == 1


def test_no_page_is_taken_for_tokens_after_the_end():
    target = scheduler(num_blocks=8)
    target.add(sequence(remaining=2))
    (chunk,) = target.plan(8).chunks
    chunk.sequence.token_ids.append(9)
    target.advance(chunk)
    assert target.plan(8).num_steps == 1
    assert len(chunk.sequence.block_table) == 2


def test_row_keys_are_those_of_row_key():
    seeds, choices, positions = [0, 7, 2**63 - 1], [0, 3, 15], [1, 70_000, 5]
    keys = row_keys(*(np.asarray(each, dtype=np.uint64) for each in (seeds, choices, positions)))
    assert keys.tolist() == [row_key(*each) for each in zip(seeds, choices, positions, strict=True)]
