"""In which order do lines run? Those that begin alike side by side, so that the prefix cache holds what they share."""

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from app.jobs.request import JobRequest

_FIRST_CHARS = 64  # shorter beginnings share no page of the cache worth speaking of
_GROWTH = 1.25
_MOST_CHARS = 2**20


def _cuts() -> Iterator[int]:
    length = float(_FIRST_CHARS)
    while length <= _MOST_CHARS:
        yield int(length)
        length *= _GROWTH


CUTS = tuple(_cuts())  # lengths in characters at which beginnings are compared: 44 of them up to a million


def prefix_key(model: str | None, text: str) -> bytes:
    """Sorts texts of one model that begin alike next to one another, however long they are, in at most 180 bytes.

    It is a row of sums, of the model and of the text's beginning at each cut. Two keys agree as far as their texts do, so between
    two texts that share the beginning up to a cut only such that share it, too, can stand. That two others have the same sum costs
    no more than a page of the cache that isn't shared, so that a sum that is made quickly is good enough.
    """
    sums, at = [zlib.crc32((model or "").encode())], 0
    for cut in CUTS[: bisect_right(CUTS, len(text))]:
        sums.append(zlib.crc32(text[at:cut].encode("utf-8", "surrogatepass"), sums[-1]))
        at = cut
    return struct.pack(f">{len(sums)}I", *sums)


def prompt_text(request: JobRequest) -> str:
    """What the model will see, near enough to compare beginnings."""
    if request.messages is not None:
        return "".join(f"{each.role}\n{each.content}\n" for each in request.messages)
    if isinstance(request.prompt, str):
        return request.prompt
    return " ".join(map(str, request.prompt or ()))


def ranks_of(keys: Sequence[bytes]) -> list[int]:
    """The place of each in the order of keys; those with equal keys keep the order in which they came."""
    ranks = [0] * len(keys)
    for rank, place in enumerate(sorted(range(len(keys)), key=lambda each: keys[each])):
        ranks[place] = rank
    return ranks
