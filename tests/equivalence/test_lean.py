"""The Llama family by our own kernels = by transformers; and a row's bits depend on its own sequence only."""

import pytest
import torch
import transformers

from tests.equivalence import tiny
from workers.engine import native
from workers.engine.attention_torch import TorchAttention
from workers.engine.batch import build_batch
from workers.engine.lean import LeanDecoder, why_not_lean
from workers.engine.model import load_model
from workers.engine.protocol import Request, SamplingParams
from workers.engine.runner import GenericForward
from workers.engine.scheduler import Chunk
from workers.engine.sequence import Sequence

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="there is no C++ compiler")

GQA = tiny._GQA | {"max_position_embeddings": 1024}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GQA),
    "llama, biases": lambda: transformers.LlamaConfig(**GQA, attention_bias=True),
    "llama, tied": lambda: transformers.LlamaConfig(**GQA | {"tie_word_embeddings": True}),
    "llama, one KV head": lambda: transformers.LlamaConfig(
        **GQA | {"num_attention_heads": 32, "num_key_value_heads": 1}
    ),
    "llama, heads of 128": lambda: transformers.LlamaConfig(**GQA, head_dim=128),
    "llama3 rope": lambda: transformers.LlamaConfig(
        **GQA,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "linear rope": lambda: transformers.LlamaConfig(
        **GQA, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    ),
    "yarn rope": lambda: transformers.LlamaConfig(
        **GQA,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    ),
    "qwen2": lambda: transformers.Qwen2Config(**GQA),
    "qwen2, two layers with a window": lambda: transformers.Qwen2Config(
        **GQA, use_sliding_window=True, sliding_window=20, max_window_layers=1
    ),
    "qwen3": lambda: transformers.Qwen3Config(**GQA, head_dim=32),
    "mistral": lambda: transformers.MistralConfig(**GQA, sliding_window=None),
    "mistral, window": lambda: transformers.MistralConfig(**GQA, sliding_window=40),
}
NOT_LEAN = {
    "of type dynamic": lambda: transformers.LlamaConfig(
        **GQA, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    ),
    "its activation is gelu": lambda: transformers.LlamaConfig(**GQA, hidden_act="gelu"),
    "MLP has biases": lambda: transformers.LlamaConfig(**GQA, mlp_bias=True),
    "aren't multiples of 32": lambda: transformers.LlamaConfig(**GQA | {"intermediate_size": 80}),
    "isn't of the Llama family": lambda: transformers.Olmo2Config(**GQA),
}


def save(config, folder):
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tiny.save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, tmp_path_factory):
    return save(CONFIGS[request.param](), tmp_path_factory.mktemp("lean"))


def loaded(folder, dtype="float32"):
    return load_model(folder, torch.device("cpu"), dtype)


def steps(batches, block_size=16):
    """Batches of (tokens, start, count), each sequence named by its place, with pages of its own."""
    table = {place: list(range(place * 40, place * 40 + 40)) for place in range(4)}
    for batch in batches:
        chunks = []
        for place, (tokens, start, count) in batch.items():
            sequence = Sequence(
                request_id=str(place),
                choice=0,
                priority=0,
                arrival=place,
                sampling=SamplingParams(max_tokens=1),
                max_len=len(tokens) + 1,
                token_ids=tokens,
                num_prompt_tokens=len(tokens),
                block_table=table[place][::-1],  # not in the pool's order
            )
            chunks.append(Chunk(sequence, start, count, samples=True))
        yield build_batch(chunks, block_size, torch.device("cpu"))


def tokens(count, seed):
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


LONG, SHORT, OTHER = tokens(530, 1), tokens(7, 2), tokens(90, 3)
MIXED = [{0: (LONG, 0, 300), 1: (SHORT, 0, 7)}, {2: (OTHER, 0, 90), 0: (LONG, 300, 229)}, {0: (LONG, 529, 1)}]


def decoder(model, isa=None):
    kernels = native.kernels()
    return LeanDecoder(kernels, model, num_blocks=160, block_size=16, isa=isa)


def test_float32_logits_are_those_of_transformers(folder):
    model = loaded(folder)
    assert why_not_lean(model) is None
    generic = GenericForward(model, TorchAttention(), num_blocks=160, block_size=16)
    lean = decoder(model)
    for batch in steps(MIXED):
        wanted = generic(batch)
        torch.testing.assert_close(lean(batch), wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def test_greedy_tokens_are_those_of_the_generic_way(folder):
    requests = [Request(id=str(i), prompt_ids=p, sampling=tiny.GREEDY) for i, p in enumerate(tiny.prompts(5, 60))]
    lean, generic = tiny.load(folder), tiny.load(folder, kernels="torch")
    assert lean.info.settings_hash != generic.info.settings_hash
    assert tiny.run(lean, requests).tokens == tiny.run(generic, requests).tokens


@pytest.mark.parametrize("isa", [native.PLAIN, native.AVX512_BF16, native.AMX])
def test_bfloat16_errs_no_more_than_transformers_does(folder, isa):
    if native.kernels().best_isa < isa:
        pytest.skip("this processor can't")
    exact, model = decoder(loaded(folder)), loaded(folder, "bfloat16")
    lean, generic = decoder(model, isa), GenericForward(model, TorchAttention(), num_blocks=160, block_size=16)
    errors, usual = [], []
    for batch in steps(MIXED):
        wanted = exact(batch)
        errors.append((lean(batch) - wanted).norm(dim=-1) / wanted.norm(dim=-1))
        usual.append((generic(batch).float() - wanted).norm(dim=-1) / wanted.norm(dim=-1))
    assert torch.cat(errors).mean() < 1.5 * torch.cat(usual).mean()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_bits_of_a_row_depend_on_its_own_sequence_only(tmp_path, dtype, threads):
    model = loaded(save(CONFIGS["llama, biases"](), tmp_path), dtype)
    alone = decoder(model)
    (wanted,) = [alone(batch).clone() for batch in steps([{0: (LONG, 0, 530)}])]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        lean = decoder(model)
    finally:
        torch.set_num_threads(before)
    *_, chunked = [lean(batch).clone() for batch in steps(MIXED)]
    assert torch.equal(chunked, wanted)
    neighbours = {1: (SHORT, 6, 1), 0: (LONG, 529, 1), 2: (OTHER, 40, 50)}
    (batched,) = [lean(batch).clone() for batch in steps([neighbours])]
    assert torch.equal(batched[1:2], wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_others_left_in_a_page_is_never_looked_at(tmp_path, dtype):
    model = loaded(save(CONFIGS["llama"](), tmp_path), dtype)
    clean, dirty = decoder(model), decoder(model)
    dirty._pool.fill_(float("nan"))
    for batch in steps(MIXED):
        assert torch.equal(clean(batch), dirty(batch))


@pytest.mark.parametrize("reason", NOT_LEAN)
def test_a_model_that_is_not_understood_goes_the_generic_way(tmp_path, reason):
    folder = save(NOT_LEAN[reason](), tmp_path)
    assert reason in why_not_lean(loaded(folder))
    request = Request(id="it", prompt_ids=[1, 2, 3], sampling=tiny.GREEDY)
    by_default, generic = (tiny.run(tiny.load(folder, **more), [request]) for more in ({}, {"kernels": "torch"}))
    assert by_default.tokens == generic.tokens
