"""Paged attention on a GPU, by our own kernels (see `kernels_triton`).

Sequences that feed one token or a few (decoding, guesses) are cut into segments, so that a single long one keeps the
whole GPU busy; those that feed many (prefill) have enough tiles without. Nothing here waits for the device: the grid
follows from what the host knows, and every program finds its own length in the device's memory.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import triton
from torch import Tensor

from workers.engine import kernels_triton as kernels
from workers.engine.attention import AttentionCall, LayerCache
from workers.engine.batch import Batch
from workers.engine.transfer import upload

_SMALL_ROWS = 16  # rows of a tile: the least that a tensor core takes
_LARGE_ROWS = 64
_MIN_SEGMENT = 128  # keys
_MAX_SEGMENTS = 256
_MAX_BLOCK_N = 64  # keys that a program takes at once
_KEY_BYTES = 16_384  # of shared memory, for as many keys
_PROGRAMS_PER_PROCESSOR = 4


def segment_tokens(max_model_len: int) -> int:
    """Keys of a segment: a constant of the deployment, since a row's bits depend on it."""
    return max(_MIN_SEGMENT, int(triton.next_power_of_2(-(-max_model_len // _MAX_SEGMENTS))))


@dataclass(frozen=True, slots=True)
class _Launch:
    """Some of the batch's sequences, in tiles."""

    tiles: Tensor | None  # [tiles, 2] int64, sequence and first query; None = one query of each sequence
    num_tiles: int
    block_q: int
    block_m: int
    segment: int  # 0 = not cut


class TritonAttention:
    """A row's bits depend on its own sequence, and on whether it was fed among few tokens or many.

    With `uniform` they don't depend on the latter either: prefill is cut into small tiles and segments, too, which costs
    time and scratch memory.
    """

    name = "triton"

    def __init__(
        self, max_model_len: int, *, uniform: bool = False, few_tokens: int = 16, num_programs: int | None = None
    ) -> None:
        """`num_programs` to aim at in decoding: None = enough for this GPU. It never changes a result."""
        self._segment = segment_tokens(max_model_len)
        self._few_tokens = (1 << 62) if uniform else few_tokens
        self._given_programs = num_programs
        self._batch: Batch | None = None
        self._launches: dict[int, list[_Launch]] = {}  # by query heads of a KV head

    def prepare(self, batch: Batch) -> None:
        """Forget the last step's tiles."""
        self._batch = batch
        self._launches.clear()

    def scratch_bytes(self, num_seqs: int, max_model_len: int, num_heads: int, value_dim: int) -> int:
        """Bytes of device memory that a step takes in which so many sequences decode."""
        num_segments = -(-max_model_len // self._segment)
        return num_seqs * num_heads * num_segments * (value_dim + 2) * 4 if num_segments > 1 else 0

    def attend(self, call: AttentionCall, cache: LayerCache) -> Tensor:
        """[T, heads, value dim] for all sequences of the batch."""
        batch = self._batch
        assert batch is not None, "prepare comes first"
        query, key, value = (_dense_rows(each) for each in (call.query, call.key, call.value))
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads, value_dim = value.shape[1:]
        kernels.write_pages[(num_tokens, num_kv_heads)](
            key,
            value,
            cache.keys,
            cache.values,
            batch.slot_mapping,
            key.stride(0),
            key.stride(1),
            value.stride(0),
            value.stride(1),
            HEAD_DIM=head_dim,
            HEAD_PAD=triton.next_power_of_2(head_dim),
            VALUE_DIM=value_dim,
            VALUE_PAD=triton.next_power_of_2(value_dim),
            num_warps=1,
        )
        output = torch.empty(num_tokens, num_heads, value_dim, dtype=query.dtype, device=query.device)
        group = num_heads // num_kv_heads
        if group not in self._launches:
            self._launches[group] = self._plan(batch, group)
        for launch in self._launches[group]:
            self._run(launch, call, query, cache, output, batch)
        return output

    def _run(
        self, launch: _Launch, call: AttentionCall, query: Tensor, cache: LayerCache, output: Tensor, batch: Batch
    ) -> None:
        num_heads, head_dim = query.shape[1:]
        num_kv_heads, value_dim = cache.values.shape[1:]
        num_segments = -(-max(batch.kv_lens) // launch.segment) if launch.segment else 1
        num_rows = launch.num_tiles * num_heads * launch.block_q
        scratch = (num_rows * num_segments) if num_segments > 1 else 0
        sums = torch.empty(scratch, value_dim, dtype=torch.float32, device=query.device)
        peaks, totals = torch.empty(2, scratch, dtype=torch.float32, device=query.device).unbind()
        num_programs = self._given_programs or self._enough_programs
        parts = max(1, min(num_segments, -(-num_programs // (launch.num_tiles * num_kv_heads))))
        row_bytes = triton.next_power_of_2(max(head_dim, value_dim)) * query.element_size()
        # Where nothing is given, something must be: it isn't read.
        sinks = query if call.sinks is None else call.sinks
        tiles = batch.seq_lens if launch.tiles is None else launch.tiles
        shape = {
            "VALUE_DIM": value_dim,
            "VALUE_PAD": max(16, triton.next_power_of_2(value_dim)),
            "GROUP": num_heads // num_kv_heads,
            "BLOCK_Q": launch.block_q,
            "BLOCK_M": launch.block_m,
            "SEGMENT": launch.segment,
            "HAS_TILES": launch.tiles is not None,
            "HAS_SINKS": call.sinks is not None,
            "HAS_WINDOW": call.sliding_window is not None,
        }
        kernels.attend_pages[(launch.num_tiles, num_kv_heads, parts)](
            query,
            cache.keys,
            cache.values,
            output,
            sums,
            peaks,
            totals,
            sinks,
            tiles,
            batch.query_starts,
            batch.seq_lens,
            batch.block_tables,
            call.scaling,
            call.softcap or 1.0,
            call.sliding_window or 0,
            query.stride(0),
            query.stride(1),
            batch.block_tables.stride(0),
            num_segments,
            HEAD_DIM=head_dim,
            HEAD_PAD=max(16, triton.next_power_of_2(head_dim)),
            BLOCK_SIZE=batch.block_size,
            BLOCK_N=max(16, min(_MAX_BLOCK_N, _KEY_BYTES // row_bytes)),
            HAS_SOFTCAP=call.softcap is not None,
            **shape,
            num_warps=4,
            num_stages=2,
        )
        if num_segments > 1:
            kernels.merge_segments[(launch.num_tiles, num_kv_heads)](
                output,
                sums,
                peaks,
                totals,
                sinks,
                tiles,
                batch.query_starts,
                batch.seq_lens,
                call.sliding_window or 0,
                num_segments,
                **shape,
                num_warps=4,
            )

    def _plan(self, batch: Batch, group: int) -> list[_Launch]:
        """Tiles for all sequences; those with few tokens first."""
        small = max(_SMALL_ROWS, triton.next_power_of_2(group))
        if all(length == 1 for length in batch.query_lens):
            return [_Launch(None, len(batch.query_lens), 1, small, self._segment)]
        large = max(_LARGE_ROWS, triton.next_power_of_2(group))
        launches = []
        for block_m, segment, is_few in ((small, self._segment, True), (large, 0, False)):
            block_q = block_m // group
            tiles = [
                (sequence, first)
                for sequence, length in enumerate(batch.query_lens)
                if (length <= self._few_tokens) == is_few
                for first in range(0, length, block_q)
            ]
            if tiles:
                device = batch.seq_lens.device
                launches.append(_Launch(upload(tiles, torch.int64, device), len(tiles), block_q, block_m, segment))
        return launches

    @cached_property
    def _enough_programs(self) -> int:
        return (
            torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
            * _PROGRAMS_PER_PROCESSOR
        )


def _dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
