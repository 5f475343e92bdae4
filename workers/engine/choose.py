"""Which token does each row get, once its logits are what they should be? Greedy or drawn, on the device, without the host.

All that the host has to say is said beforehand, for as many steps as are to come.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from workers.engine.draw import Filters, draw, draw_quickly, draw_widely
from workers.engine.noise_rows import row_keys
from workers.engine.protocol import SamplingParams
from workers.engine.sequence import Sequence
from workers.engine.transfer import to_device, upload

_MIN_TEMPERATURE = 1e-5  # less is greedy: dividing by it would overflow

Argmax = Callable[[Tensor], Tensor]  # scores [R, vocab] float32 -> the place of each row's highest [R] int64


def torch_argmax(scores: Tensor) -> Tensor:
    """PyTorch's own, for any device."""
    return scores.argmax(dim=-1)


class Chooser:
    """Chooses tokens for the same rows, in one step or several."""

    def __init__(
        self,
        sequences: list[Sequence],
        lens: list[int],
        vocab_size: int,
        device: torch.device,
        argmax: Argmax,
        steps: int = 1,
    ) -> None:
        """`lens` [R] are the places at which the first step's tokens will stand; each further step's are one on."""
        self._num_rows = len(sequences)
        self._device = device
        self._argmax = argmax
        params = [sequence.sampling for sequence in sequences]
        drawn = [row for row, p in enumerate(params) if p.temperature >= _MIN_TEMPERATURE]
        self._num_drawn = len(drawn)
        if not drawn:
            return
        seeds, choices, first = (
            np.asarray([value[row] for row in drawn], dtype=np.uint64)
            for value in ([p.seed for p in params], [sequence.choice for sequence in sequences], lens)
        )
        keys = np.stack([row_keys(seeds, choices, first + np.uint64(step)) for step in range(steps)])
        halves = keys.astype("<u8").view("<i4").reshape(steps, len(drawn), 2)
        self._keys = to_device(torch.from_numpy(halves), device)  # [steps, drawn, 2] int32
        self._rows = upload(drawn, torch.int64, device)
        self._temperature = upload([params[row].temperature for row in drawn], torch.float32, device)
        is_filtered = [_is_filtered(params[row], vocab_size) for row in drawn]
        plain = [place for place, flag in enumerate(is_filtered) if not flag]
        filtered = [place for place, flag in enumerate(is_filtered) if flag]
        # Places among the drawn rows; None = nobody.
        self._plain = upload(plain, torch.int64, device) if plain else None
        self._filtered = upload(filtered, torch.int64, device) if filtered else None
        self._place_of = {drawn[place]: number for number, place in enumerate(filtered)}  # row -> among the filtered
        if filtered:
            self._filters = self._upload_filters([params[drawn[place]] for place in filtered], vocab_size)

    def __call__(self, logits: Tensor, step: int = 0) -> tuple[Tensor, Tensor]:
        """Token ids [R], and which of them are open [R] bool, so that `settle` must choose them; logits [R, vocab] float32."""
        is_open = torch.zeros(self._num_rows, dtype=torch.bool, device=self._device)
        if not self._num_drawn:
            return self._argmax(logits), is_open
        is_mixed = self._num_drawn < self._num_rows
        tokens = self._argmax(logits) if is_mixed else torch.empty_like(logits[:, 0], dtype=torch.int64)
        scores = logits[self._rows] / self._temperature[:, None]
        keys = self._keys[step]
        if self._plain is not None:
            tokens[self._rows[self._plain]] = draw(scores[self._plain], keys[self._plain])
        if self._filtered is not None:
            chosen, settled = draw_quickly(scores[self._filtered], keys[self._filtered], self._filters)
            rows = self._rows[self._filtered]
            tokens[rows] = chosen
            is_open[rows] = ~settled
        return tokens, is_open

    def settle(self, logits: Tensor, tokens: Tensor, rows: list[int]) -> Tensor:
        """The first step's tokens [R], those of `rows` chosen, which were open; the host may wait."""
        assert self._filtered is not None
        places = upload([self._place_of[row] for row in rows], torch.int64, self._device)
        drawn = self._filtered[places]
        at = self._rows[drawn]
        scores = logits[at] / self._temperature[drawn, None]
        tokens = tokens.clone()
        tokens[at] = draw_widely(scores, self._keys[0][drawn], self._filters.pick(places))
        return tokens

    def _upload_filters(self, params: list[SamplingParams], vocab_size: int) -> Filters:
        top_k = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params]
        return Filters(
            top_k=upload(top_k, torch.int64, self._device),
            top_p=upload([p.top_p for p in params], torch.float32, self._device),
            min_p=upload([p.min_p for p in params], torch.float32, self._device),
        )


def _is_filtered(sampling: SamplingParams, vocab_size: int) -> bool:
    return 0 < sampling.top_k < vocab_size or sampling.top_p < 1 or sampling.min_p > 0
