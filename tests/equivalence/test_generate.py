"""Paged = batched = chunked = preempted = plain generate, token by token under greedy decoding in float32."""

import random

import pytest

from tests.equivalence import tiny
from tests.equivalence.tiny import FAST, GREEDY, REFUSED, WIDE
from workers.engine.errors import ModelUnsupported
from workers.engine.protocol import Request

ALL = [*FAST, *(pytest.param(name, marks=pytest.mark.long) for name in WIDE)]


@pytest.fixture(params=ALL)
def expected(request, checkpoint):
    """(folder, prompts, what transformers generates from each)."""
    model, folder = checkpoint(request.param)
    prompts = tiny.prompts(7)
    return folder, prompts, [tiny.plain_generate(model, prompt, GREEDY.max_tokens) for prompt in prompts]


def _requests(prompts, order):
    return [Request(id=str(i), prompt_ids=prompts[i], sampling=GREEDY, priority=i % 3) for i in order]


def _check(outcome, wanted):
    assert not outcome.failed
    assert outcome.tokens == {(str(i), 0): tokens for i, tokens in enumerate(wanted)}


def test_the_greedy_choice_depends_on_the_context(expected):
    _, _, wanted = expected
    assert len({tuple(tokens) for tokens in wanted}) == len(wanted)
    assert any(len(set(tokens)) > 4 for tokens in wanted)


def test_alone_and_in_one_go(expected):
    folder, prompts, wanted = expected
    engine = tiny.load(folder)
    for i, prompt in enumerate(prompts):
        outcome = tiny.run(engine, [Request(id="a", prompt_ids=prompt, sampling=GREEDY)])
        assert outcome.tokens["a", 0] == wanted[i]


def test_without_our_kernels(expected):
    folder, prompts, wanted = expected
    engine = tiny.load(folder, kernels="torch", max_batch_tokens=24, max_num_seqs=5, block_size=4)
    _check(tiny.run(engine, _requests(prompts, range(len(prompts)))), wanted)


def test_in_a_shuffled_batch_with_chunked_prefill(expected):
    folder, prompts, wanted = expected
    engine = tiny.load(folder, max_batch_tokens=11, max_num_seqs=5, block_size=4)
    order = list(range(len(prompts)))
    random.Random(3).shuffle(order)
    _check(tiny.run(engine, _requests(prompts, order)), wanted)
    assert engine.stats().preemptions == 0


def test_under_a_pool_so_small_that_sequences_are_preempted(expected):
    folder, prompts, wanted = expected
    engine = tiny.load(folder, max_batch_tokens=16, max_num_seqs=6, block_size=4, num_blocks=16)
    outcome = tiny.run(engine, _requests(prompts, reversed(range(len(prompts)))))
    _check(outcome, wanted)
    assert engine.stats().preemptions > 0
    out = [each.request_id for each in outcome.moved if not each.is_back]
    assert len(out) == engine.stats().preemptions
    assert sorted(out) == sorted(each.request_id for each in outcome.moved if each.is_back), "each came back"


def test_from_the_prefix_cache(expected):
    folder, prompts, wanted = expected
    engine = tiny.load(folder, block_size=4, max_batch_tokens=16, max_num_seqs=4)
    for _ in range(2):
        _check(tiny.run(engine, _requests(prompts, range(len(prompts)))), wanted)
    assert engine.stats().cached_tokens == sum((len(prompt) - 1) // 4 * 4 for prompt in prompts)


def test_several_choices_from_one_prompt(expected):
    folder, prompts, wanted = expected
    engine = tiny.load(folder, block_size=4, max_batch_tokens=16, max_num_seqs=16, prefix_cache=False)
    requests = [Request(id=str(i), prompt_ids=prompt, sampling=GREEDY, n=3) for i, prompt in enumerate(prompts)]
    outcome = tiny.run(engine, requests)
    assert outcome.tokens == {(str(i), choice): tokens for i, tokens in enumerate(wanted) for choice in range(3)}


def test_with_speculation(expected):
    """Random models fall into loops, so there is something to guess."""
    folder, prompts, wanted = expected
    engine = tiny.load(folder, block_size=4, speculative_tokens=4, max_model_len=128)
    _check(tiny.run(engine, _requests(prompts, range(len(prompts)))), wanted)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_bypasses_our_attention_is_refused(checkpoint, name):
    _, folder = checkpoint(name)
    with pytest.raises(ModelUnsupported, match=r"can't run here: it doesn't do its attention through transformers'"):
        tiny.load(folder)
