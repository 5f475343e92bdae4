"""What does the model see of a plan? Flat tensors: all sequences' tokens back to back, without padding."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from workers.engine.scheduler import Chunk


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass. T = tokens, S = sequences, R = rows that sample, B = blocks of the longest block table."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, each token's place in its sequence
    slot_mapping: Tensor  # [T] int64, KV slot that each token writes: block * block_size + place in the block
    sample_rows: Tensor  # [R] int64, the tokens whose logits are wanted
    block_tables: Tensor  # [S, B] int64, padded with 0 (never read past kv_lens)
    query_lens: list[int]  # [S] tokens fed in this step
    kv_lens: list[int]  # [S] tokens in the pool after this step
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
    return Batch(
        input_ids=torch.from_numpy(input_ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        slot_mapping=torch.from_numpy(slot_mapping).to(device),
        sample_rows=torch.from_numpy(sample_rows).to(device),
        block_tables=torch.from_numpy(tables).to(device),
        query_lens=query_lens,
        kv_lens=kv_lens,
        block_size=block_size,
    )
