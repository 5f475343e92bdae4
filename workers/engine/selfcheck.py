"""Does the paged forward pass compute what the model computes? Asked once, when a model is loaded.

Counting the calls (see `model`) finds models that bypass our attention. This finds those that use it and then need
something that it doesn't get, such as positions, a bias or another mask.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.protocol import SamplingParams
from workers.engine.scheduler import Chunk
from workers.engine.sequence import Sequence

NUM_TOKENS = 8
_MIN_SIMILARITY = {torch.float32: 0.999}  # cosine of the logits' deviations from their mean
_MIN_SIMILARITY_LOW_PRECISION = 0.9


@dataclass(frozen=True, slots=True)
class Reference:
    """What the model says by its own attention: tokens [8] and logits [8, vocab]."""

    token_ids: list[int]
    logits: Tensor


def probe_token_ids(vocab_size: int) -> list[int]:
    """Tokens from all over the vocabulary."""
    return [(number + 1) * vocab_size // (NUM_TOKENS + 1) for number in range(NUM_TOKENS)]


def probe_steps(token_ids: list[int], block_size: int) -> list[list[Chunk]]:
    """Two steps: a sequence in two chunks, the second one beside a sequence that stops earlier, behind it in the pool."""
    blocks = -(-NUM_TOKENS // block_size)
    whole = _sequence(token_ids, list(range(blocks)))
    part = _sequence(token_ids[:5], list(range(blocks, 2 * blocks)))
    return [
        [Chunk(whole, 0, 3, samples=True)],
        [Chunk(part, 0, 5, samples=True), Chunk(whole, 3, 5, samples=True)],
    ]


PROBE_ROWS = (2, 4, 7)  # the rows of the reference's logits that the steps give, in order


def similarity(got: Tensor, reference: Reference) -> float:
    """The worst row's likeness, 1 = the same; got [3, vocab], the rows of both steps. NaN counts as unlike."""
    want = reference.logits[list(PROBE_ROWS)].float()
    got = got.float()
    want, got = want - want.mean(dim=-1, keepdim=True), got - got.mean(dim=-1, keepdim=True)
    return float(torch.cosine_similarity(got, want, dim=-1).nan_to_num(nan=-1.0).min())


def is_alike(value: float, dtype: torch.dtype) -> bool:
    """Whether rounding explains the difference."""
    return value >= _MIN_SIMILARITY.get(dtype, _MIN_SIMILARITY_LOW_PRECISION)


def _sequence(token_ids: list[int], block_table: list[int]) -> Sequence:
    return Sequence(
        request_id="probe",
        choice=0,
        priority=0,
        arrival=0,
        sampling=SamplingParams(max_tokens=1),
        max_len=len(token_ids) + 1,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        block_table=block_table,
    )
