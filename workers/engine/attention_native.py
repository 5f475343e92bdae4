"""Paged attention by the C++ kernels, for models that run through transformers on a CPU."""

import numpy as np
import torch
from torch import Tensor

from workers.engine import native
from workers.engine.attention import AttentionCall, LayerCache
from workers.engine.batch import Batch
from workers.engine.model import LoadedModel
from workers.engine.native import Kernels

_DTYPES = {torch.float32, torch.bfloat16}
_MAX_DIM = 256
_UNIT = 16  # slots that AMX takes at once


def can_attend(model: LoadedModel) -> bool:
    """Whether every layer's shape is one that the kernels know."""
    dims = {dim for layer in model.layers for dim in (layer.head_dim, layer.value_dim)}
    return model.dtype in _DTYPES and max(dims) <= _MAX_DIM


class NativeAttention:
    """A row's bits depend on its own sequence only, in whatever chunks that was fed."""

    def __init__(self, kernels: Kernels, block_size: int) -> None:
        # Pages in AMX's order need whole units of slots. Which order it is, decides bits.
        self._has_units = kernels.best_isa == native.AMX and block_size % _UNIT == 0
        self.name = f"native {kernels.best_isa} {'tiled' if self._has_units else 'plain'} {kernels.version}"
        self._kernels = kernels
        self._batch: Batch | None = None
        self._query_lens = self._kv_lens = np.empty(0, np.int32)

    def prepare(self, batch: Batch) -> None:
        """Bring the lengths into the kernels' type."""
        self._batch = batch
        self._query_lens = np.asarray(batch.query_lens, np.int32)
        self._kv_lens = np.asarray(batch.kv_lens, np.int32)

    def attend(self, call: AttentionCall, cache: LayerCache) -> Tensor:
        """[T, heads, value dim] for all sequences of the batch."""
        batch = self._batch
        assert batch is not None, "prepare comes first"
        query, key, value = call.query.contiguous(), call.key.contiguous(), call.value.contiguous()
        assert query.dtype == key.dtype == value.dtype == cache.keys.dtype
        sinks = call.sinks.float().contiguous() if call.sinks is not None else None
        num_tokens, num_heads, key_dim = query.shape
        _, num_kv_heads, value_dim = value.shape
        output = query.new_empty(num_tokens, num_heads, value_dim)
        layer = native.LayerCall(
            query=query.data_ptr(),
            key=key.data_ptr(),
            value=value.data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            sinks=sinks.data_ptr() if sinks is not None else None,
            output=output.data_ptr(),
            slots=batch.slot_mapping.data_ptr(),
            scaling=call.scaling,
            softcap=call.softcap or 0.0,
            window=call.sliding_window or 0,
            tokens=num_tokens,
            heads=num_heads,
            kv_heads=num_kv_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            block_size=batch.block_size,
            threads=torch.get_num_threads(),
        )
        sequences = native.Sequences(
            count=len(self._query_lens),
            table_width=batch.block_tables.shape[1],
            tables=batch.block_tables.data_ptr(),
            query_lens=self._query_lens.ctypes.data,
            kv_lens=self._kv_lens.ctypes.data,
        )
        is_bf16 = query.dtype == torch.bfloat16
        is_tiled = self._has_units and is_bf16 and key_dim == value_dim and key_dim % 32 == 0
        self._kernels.attend(layer, sequences, is_bf16=is_bf16, is_tiled=is_tiled)
        return output
