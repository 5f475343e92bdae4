"""How do sequences that all decode run step after step, without the host in between?

Their tokens, positions and pages lie in buffers that stay where they are, filled up to one of a few batch sizes. A step
finds its slots by itself, so on a GPU it is a CUDA graph a size, replayed; elsewhere the same code runs as it is. Rows
that fill a batch up, and rows that are past what was reserved for them, write to the trash page, which nobody reads.
"""

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workers.engine.batch import Batch
from workers.engine.multistep import fitting_size
from workers.engine.scheduler import Chunk
from workers.engine.transfer import to_device

if TYPE_CHECKING:
    from workers.engine.runner import ForwardPass

logger = logging.getLogger(__name__)

_WARM_UP_STEPS = 2


@dataclass(frozen=True, slots=True)
class _Captured:
    """A step as a CUDA graph; each replay leaves its result in `logits` [rows, vocab]."""

    graph: torch.cuda.CUDAGraph
    logits: Tensor


class DecodeLoop:
    """One forward pass after the other over the same sequences."""

    def __init__(
        self,
        forward: "ForwardPass",
        device: torch.device,
        *,
        sizes: list[int],
        most_samples: int,
        block_size: int,
        max_model_len: int,
        trash_block: int,
    ) -> None:
        """`sizes` are the rows of a batch, ascending; of those, logits are computed for `most_samples` at most."""
        most = sizes[-1]
        self._forward = forward
        self._device = device
        self._sizes = sizes
        self._most_samples = most_samples
        self._block_size = block_size
        self._max_model_len = max_model_len
        self._trash_block = trash_block
        self._captured: dict[int, _Captured] = {}  # by size

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self._tokens = zeros(most)  # to be fed in the next step
        self._places = zeros(most)  # where they stand in their sequences
        self._limits = zeros(most)  # the last place that pages are reserved for; what comes after goes to the trash
        self._tables = zeros(most, -(-max_model_len // block_size)) + trash_block
        self._positions = zeros(most)
        self._slots = zeros(most)
        self._seq_lens = zeros(most)
        self._starts = torch.arange(most + 1, device=device)
        self._num_rows = 0
        self._size = 0
        self._host_places = np.zeros(0, dtype=np.int64)
        self._host_limits = np.zeros(0, dtype=np.int64)

    def start(self, chunks: list[Chunk], num_steps: int) -> bool:
        """Take over sequences, one pending token each, and go to the first step; False if there are too many."""
        size = fitting_size(self._sizes, len(chunks))
        if size is None or len(chunks) > self._most_samples:
            return False
        width = max(len(chunk.sequence.block_table) for chunk in chunks)
        packed = np.zeros((size, 3 + width), dtype=np.int64)
        packed[:, 3:] = self._trash_block
        for row, chunk in zip(packed[: len(chunks)], chunks, strict=True):
            sequence = chunk.sequence
            reserved = min(num_steps, max(1, sequence.num_remaining))
            row[:3] = sequence.token_ids[chunk.start], chunk.start, chunk.start + reserved - 1
            row[3 : 3 + len(sequence.block_table)] = sequence.block_table
        self._host_places, self._host_limits = packed[:, 1].copy(), packed[:, 2].copy()
        self._num_rows, self._size = len(chunks), size
        self._fill(to_device(torch.from_numpy(packed), self._device))
        return True

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Run the next step: logits [sequences, vocab], good until the next one."""
        captured = self._captured.get(self._size)
        if captured is not None:
            captured.graph.replay()
            logits = captured.logits
        else:
            kv_lens = (np.minimum(self._host_places, self._host_limits) + 1).tolist()
            logits = self._step(self._size, kv_lens)
        self._host_places += 1
        return logits[: self._num_rows]

    @torch.inference_mode()
    def feed(self, tokens: Tensor) -> None:
        """The tokens [sequences] that the next step is about."""
        self._tokens[: self._num_rows].copy_(tokens)
        self._places[: self._size].add_(1)

    def capture(self) -> None:
        """Make a CUDA graph for each size; where that fails, a warning, and steps run without."""
        began = time.monotonic()
        free_before, _ = torch.cuda.mem_get_info(self._device)
        try:
            self._capture_all()
        except (RuntimeError, NotImplementedError) as error:  # RuntimeError: CUDA's errors and out of memory are such
            self._captured.clear()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            logger.warning(
                "decoding runs without CUDA graphs, which is slower: this model can't be captured (%s)", error
            )
            return
        free_after, _ = torch.cuda.mem_get_info(self._device)
        logger.info(
            "%d CUDA graphs captured in %.1f s, %.0f MiB",
            len(self._captured),
            time.monotonic() - began,
            (free_before - free_after) / 2**20,
        )

    @torch.inference_mode()
    def _capture_all(self) -> None:
        pool = torch.cuda.graph_pool_handle()
        for done, size in enumerate(reversed(self._sizes)):  # the largest first: the others fit into its memory
            self._clear(size)
            kv_lens = [self._max_model_len] * size
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # kernels are compiled and workspaces made before anything is captured
                for _ in range(_WARM_UP_STEPS):
                    self._step(size, kv_lens)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self._step(size, kv_lens)
            self._captured[size] = _Captured(graph, logits)
            if done % 8 == 0:
                logger.info("capturing CUDA graphs: batch size %d, %d of %d", size, done + 1, len(self._sizes))

    def _clear(self, size: int) -> None:
        """Only rows that fill up."""
        packed = torch.zeros(size, 4, dtype=torch.int64)
        packed[:, 3] = self._trash_block
        self._fill(to_device(packed, self._device))

    @torch.inference_mode()
    def _fill(self, packed: Tensor) -> None:
        """Take tokens, places, limits and block tables [rows, 3 + blocks] over into the buffers."""
        size = len(packed)
        for column, buffer in enumerate((self._tokens, self._places, self._limits)):
            buffer[:size].copy_(packed[:, column])
        self._tables[:size, : packed.shape[1] - 3].copy_(packed[:, 3:])

    def _step(self, size: int, kv_lens: list[int]) -> Tensor:
        """Logits [samples, vocab] of the first rows; touches nothing but the buffers and the pool."""
        places, limits, tables = self._places[:size], self._limits[:size], self._tables[:size]
        positions = torch.minimum(places, limits)
        blocks = tables.gather(1, (positions // self._block_size)[:, None]).squeeze(1)
        blocks = blocks.masked_fill(places > limits, self._trash_block)
        self._positions[:size].copy_(positions)
        self._slots[:size].copy_(blocks * self._block_size + positions % self._block_size)
        self._seq_lens[:size].copy_(positions + 1)
        return self._forward(
            Batch(
                input_ids=self._tokens[:size],
                positions=self._positions[:size],
                slot_mapping=self._slots[:size],
                sample_rows=self._starts[: min(size, self._most_samples)],
                block_tables=tables,
                query_starts=self._starts[: size + 1],
                seq_lens=self._seq_lens[:size],
                query_lens=[1] * size,
                kv_lens=kv_lens,
                block_size=self._block_size,
            )
        )
