"""How many tokens may all sequences generate before the host looks at them, and in batches of which sizes?

Between two looks the device feeds each token that it chose to itself. Whoever ends in the meantime goes on to the end
of the round; those tokens are dropped. So the answer never changes an output, only when it is known.
"""

from typing import TYPE_CHECKING

from workers.engine.sequence import Sequence

if TYPE_CHECKING:
    from workers.engine.scheduler import Chunk

_FINE, _MEDIUM = 64, 256  # rows up to which batch sizes are 8 apart, and 16


def num_steps(chunks: "list[Chunk]", num_running: int, most: int, *, someone_waits: bool) -> int:
    """Steps for a plan, 1 to `most`: more than one only if every running sequence decodes and none needs the host.

    While someone waits for a place, it goes up to the first sequence whose length ends it, so that the place is taken at once.
    """
    if most <= 1 or not chunks or len(chunks) != num_running:
        return 1
    if any(chunk.count > 1 or not chunk.samples or chunk.guess or needs_host(chunk.sequence) for chunk in chunks):
        return 1
    remaining = [chunk.sequence.num_remaining for chunk in chunks]
    return max(1, min(most, min(remaining) if someone_waits else max(remaining)))


def needs_host(sequence: Sequence) -> bool:
    """Whether choosing a sequence's next token takes something that the host does, token by token."""
    sampling = sequence.sampling
    return (
        sampling.grammar is not None
        or bool(sampling.logit_bias)
        or bool(sampling.presence_penalty or sampling.frequency_penalty)
        or sampling.repetition_penalty != 1
        or sampling.logprobs is not None
        or sequence.num_generated < sampling.min_tokens
    )


def batch_sizes(most: int) -> list[int]:
    """The sizes that batches of up to `most` sequences are filled up to, ascending: few, and none far from the next."""
    sizes = [1, 2, 4, *range(8, _FINE, 8), *range(_FINE, _MEDIUM, 16), *range(_MEDIUM, most, 64)]
    return [size for size in sizes if size < most] + [most]


def fitting_size(sizes: list[int], num_rows: int) -> int | None:
    """The smallest of ascending `sizes` that holds so many rows; None if none does."""
    return next((size for size in sizes if size >= num_rows), None)
