"""How often has a sequence used each token? Kept on the device for the sequences that ask for penalties, and only those."""

from itertools import chain

import torch
from torch import Tensor

from workers.engine.sequence import Sequence
from workers.engine.transfer import upload


class TokenCounts:
    """A row per sequence, caught up from its tokens when it is looked at: preemption and resume need nothing special."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._generated = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)  # [rows, vocab] counts
        self._in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)  # [rows, vocab]
        self._rows: dict[int, int] = {}  # arrival -> row
        self._num_counted: dict[int, int] = {}  # arrival -> tokens of the sequence that are in its row
        self._free: list[int] = []

    def forget(self, arrivals: list[int]) -> None:
        """Give up the rows of sequences that left."""
        for arrival in arrivals:
            row = self._rows.pop(arrival, None)
            if row is not None:
                del self._num_counted[arrival]
                self._free.append(row)

    def of(self, sequences: list[Sequence]) -> tuple[Tensor, Tensor]:
        """Counts of generated tokens [S, vocab] int32, and which tokens are in the prompt [S, vocab] bool.

        Both are copies; a sequence may be asked for more than once.
        """
        device = self._generated.device
        rows = upload([self._row(sequence) for sequence in sequences], torch.int64, device)
        unique = list({sequence.arrival: sequence for sequence in sequences}.values())
        fresh = [sequence.token_ids[self._num_counted[sequence.arrival] :] for sequence in unique]
        if any(fresh):
            targets = [self._rows[each.arrival] for each, tokens in zip(unique, fresh, strict=True) for _ in tokens]
            at = upload(targets, torch.int64, device), upload(list(chain.from_iterable(fresh)), torch.int64, device)
            ones = torch.ones(len(targets), dtype=torch.int32, device=device)
            self._generated.index_put_(at, ones, accumulate=True)
            for sequence in unique:
                self._num_counted[sequence.arrival] = len(sequence.token_ids)
        return self._generated[rows], self._in_prompt[rows]

    def _row(self, sequence: Sequence) -> int:
        row = self._rows.get(sequence.arrival)
        if row is None:
            if not self._free:
                self._enlarge()
            row = self._free.pop()
            self._generated[row] = 0
            self._in_prompt[row] = False
            prompt = upload(sequence.token_ids[: sequence.num_prompt_tokens], torch.int64, self._in_prompt.device)
            self._in_prompt[row].index_fill_(0, prompt, True)
            self._rows[sequence.arrival] = row
            self._num_counted[sequence.arrival] = sequence.num_prompt_tokens
        return row

    def _enlarge(self) -> None:
        num_rows = len(self._generated)
        more = max(4, num_rows)
        self._generated = torch.cat([self._generated, self._generated.new_zeros(more, self._generated.shape[1])])
        self._in_prompt = torch.cat([self._in_prompt, self._in_prompt.new_zeros(more, self._in_prompt.shape[1])])
        self._free += range(num_rows + more - 1, num_rows - 1, -1)
