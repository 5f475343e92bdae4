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


def fill_up(batch: Batch, num_tokens: int, num_samples: int, trash_block: int) -> Batch:
    """The same batch with so many tokens and rows that sample, at the least; what is added stands on the trash page.

    Each token that is added is a sequence of its own; each row, the first token once more.
    """
    more = max(0, num_tokens - len(batch.input_ids))
    more_samples = max(0, num_samples - len(batch.sample_rows))
    zeros = batch.input_ids.new_zeros(more)
    tables = batch.block_tables.new_full((more, batch.block_tables.shape[1]), trash_block)
    last = batch.query_starts[-1:]
    return Batch(
        input_ids=torch.cat([batch.input_ids, zeros]),
        positions=torch.cat([batch.positions, zeros]),
        slot_mapping=torch.cat([batch.slot_mapping, zeros + trash_block * batch.block_size]),
        sample_rows=torch.cat([batch.sample_rows, batch.sample_rows.new_zeros(more_samples)]),
        block_tables=torch.cat([batch.block_tables, tables]),
        query_starts=torch.cat([batch.query_starts, last + torch.arange(1, more + 1, device=last.device)]),
        seq_lens=torch.cat([batch.seq_lens, zeros + 1]),
        query_lens=[*batch.query_lens, *[1] * more],
        kv_lens=[*batch.kv_lens, *[1] * more],
        block_size=batch.block_size,
    )
