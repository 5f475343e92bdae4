"""The second backend: what it asks PyTorch's function for, and for which models it says no. The function needs a GPU."""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.support.attention import Scene, assert_equal
from workers.engine import attention_varlen
from workers.engine.attention_torch import TorchAttention
from workers.engine.attention_varlen import VarlenAttention, varlen_attn, why_not_varlen
from workers.engine.model import LayerShape


def as_documented(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    scale,
    window_size,
    enable_gqa,
    seqused_k,
    block_table,
    num_splits,
):
    """What PyTorch's documentation says that `varlen_attn` computes, by hand."""
    assert num_splits == 1, "splitting gives wrong results (pytorch#194167)"
    assert cu_seq_k is None
    assert {cu_seq_q.dtype, seqused_k.dtype, block_table.dtype} == {torch.int32}
    assert key.shape[1] % 256 == 0
    assert enable_gqa == (query.shape[1] != key.shape[2])
    before, after = window_size
    assert after == 0
    outputs = []
    for place, (start, end) in enumerate(zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False)):
        length, count = int(seqused_k[place]), end - start
        assert count <= max_q
        assert length <= max_k
        keys, values = (pages[block_table[place].long()].flatten(0, 1)[:length] for pages in (key, value))
        group = query.shape[1] // key.shape[2]
        keys, values = (each.repeat_interleave(group, dim=1) for each in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query[start:end], keys) * scale
        behind = torch.arange(length - count, length)[:, None] - torch.arange(length)
        hidden = (behind < 0) | ((behind > before) if before >= 0 else False)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs)


@pytest.mark.parametrize("options", [{}, {"sliding_window": 1}, {"sliding_window": 90}], ids=str)
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_what_is_asked_for_is_what_the_plain_backend_computes(options, kv_heads):
    scene = Scene([(300, 1), (9, 9), (140, 5), (257, 20), (1, 1)], kv_heads=kv_heads, block_size=256)
    assert_equal(scene.run(VarlenAttention(as_documented), **options), scene.run(TorchAttention(), **options))


def test_the_arguments_are_those_of_the_function_that_is_installed():
    function = varlen_attn()
    if function is None:
        pytest.skip(f"PyTorch {torch.__version__} has no varlen_attn that reads pages")
    parameters = inspect.signature(function).parameters
    named = inspect.signature(as_documented).parameters
    assert set(named) <= set(parameters)
    assert [name for name, each in named.items() if each.kind is each.POSITIONAL_OR_KEYWORD] == list(parameters)[:7]


LAYER = LayerShape(torch.nn.Identity(), num_kv_heads=2, head_dim=64, value_dim=64, num_heads=4)
MODEL = SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cuda"), layers=[LAYER])


@pytest.mark.parametrize(
    ("more", "layer", "block_size", "words"),
    [
        ({}, {}, 256, None),
        ({}, {}, 16, "multiple of 256"),
        ({"dtype": torch.float32}, {}, 256, "float32"),
        ({"device": torch.device("cpu")}, {}, 256, "CUDA only"),
        ({}, {"has_sinks": True}, 256, "sinks"),
        ({}, {"has_softcap": True}, 256, "caps its scores"),
        ({}, {"value_dim": 32}, 256, "another size"),
        ({}, {"head_dim": 512, "value_dim": 512}, 256, "larger than 256"),
    ],
    ids=str,
)
def test_models_that_it_cannot_serve_are_refused_with_the_reason(more, layer, block_size, words, monkeypatch):
    monkeypatch.setattr(attention_varlen, "varlen_attn", lambda: as_documented)
    model = SimpleNamespace(**(vars(MODEL) | {"layers": [LAYER, replace(LAYER, **layer)]} | more))
    fault = why_not_varlen(model, block_size)
    assert fault is None if words is None else words in fault


def test_without_the_function_all_are_refused(monkeypatch):
    monkeypatch.setattr(attention_varlen, "varlen_attn", lambda: None)
    assert "2.12 is the first" in why_not_varlen(MODEL, 256)
