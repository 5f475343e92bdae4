"""What does the model see of a plan? Flat tensors: all sequences' tokens back to back, without padding.

All of them travel to the device in one piece.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from workers.engine.scheduler import Chunk
from workers.engine.transfer import to_device


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass. T = tokens, S = sequences, R = rows that sample, B = blocks of the longest block table."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, each token's place in its sequence
    slot_mapping: Tensor  # [T] int64, KV slot that each token writes: block * block_size + place in the block
    sample_rows: Tensor  # [R] int64, the tokens whose logits are wanted
    block_tables: Tensor  # [S, B] int64, padded with 0 (never read past kv_lens)
    query_starts: Tensor  # [S + 1] int64, where each sequence's tokens begin; the last one is T
    seq_lens: Tensor  # [S] int64, tokens in the pool after this step
    query_lens: list[int]  # [S] tokens fed in this step
    kv_lens: list[int]  # [S] at least seq_lens, which only a backend on a GPU may tell from it
    block_size: int


def build_batch(chunks: list[Chunk], block_size: int, device: torch.device) -> Batch:
    """Lay out the chunks of one step (at least one)."""
    query_lens = [chunk.num_fed for chunk in chunks]
    kv_lens = [chunk.start + chunk.num_fed for chunk in chunks]
    num_tokens = sum(query_lens)
    input_ids = np.fromiter(
        chain.from_iterable(
            [*chunk.sequence.token_ids[chunk.start : chunk.start + chunk.count], *chunk.guess] for chunk in chunks
        ),
        dtype=np.int64,
        count=num_tokens,
    )
    counts = np.asarray(query_lens, dtype=np.int64)
    ends = np.cumsum(counts)
    rows = np.repeat(np.arange(len(chunks)), counts)
    # Place in the step minus the place where its sequence begins, plus where the sequence's chunk starts.
    starts = np.asarray([chunk.start for chunk in chunks], dtype=np.int64)
    positions = np.arange(num_tokens) + (starts - (ends - counts))[rows]
    tables = np.zeros((len(chunks), max(len(chunk.sequence.block_table) for chunk in chunks)), dtype=np.int64)
    for table, chunk in zip(tables, chunks, strict=True):
        table[: len(chunk.sequence.block_table)] = chunk.sequence.block_table
    slot_mapping = tables[rows, positions // block_size] * block_size + positions % block_size
    # Of a chunk that samples: its last pending token and the guessed ones.
    sample_rows = np.asarray(
        [
            row
            for chunk, end in zip(chunks, ends.tolist(), strict=True)
            if chunk.samples
            for row in range(end - 1 - len(chunk.guess), end)
        ],
        dtype=np.int64,
    )
    flat = [
        input_ids,
        positions,
        slot_mapping,
        sample_rows,
        tables.ravel(),
        np.concatenate([[0], ends]),
        np.asarray(kv_lens, dtype=np.int64),
    ]
    packed = to_device(torch.from_numpy(np.concatenate(flat)), device)
    parts = packed.split_with_sizes([len(part) for part in flat])
    return Batch(
        input_ids=parts[0],
        positions=parts[1],
        slot_mapping=parts[2],
        sample_rows=parts[3],
        block_tables=parts[4].view(tables.shape),
        query_starts=parts[5],
        seq_lens=parts[6],
        query_lens=query_lens,
        kv_lens=kv_lens,
        block_size=block_size,
    )
