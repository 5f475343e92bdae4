"""The engine on a real GPU: the same tokens as transformers, by every way that there is. `make test-gpu` runs it."""

import logging

import pytest
import torch

from tests.equivalence import tiny
from tests.support.attention import Scene, assert_equal
from workers.engine.attention_torch import TorchAttention
from workers.engine.protocol import Request, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

GPU = {"device": "cuda", "dtype": "float32", "block_size": 16, "max_num_seqs": 8, "kv_cache_bytes": 1 << 24}
LENS = [(300, 1), (9, 9), (140, 5), (1, 1), (70, 70), (150, 40), (128, 3), (257, 20)]


@pytest.fixture(scope="module", params=["llama", "qwen3", "mistral", "gemma2", "gpt2", "gpt_oss", "deepseek_v3"])
def expected(request, tmp_path_factory):
    """(folder, requests, what transformers generates on the CPU)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny.save_model(request.param, folder)
    prompts = tiny.prompts(7)
    wanted = {(str(i), 0): tiny.plain_generate(model, prompt, 16) for i, prompt in enumerate(prompts)}
    return folder, [Request(id=str(i), prompt_ids=p, sampling=tiny.GREEDY) for i, p in enumerate(prompts)], wanted


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"cuda_graphs": False, "decode_steps": 1},
        {"cuda_graphs": False, "decode_steps": 6},
        {"cuda_graphs": True, "decode_steps": 1},
        {"attention": "torch"},
        {"deterministic": True},
        {"speculative_tokens": 4},
        {"num_blocks": 10, "max_batch_tokens": 16},
    ],
    ids=str,
)
def test_tokens_are_those_of_transformers(expected, more):
    folder, requests, wanted = expected
    assert tiny.run(tiny.load(folder, **(GPU | more)), requests).tokens == wanted


def test_decoding_is_captured(tmp_path, caplog):
    tiny.save_model("llama", tmp_path)
    with caplog.at_level(logging.INFO, "workers.engine.decode"):
        engine = tiny.load(tmp_path, **GPU)
    assert sorted(engine._model.loop._captured) == [1, 2, 4, 8]
    assert "4 CUDA graphs captured" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"sliding_window": 100, "softcap": 2.0, "sinks": True}], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(8, 8, 64), (14, 2, 64), (8, 2, 128), (4, 1, 80), (4, 2, 256)])
def test_the_compiled_kernels_compute_what_plain_attention_computes(dtype, options, heads, kv_heads, dim):
    from workers.engine.attention_triton import TritonAttention

    scene = Scene(LENS, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype, device="cuda")
    exact = Scene(LENS, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype, device="cuda")
    for name in ("keys", "values", "sinks"):
        setattr(exact, name, getattr(exact, name).float())
    for name in ("query", "key", "value"):
        setattr(exact, name, [each.float() for each in getattr(exact, name)])
    sinks = {"sinks": scene.sinks} if "sinks" in options else {}
    got = scene.run(TritonAttention(512), scaling=dim**-0.5, **(options | sinks))
    sinks = {"sinks": exact.sinks} if "sinks" in options else {}
    wanted = exact.run(TorchAttention(), scaling=dim**-0.5, **(options | sinks))
    assert_equal(got, wanted, {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype])
    for place, output in enumerate(got):
        sinks = {"sinks": scene.sinks} if "sinks" in options else {}
        (alone,) = scene.run(TritonAttention(512, num_programs=7), [place], scaling=dim**-0.5, **(options | sinks))
        assert torch.equal(alone, output), "a row's bits depend on what is beside it"


def test_varlen_attention_gives_the_tokens_of_ours(tmp_path):
    from workers.engine.attention_varlen import varlen_attn

    if varlen_attn() is None:
        pytest.skip(f"PyTorch {torch.__version__} has no varlen_attn that reads pages")
    scene = Scene(LENS, dim=64, dtype=torch.bfloat16, block_size=256, device="cuda")
    from workers.engine.attention_triton import TritonAttention
    from workers.engine.attention_varlen import VarlenAttention

    for options in ({}, {"sliding_window": 100}):
        ours = scene.run(TritonAttention(512), scaling=0.125, **options)
        assert_equal(scene.run(VarlenAttention(), scaling=0.125, **options), ours, 4e-2)


def test_deterministic_tokens_in_half_precision_whatever_else_is_in_the_batch(tmp_path):
    tiny.save_model("llama", tmp_path)
    requests = [
        Request(id=str(i), prompt_ids=prompt, sampling=SamplingParams(max_tokens=24, seed=i))
        for i, prompt in enumerate(tiny.prompts(8))
    ]
    settings = GPU | {"dtype": "bfloat16", "deterministic": True, "max_batch_tokens": 32}
    together = tiny.run(tiny.load(tmp_path, **settings), requests).tokens
    tight = tiny.load(tmp_path, **(settings | {"num_blocks": 10}))
    assert tiny.run(tight, requests[::-1]).tokens == together
    alone = tiny.load(tmp_path, **settings)
    for request in requests:
        assert tiny.run(alone, [request]).tokens[request.id, 0] == together[request.id, 0]


def test_a_gpu_whose_memory_is_taken_away_shrinks_its_steps_and_loses_nobody(tmp_path):
    tiny.save_model("llama", tmp_path)
    requests = [
        Request(id=str(i), prompt_ids=prompt, sampling=tiny.GREEDY) for i, prompt in enumerate(tiny.prompts(8, 100))
    ]
    settings = GPU | {"max_batch_tokens": 512, "cuda_graphs": False}
    wanted = tiny.run(tiny.load(tmp_path, **settings), requests).tokens
    engine = tiny.load(tmp_path, **settings)
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    allocated = torch.cuda.memory_allocated()
    try:  # what a step of 512 tokens takes is far more than 1 MiB, of one token far less
        torch.cuda.set_per_process_memory_fraction((allocated + (4 << 20)) / total)
        outcome = tiny.run(engine, requests)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not outcome.failed
    assert outcome.tokens == wanted


def test_the_pool_is_sized_from_free_memory_and_leaves_the_share_that_it_should(tmp_path):
    tiny.save_model("llama", tmp_path)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    share = (total - free + (2 << 30)) / total
    if share > 0.99:
        pytest.skip("the GPU is full")
    settings = {"device": "cuda", "max_num_seqs": 4096, "max_batch_tokens": 4096, "cuda_graphs": False}
    engine = tiny.load(tmp_path, **settings, gpu_memory_utilization=share)
    after, _ = torch.cuda.mem_get_info()
    assert total - after <= total * share
    assert engine.info.num_blocks > 8
