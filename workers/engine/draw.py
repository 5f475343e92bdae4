"""Which token does a row draw from its scores? Filters (top-k, top-p, min-p), then the Gumbel-max trick.

All of a row's result depends on that row alone, bit by bit: its noise is a hash of its key and the token id, and no
reduction here runs across rows or is split by their number.
Source: E. Gumbel, "Statistical Theory of Extreme Values", 1954; the integer hash is C. Wellons' lowbias32, 2018.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_NUM_CANDIDATES = (128, 1024)  # of the best tokens: nearly every filter makes its cut among these


@dataclass(frozen=True, slots=True)
class Filters:
    """Per row, [R] each."""

    top_k: Tensor  # int64, vocab size = no limit
    top_p: Tensor  # float32, 1 = no limit
    min_p: Tensor  # float32, 0 = no limit

    def pick(self, rows: Tensor) -> "Filters":
        """The filters of some rows."""
        return Filters(self.top_k[rows], self.top_p[rows], self.min_p[rows])


def draw(scores: Tensor, keys: Tensor) -> Tensor:
    """Token ids [R] drawn from softmax(scores); scores [R, vocab] float32, keys [R, 2] int32 (see `noise.row_key`)."""
    ids = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device)
    return (scores + gumbel(keys, ids)).argmax(dim=-1)


def draw_filtered(scores: Tensor, keys: Tensor, filters: Filters) -> Tensor:
    """Like `draw`, from the tokens that all filters let through: top-k, then top-p of what is left, and min-p.

    Tokens are ranked by score, the lower id first among equals. Sorting a whole vocabulary is slow, so the cut is
    looked for among the best candidates, and only rows where it lies beyond (or among equals of the last) are sorted.
    """
    tokens, settled = draw_quickly(scores, keys, filters)
    rest = (~settled).nonzero().squeeze(1)
    if len(rest):
        tokens[rest] = draw_widely(scores[rest], keys[rest], filters.pick(rest))
    return tokens


def draw_quickly(scores: Tensor, keys: Tensor, filters: Filters) -> tuple[Tensor, Tensor]:
    """The tokens of `draw_filtered` [R], as far as they can be had without the host, and where that is so [R] bool."""
    num_candidates = min(_NUM_CANDIDATES[0], scores.shape[1])
    return _draw_among(scores, scores.log_softmax(dim=-1), keys, filters, num_candidates)


def draw_widely(scores: Tensor, keys: Tensor, filters: Filters) -> Tensor:
    """The tokens of `draw_filtered` [R] for rows that `draw_quickly` leaves open."""
    vocab_size = scores.shape[1]
    log_probs = scores.log_softmax(dim=-1)
    tokens = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
    rest = torch.arange(len(scores), device=scores.device)
    for num_candidates in (*_NUM_CANDIDATES[1:], vocab_size):
        tokens[rest], settled = _draw_among(
            scores[rest], log_probs[rest], keys[rest], filters.pick(rest), min(num_candidates, vocab_size)
        )
        rest = rest[~settled]
        if len(rest) == 0:
            break
    return tokens


def _draw_among(
    scores: Tensor, log_probs: Tensor, keys: Tensor, filters: Filters, num_candidates: int
) -> tuple[Tensor, Tensor]:
    """Token ids [R], and whether a row's cut lies so far inside of the candidates that the others don't matter."""
    if num_candidates < scores.shape[1]:
        ids = scores.topk(num_candidates, dim=-1, sorted=False).indices.sort(dim=-1).values
        best, order = scores.gather(1, ids).sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(1, order)
    else:
        best, ids = scores.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(num_candidates, device=scores.device)
    in_top_k = rank < filters.top_k[:, None]
    # Probabilities after top-k. Where k reaches beyond the candidates, the row's own normaliser is the right one.
    within = best.masked_fill(~in_top_k, float("-inf")).log_softmax(dim=-1)
    is_cut = (filters.top_k <= num_candidates)[:, None]
    probs = torch.where(is_cut, within, log_probs.gather(1, ids)).exp()
    before = probs.cumsum(dim=-1) - probs
    kept = in_top_k & ((before < filters.top_p[:, None]) | (filters.top_p[:, None] >= 1))
    kept &= best - best[:, :1] >= filters.min_p[:, None].log()
    kept[:, 0] = True
    num_kept = kept.sum(dim=-1)
    noisy = (best + gumbel(keys, ids.to(torch.int32))).masked_fill(~kept, float("-inf"))
    tokens = ids.gather(1, noisy.argmax(dim=-1, keepdim=True)).squeeze(1)
    if num_candidates == scores.shape[1]:
        return tokens, torch.ones_like(num_kept, dtype=torch.bool)
    last = best.gather(1, num_kept[:, None] - 1).squeeze(1)
    return tokens, last > best[:, -1]


def gumbel(keys: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise [R, C] float32 for keys [R, 2] int32 and token ids [C] or [R, C] int32."""
    # 32-bit arithmetic that wraps around; `>>` keeps the sign in PyTorch, so its copies are masked away.
    x = ids + keys[:, :1]
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x ^ keys[:, 1:]
    x = x * (0x846CA68B - (1 << 32))
    x = x ^ ((x >> 16) & 0xFFFF)
    # Uniform in (0, 1), finest near 0, which is where the large noise comes from.
    uniform = x.to(torch.float32)
    uniform = torch.where(x < 0, uniform + 2.0**32, uniform)
    uniform = ((uniform + 0.5) * 2.0**-32).clamp_(max=1 - 2.0**-24)
    return -torch.log(-torch.log1p(-uniform))
