"""Paged attention in Triton, for CUDA: the pages are read where they lie, without gather or padding."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from workers.engine.attention import AttentionCall, LayerCache
from workers.engine.batch import Batch
from workers.engine.kernels.paged_attention import attend, merge_segments, store

_KEYS = 64  # of one block
_SEGMENT = 256  # keys; a multiple of _KEYS
_MAX_SEGMENTS = 64  # a longer context gets larger segments
_FEW_ROWS, _MANY_ROWS = 16, 64  # rows (query x head of the group) of a tile; a product takes 16 at least


@dataclass(frozen=True, slots=True)
class Tiles:
    """Queries cut into tiles, on the device; int32. `rows` is for split tiles: their queries, as tokens of the batch."""

    seqs: Tensor  # [N] which sequence
    firsts: Tensor  # [N] the tile's first query, counted in its sequence
    first_rows: Tensor  # [N] where the tile's queries begin in `rows`
    rows: Tensor  # [R]


@dataclass(frozen=True, slots=True)
class StepLayout:
    """What all layers of a step share. Any of it may be a buffer that a graph replays over."""

    slots: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    query_starts: Tensor  # [S + 1] int32
    kv_lens: Tensor  # [S] int32
    tables: Tensor  # [S, B] int32
    few: dict[int, Tiles]  # by group: tiles of sequences with few queries
    many: dict[int, Tiles]  # by group: the others
    num_segments: int  # that the longest sequence with few queries has


class TritonAttention:
    """The backend. Shapes and lengths that bound its grids come from the host: it never waits for the device."""

    def __init__(self, max_model_len: int, groups: set[int]) -> None:
        """`groups`: query heads a KV head, of all layers."""
        blocks = -(-max(_SEGMENT, -(-max_model_len // _MAX_SEGMENTS)) // _KEYS)
        self._segment = blocks * _KEYS
        self._groups = groups
        self.name = f"triton {triton.__version__} {self._segment}"
        self._layout: StepLayout | None = None
        self._page = 0

    def prepare(self, batch: Batch) -> None:
        """Lay a step out on the device."""
        device = batch.block_tables.device
        query_lens, kv_lens = np.asarray(batch.query_lens), np.asarray(batch.kv_lens)
        starts = np.concatenate([[0], np.cumsum(query_lens)])
        few, many = {}, {}
        for group in self._groups:
            limit = max(1, _FEW_ROWS // group)
            is_few = query_lens <= limit
            few[group] = _tiles(query_lens, starts, is_few, limit, device)
            many[group] = _tiles(query_lens, starts, ~is_few, max(1, _MANY_ROWS // group), device)
        self.use(
            StepLayout(
                slots=batch.slot_mapping,
                positions=batch.positions,
                query_starts=_int32(starts, device),
                kv_lens=_int32(kv_lens, device),
                tables=batch.block_tables.to(torch.int32),
                few=few,
                many=many,
                num_segments=int(-(-kv_lens.max() // self._segment)),
            ),
            batch.block_size,
        )

    def use(self, layout: StepLayout, block_size: int) -> None:
        """Attend by this layout from now on."""
        self._layout, self._page = layout, block_size

    def attend(self, call: AttentionCall, cache: LayerCache) -> Tensor:
        """[T, heads, value dim] for all sequences of the batch."""
        layout = self._layout
        assert layout is not None, "prepare comes first"
        query, key, value = (_rows(tensor) for tensor in (call.query, call.key, call.value))
        num_tokens, heads, dim = query.shape
        kv_heads, value_dim = value.shape[1], value.shape[2]
        group = heads // kv_heads
        width = max(16, triton.next_power_of_2(dim))
        value_width = max(16, triton.next_power_of_2(value_dim))
        store[(num_tokens, kv_heads)](
            key, value, cache.keys, cache.values, layout.slots,
            key.stride(0), key.stride(1), value.stride(0), value.stride(1),
            cache.keys.stride(0), cache.keys.stride(1), cache.values.stride(0), cache.values.stride(1),
            dim, value_dim, max(width, value_width),
        )  # fmt: skip
        out = query.new_empty(num_tokens, heads, value_dim)
        shape: dict[str, Any] = {"HEADS": heads, "GROUP": group, "DIM": dim, "VALUE_DIM": value_dim}
        shape |= {
            "WIDTH": width,
            "VALUE_WIDTH": value_width,
            "KEYS": _KEYS,
            "SEGMENT": self._segment,
            "PAGE": self._page,
        }
        window = call.sliding_window or 0
        kind: dict[str, Any] = {
            "HAS_SOFTCAP": call.softcap is not None, "HAS_WINDOW": window > 0, "HAS_SINKS": call.sinks is not None,
        }  # fmt: skip
        sinks = call.sinks if call.sinks is not None else out

        def launch(tiles: Tiles, rows: int, num_segments: int, parts: tuple[Tensor, Tensor, Tensor] | None) -> None:
            grid = (len(tiles.seqs), kv_heads, num_segments) if parts else (len(tiles.seqs), kv_heads)
            values, most, total = parts or (out, out, out)
            attend[grid](
                query, cache.keys, cache.values, out, values, most, total, sinks,
                tiles.seqs, tiles.firsts, tiles.first_rows, layout.query_starts, layout.kv_lens, layout.tables,
                query.stride(0), query.stride(1), cache.keys.stride(0), cache.keys.stride(1),
                cache.values.stride(0), cache.values.stride(1), out.stride(0), out.stride(1),
                layout.tables.stride(0), num_segments, call.scaling, call.softcap or 1.0, window,
                ROWS=max(rows, triton.next_power_of_2(group)), QUERIES=max(1, rows // group), IS_SPLIT=parts is not None,
                **shape, **kind,
            )  # fmt: skip

        many, few = layout.many[group], layout.few[group]
        if len(many.seqs):
            launch(many, _MANY_ROWS, 1, None)
        if len(few.seqs):
            size = (len(few.rows), heads, layout.num_segments)
            parts = query.new_empty(*size, value_dim, dtype=torch.float32)
            most, total = (query.new_empty(size, dtype=torch.float32) for _ in range(2))
            launch(few, _FEW_ROWS, layout.num_segments, (parts, most, total))
            merge_segments[(len(few.rows), heads)](
                parts, most, total, sinks, out, few.rows, layout.positions, out.stride(0), out.stride(1),
                layout.num_segments, window, HEADS=heads, VALUE_DIM=value_dim, VALUE_WIDTH=value_width,
                SEGMENT=self._segment, HAS_WINDOW=window > 0, HAS_SINKS=call.sinks is not None,
            )  # fmt: skip
        return out


def _tiles(query_lens: Any, starts: Any, chosen: Any, size: int, device: torch.device) -> Tiles:
    """The chosen sequences' queries in tiles of `size`."""
    counts = np.where(chosen, -(-query_lens // size), 0)
    seqs = np.repeat(np.arange(len(query_lens)), counts)
    tile = np.arange(len(seqs)) - np.repeat(np.cumsum(counts) - counts, counts)  # counted in its sequence
    lens = np.where(chosen, query_lens, 0)
    row_starts = np.cumsum(lens) - lens
    rows = np.arange(lens.sum()) + np.repeat(starts[:-1] - row_starts, lens)
    return Tiles(*(_int32(each, device) for each in (seqs, tile * size, row_starts[seqs] + tile * size, rows)))


def _int32(values: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int32)).to(device, non_blocking=True)


def _rows(tensor: Tensor) -> Tensor:
    """A head's numbers must lie next to each other."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
