"""What were a finished job's readers told, and in which order? Packed to be kept with its result, when Redis has long forgotten it."""

from array import array
from collections.abc import Iterator
from sys import byteorder

import msgspec

from app.queue.events import ChoiceDelta, TokenLogprob


class Step(msgspec.Struct, frozen=True, array_like=True):
    """What readers were told of one choice at once."""

    choice: int
    num_tokens: int
    num_chars: int
    is_finished: bool = False


class Trace(msgspec.Struct, frozen=True, array_like=True):
    """A run as it was told. The texts and the reasons of finishes are the result's: they aren't kept twice."""

    run: int
    steps: list[Step]
    token_ids: list[bytes]  # of each choice, int32 little endian

    @classmethod
    def of(cls, run: int, steps: list[Step], token_ids: list[list[int]]) -> "Trace":
        """The trace of these tokens, by choice."""
        return cls(run, steps, [_packed(each) for each in token_ids])

    def pack(self) -> bytes:
        """As it is stored."""
        return _encode(self)

    @classmethod
    def unpack(cls, stored: bytes) -> "Trace":
        """What `pack` has made. Raises msgspec.DecodeError where that isn't so."""
        return _decode(stored)

    def deltas(
        self, texts: list[str], reasons: list[str | None], logprobs: list[list[TokenLogprob]]
    ) -> Iterator[ChoiceDelta]:
        """All that was told, in order. The lists are by choice."""
        tokens = [_unpacked(each) for each in self.token_ids]
        token_places, char_places = [0] * len(tokens), [0] * len(tokens)
        for step in self.steps:
            choice = step.choice
            offset, start = token_places[choice], char_places[choice]
            token_places[choice] += step.num_tokens
            char_places[choice] += step.num_chars
            yield ChoiceDelta(
                choice=choice,
                offset=offset,
                token_ids=tokens[choice][offset : token_places[choice]],
                text=texts[choice][start : char_places[choice]],
                text_offset=start,
                finish_reason=reasons[choice] if step.is_finished else None,
                logprobs=logprobs[choice][offset : token_places[choice]],
            )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Trace).decode


def _packed(token_ids: list[int]) -> bytes:
    packed = array("i", token_ids)
    if byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpacked(stored: bytes) -> list[int]:
    packed = array("i")
    packed.frombytes(stored)
    if byteorder == "big":
        packed.byteswap()
    return packed.tolist()
