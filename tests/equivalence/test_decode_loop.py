"""Several steps in a row = one after the other, and filled-up batches = plain ones, token for token. Without a GPU."""

import pytest
import torch

from tests.equivalence import tiny
from workers.engine.protocol import Request, SamplingParams
from workers.engine.runner import GenericForward

NAMES = ["llama", "gpt2", "gemma2", *(pytest.param(name, marks=pytest.mark.long) for name in ("mistral", "gpt_oss"))]
MIXTURE = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"top_p": 0.7, "temperature": 1.3},
    {"top_k": 4},
    {"min_p": 0.05},
    {"stop_repeating": 2},
]
HOST = [{"logprobs": 2}, {"presence_penalty": 0.5}, {"min_tokens": 9}, {"logit_bias": {3: 4.0}}]


def requests(kinds, longest=40):
    return [
        Request(
            id=str(i),
            prompt_ids=prompt,
            sampling=SamplingParams(**({"max_tokens": 9 + i, "seed": i} | kinds[i % len(kinds)])),
            priority=i % 2,
        )
        for i, prompt in enumerate(tiny.prompts(12, longest))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_several_steps_in_filled_up_batches_give_the_tokens_of_single_steps(checkpoint, name):
    _, folder = checkpoint(name)
    settings = {"block_size": 4, "max_num_seqs": 12, "max_batch_tokens": 64, "kernels": "torch"}
    plain = tiny.run(tiny.load(folder, **settings), requests(MIXTURE))
    engine = tiny.filled_up(tiny.load(folder, **settings, decode_steps=5), [1, 2, 4, 8, 16])
    steps = engine.stats().step
    outcome = tiny.run(engine, requests(MIXTURE))
    assert (outcome.tokens, outcome.reasons) == (plain.tokens, plain.reasons)
    longest = max(map(len, plain.tokens.values()))
    assert engine.stats().step - steps < longest, "there were fewer looks than tokens"


def test_up_to_the_longest_position_that_the_model_has(checkpoint):
    """gpt2's embedding ends there: one step too far would be an error, of the whole GPU."""
    _, folder = checkpoint("gpt2")
    asked = [
        Request(id=str(i), prompt_ids=prompt, sampling=SamplingParams(max_tokens=500, temperature=0.0, ignore_eos=True))
        for i, prompt in enumerate(tiny.prompts(3, 120))
    ]
    settings = {"kernels": "torch", "max_num_seqs": 4}
    plain = tiny.run(tiny.load(folder, **settings), asked)
    outcome = tiny.run(tiny.filled_up(tiny.load(folder, **settings, decode_steps=7), [4]), asked)
    assert outcome.tokens == plain.tokens
    assert {len(asked[int(name)].prompt_ids) + len(tokens) for (name, _), tokens in outcome.tokens.items()} == {128}


@pytest.mark.parametrize("more", [{}, {"num_blocks": 24}, {"speculative_tokens": 4}], ids=["room", "tight", "guesses"])
def test_beside_requests_that_need_the_host(checkpoint, more):
    _, folder = checkpoint("llama")
    settings = {"block_size": 4, "max_num_seqs": 6, "max_batch_tokens": 40, "kernels": "torch"} | more
    plain = tiny.run(tiny.load(folder, **settings), requests(MIXTURE + HOST))
    engine = tiny.filled_up(tiny.load(folder, **settings, decode_steps=4), [1, 3, 6])
    outcome = tiny.run(engine, requests(MIXTURE + HOST))
    assert (outcome.tokens, outcome.reasons) == (plain.tokens, plain.reasons)
    assert {key: len(found) for key, found in outcome.logprobs.items()} == {
        key: len(found) for key, found in plain.logprobs.items()
    }


def test_through_our_own_kernels_too(checkpoint):
    _, folder = checkpoint("llama")
    plain = tiny.run(tiny.load(folder, block_size=4), requests(MIXTURE))
    assert tiny.run(tiny.load(folder, block_size=4, decode_steps=6), requests(MIXTURE)).tokens == plain.tokens


def test_forward_passes_of_one_shape_give_the_same_tokens(checkpoint):
    _, folder = checkpoint("llama")
    settings = {"block_size": 4, "max_num_seqs": 6, "max_batch_tokens": 24, "kernels": "torch"}
    plain = tiny.run(tiny.load(folder, **settings), requests(MIXTURE + HOST))
    for more in ({}, {"decode_steps": 3}, {"speculative_tokens": 3}):
        outcome = tiny.run(tiny.load(folder, **settings, deterministic=True, **more), requests(MIXTURE + HOST))
        assert outcome.tokens == plain.tokens


class SmallDevice:
    """A forward pass that finds no memory for more tokens than it may have."""

    def __init__(self, forward: GenericForward, most_tokens: int) -> None:
        self.forward, self.most_tokens, self.num_failed = forward, most_tokens, 0
        self.copy_block = forward.copy_block

    def __call__(self, batch):
        if len(batch.input_ids) > self.most_tokens:
            self.num_failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return self.forward(batch)


@pytest.mark.parametrize("decode_steps", [1, 4])
def test_a_device_that_runs_out_of_memory_gives_the_same_tokens(checkpoint, decode_steps):
    _, folder = checkpoint("llama")
    settings = {"block_size": 4, "max_num_seqs": 8, "max_batch_tokens": 48, "kernels": "torch"}
    plain = tiny.run(tiny.load(folder, **settings), requests(MIXTURE + HOST))
    engine = tiny.load(folder, **settings, decode_steps=decode_steps)
    small = SmallDevice(engine._model._forward, 5)
    engine._model._forward = small
    if engine._model.loop is not None:
        engine._model.loop._forward = small
    outcome = tiny.run(engine, requests(MIXTURE + HOST))
    assert not outcome.failed
    assert (outcome.tokens, outcome.reasons) == (plain.tokens, plain.reasons)
    assert small.num_failed == engine.stats().memory_shortages > 0
