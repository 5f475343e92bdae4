"""Paged attention by PyTorch's own `varlen_attn` (FlashAttention), from PyTorch 2.12 on: the second choice on a GPU.

It knows neither sinks nor softcaps nor float32, and its pages have a multiple of 256 tokens, so much of the last page of
each sequence lies idle. It never splits a sequence: that path gives wrong results (pytorch#194167), and its bits would
depend on the longest sequence in the batch.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workers.engine.attention import AttentionCall, LayerCache
from workers.engine.batch import Batch
from workers.engine.model import LoadedModel

_PAGE_UNIT = 256  # tokens
_MAX_HEAD_DIM = 256
_DTYPES = {torch.float16, torch.bfloat16}


def varlen_attn() -> Callable[..., Any] | None:
    """PyTorch's function, if it is here and reads pages."""
    try:
        from torch.nn.attention.varlen import varlen_attn as found
    except ImportError:
        return None
    return found if {"block_table", "num_splits"} <= set(inspect.signature(found).parameters) else None


def why_not_varlen(model: LoadedModel, block_size: int) -> str | None:
    """What keeps a model from attending through `varlen_attn` here, or None."""
    faults = {
        f"PyTorch {torch.__version__} has no varlen_attn that reads pages; 2.12 is the first that does": varlen_attn()
        is None,
        f"its pages have a multiple of {_PAGE_UNIT} tokens, and block_size is {block_size}": block_size % _PAGE_UNIT,
        f"it computes in float16 and bfloat16, and the model's type is {model.dtype}": model.dtype not in _DTYPES,
        "it runs on CUDA only": model.device.type != "cuda",
        "the model caps its scores": any(layer.has_softcap for layer in model.layers),
        "the model has attention sinks": any(layer.has_sinks for layer in model.layers),
        "the model's values are of another size than its keys": any(
            layer.head_dim != layer.value_dim for layer in model.layers
        ),
        f"the model's heads are larger than {_MAX_HEAD_DIM}": any(
            layer.head_dim > _MAX_HEAD_DIM for layer in model.layers
        ),
    }
    return next((fault for fault, is_so in faults.items() if is_so), None)


class VarlenAttention:
    """For models that `why_not_varlen` finds nothing wrong with."""

    name = "varlen"

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        """`function` stands in for PyTorch's."""
        found = function or varlen_attn()
        assert found is not None, "see why_not_varlen"
        self._function = found
        self._batch: Batch | None = None

    def prepare(self, batch: Batch) -> None:
        """Make the indices 32 bits wide."""
        self._batch = batch
        self._starts = batch.query_starts.to(torch.int32)
        self._seq_lens = batch.seq_lens.to(torch.int32)
        self._tables = batch.block_tables.to(torch.int32)

    def attend(self, call: AttentionCall, cache: LayerCache) -> Tensor:
        """[T, heads, value dim] for all sequences of the batch."""
        batch = self._batch
        assert batch is not None, "prepare comes first"
        assert call.softcap is None
        assert call.sinks is None
        cache.keys.index_copy_(0, batch.slot_mapping, call.key)
        cache.values.index_copy_(0, batch.slot_mapping, call.value)
        # FlashAttention's window counts the tokens before the current one.
        before = -1 if call.sliding_window is None else call.sliding_window - 1
        output: Tensor = self._function(
            call.query.contiguous(),
            cache.keys.view(-1, batch.block_size, *cache.keys.shape[1:]),
            cache.values.view(-1, batch.block_size, *cache.values.shape[1:]),
            self._starts,
            None,
            max(batch.query_lens),
            max(batch.kv_lens),
            scale=call.scaling,
            window_size=(before, 0),
            enable_gqa=call.query.shape[1] != call.key.shape[1],
            seqused_k=self._seq_lens,
            block_table=self._tables,
            num_splits=1,
        )
        return output
