"""The Triton kernels against plain PyTorch: compiled where there is a CUDA device, else by Triton's interpreter on the CPU.

The interpreter has no products in bfloat16, so that type is seen on a device only.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.engine.attention import AttentionCall, LayerCache
from workers.engine.attention_torch import TorchAttention
from workers.engine.batch import Batch

pytest.importorskip("triton", reason="Triton isn't installed")
from workers.engine.attention_triton import TritonAttention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Step:
    """A batch, a layer's call and its pages, made of noise."""

    batch: Batch
    call: AttentionCall
    cache: LayerCache

    def by(self, backend: Any) -> Tensor:
        cache = LayerCache(self.cache.keys.clone(), self.cache.values.clone())
        backend.prepare(self.batch)
        out = backend.attend(self.call, cache)
        backend.prepare(self.batch)  # nothing may be left of the step before
        assert torch.equal(out, backend.attend(self.call, cache))
        self.cache.keys.copy_(cache.keys)
        self.cache.values.copy_(cache.values)
        return out


def step(
    query_lens: list[int], kv_lens: list[int], *, page: int = 16, heads: int = 4, kv_heads: int = 2, dim: int = 16,
    value_dim: int | None = None, dtype: torch.dtype = torch.float32, sinks: bool = False, **call: Any,
) -> Step:  # fmt: skip
    noise = torch.Generator().manual_seed(1)
    value_dim = value_dim or dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise).to(DEVICE, dtype)

    counts = [-(-length // page) for length in kv_lens]
    order = torch.randperm(sum(counts) + 3, generator=noise)
    tables = torch.zeros(len(kv_lens), max(counts), dtype=torch.int64)
    taken = 0
    for row, count in enumerate(counts):
        tables[row, :count] = order[taken : taken + count]
        taken += count
    positions = torch.cat([torch.arange(kv - q, kv) for q, kv in zip(query_lens, kv_lens, strict=True)])
    rows = torch.arange(len(kv_lens)).repeat_interleave(torch.tensor(query_lens))
    num_tokens, slots = sum(query_lens), len(order) * page
    batch = Batch(
        input_ids=torch.zeros(num_tokens, dtype=torch.int64, device=DEVICE),
        positions=positions.to(DEVICE),
        slot_mapping=(tables[rows, positions // page] * page + positions % page).to(DEVICE),
        sample_rows=torch.empty(0, dtype=torch.int64, device=DEVICE),
        block_tables=tables.to(DEVICE),
        query_lens=query_lens,
        kv_lens=kv_lens,
        block_size=page,
    )
    made = AttentionCall(
        query=normal(heads, num_tokens, dim).transpose(0, 1),
        key=normal(kv_heads, num_tokens, dim).transpose(0, 1),
        value=normal(kv_heads, num_tokens, value_dim).transpose(0, 1),
        scaling=dim**-0.5,
        sinks=normal(heads) if sinks else None,
        **call,
    )
    return Step(batch, made, LayerCache(normal(slots, kv_heads, dim), normal(slots, kv_heads, value_dim)))


CASES = {
    "one token": {"query_lens": [1], "kv_lens": [1]},
    "page borders": {"query_lens": [1] * 5, "kv_lens": [15, 16, 17, 32, 33]},
    "segment borders": {"query_lens": [1] * 4, "kv_lens": [255, 256, 257, 600]},
    "prefill from nothing": {"query_lens": [1, 37, 64], "kv_lens": [1, 37, 64]},
    "prefill and decode mixed, ragged": {"query_lens": [1, 40, 1, 7], "kv_lens": [300, 70, 5, 290]},
    "guesses over a segment border": {"query_lens": [4, 3], "kv_lens": [258, 18]},
    "a chunk over segments": {"query_lens": [70], "kv_lens": [530]},
    "no groups": {"query_lens": [1, 20], "kv_lens": [20, 30], "heads": 3, "kv_heads": 3},
    "groups of seven": {"query_lens": [1, 20], "kv_lens": [270, 30], "heads": 14, "kv_heads": 2},
    "one KV head for all": {"query_lens": [1, 20, 2], "kv_lens": [20, 30, 9], "heads": 24, "kv_heads": 1},
    "odd widths": {"query_lens": [1, 20], "kv_lens": [40, 30], "dim": 24, "value_dim": 40},
    "pages of 32": {"query_lens": [1, 33], "kv_lens": [65, 33], "page": 32},
    "pages of 8": {"query_lens": [1, 33], "kv_lens": [65, 33], "page": 8},
    "softcap": {"query_lens": [1, 20], "kv_lens": [300, 30], "softcap": 3.0},
    "sliding window": {"query_lens": [1, 60, 1], "kv_lens": [600, 300, 3], "sliding_window": 20},
    "a window over segments": {"query_lens": [1, 60], "kv_lens": [600, 590], "sliding_window": 300},
    "sinks": {"query_lens": [1, 60], "kv_lens": [300, 60], "sinks": True},
    "sinks in a window": {"query_lens": [1, 60], "kv_lens": [600, 300], "sinks": True, "sliding_window": 8},
    "float16": {"query_lens": [1, 40], "kv_lens": [300, 40], "dtype": torch.float16},
    "bfloat16": {"query_lens": [1, 40], "kv_lens": [300, 40], "dtype": torch.bfloat16},
}


@pytest.mark.parametrize("case", CASES)
def test_it_attends_as_the_reference_does(case):
    if case == "bfloat16" and DEVICE.type == "cpu":
        pytest.skip("Triton's interpreter has no products in bfloat16")
    made = step(**CASES[case])
    groups = {made.call.query.shape[1] // made.call.key.shape[1]}
    got = made.by(TritonAttention(1024, groups))
    keys, values = made.cache.keys.clone(), made.cache.values.clone()
    expected = made.by(TorchAttention())
    assert torch.equal(keys, made.cache.keys)
    assert torch.equal(values, made.cache.values)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, atol=_TOLERANCE[got.dtype], rtol=0)


def _alone(made: Step, row: int) -> Step:
    """One of the batch's sequences as a batch of its own, over the same pages."""
    batch, call = made.batch, made.call
    start = sum(batch.query_lens[:row])
    tokens = slice(start, start + batch.query_lens[row])
    return Step(
        replace(
            batch,
            input_ids=batch.input_ids[tokens],
            positions=batch.positions[tokens],
            slot_mapping=batch.slot_mapping[tokens],
            block_tables=batch.block_tables[row : row + 1],
            query_lens=[batch.query_lens[row]],
            kv_lens=[batch.kv_lens[row]],
        ),
        replace(call, query=call.query[tokens], key=call.key[tokens], value=call.value[tokens]),
        made.cache,
    )


@pytest.mark.parametrize("how", [{}, {"sliding_window": 50}, {"sinks": True}])
def test_the_bits_of_a_row_depend_on_its_own_sequence_only(how):
    query_lens, kv_lens = [1, 30, 2, 1], [700, 300, 40, 17]
    made = step(query_lens, kv_lens, **how)
    together = made.by(TritonAttention(1024, {2})).split(query_lens)
    for row, expected in enumerate(together):
        assert torch.equal(_alone(made, row).by(TritonAttention(1024, {2})), expected)


def test_a_query_among_many_has_the_bits_of_one_that_is_decoded():
    """Segments that are merged in registers, and segments that are merged by the second kernel."""
    made = step([40], [560])
    many = made.by(TritonAttention(1024, {2}))
    for place in (0, 17, 39):
        batch, call = made.batch, made.call
        one = slice(place, place + 1)
        decoded = Step(
            replace(
                batch,
                positions=batch.positions[one],
                slot_mapping=batch.slot_mapping[one],
                query_lens=[1],
                kv_lens=[int(batch.positions[place]) + 1],
            ),
            replace(call, query=call.query[one], key=call.key[one], value=call.value[one]),
            made.cache,
        ).by(TritonAttention(1024, {2}))
        torch.testing.assert_close(decoded[0], many[place], atol=1e-6, rtol=0)


def test_long_contexts_get_larger_segments_so_that_parts_stay_few():
    assert TritonAttention(1 << 20, {2}).name.endswith(" 16384")
    assert TritonAttention(4096, {2}).name.endswith(" 256")


def test_what_lies_behind_a_sequence_in_its_last_page_is_never_looked_at():
    made = step([1, 20], [20, 20])
    expected = made.by(TritonAttention(1024, {2}))
    size = made.batch.block_size
    for row, length in enumerate(made.batch.kv_lens):
        block = int(made.batch.block_tables[row, length // size])
        made.cache.keys[block * size + length % size : (block + 1) * size] = float("nan")
        made.cache.values[block * size + length % size : (block + 1) * size] = float("nan")
    assert torch.equal(made.by(TritonAttention(1024, {2})), expected)
