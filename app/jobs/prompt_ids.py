"""How is a prompt kept? As 32-bit integers, little endian, whichever machine writes them."""

import sys
from array import array
from collections.abc import Sequence


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as `job_inputs.prompt_ids` has them.

    Raises:
        OverflowError: one isn't a signed 32-bit integer.
    """
    packed = array("i", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """The ids that `pack_ids` has written."""
    packed = array("i")
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()
