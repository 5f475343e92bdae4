"""What are the keys of many rows at once? `noise.row_key` by numpy, apart from it: whoever draws one by one doesn't load numpy."""

import numpy as np
from numpy.typing import NDArray

from workers.engine.noise import GOLDEN


def row_keys(
    seeds: NDArray[np.uint64], choices: NDArray[np.uint64], positions: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """`row_key` of many rows [R]."""
    one, golden = np.uint64(1), np.uint64(GOLDEN)
    key = _mix_all(seeds + golden)  # unsigned arrays wrap around
    key = _mix_all(key + (choices + one) * golden)
    return _mix_all(key + (positions + one) * golden)


def _mix_all(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
