"""What was the engine doing when it died? A record in shared memory, written before each step, read by the parent after a death."""

import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Sequence

import msgspec

# (members of the step, those of them that haven't brought forth a token yet), request ids, right before it is run
Recorder = Callable[[Sequence[str], Sequence[str]], None]

_SLOT_BYTES = 1 << 18
_HEADER_BYTES = 8
_LENGTH = struct.Struct("!I")


class FlightRecord(msgspec.Struct, frozen=True, array_like=True):
    """One step, as it was about to be run. Empty members: not known."""

    step: int
    members: list[str]
    admitted: list[str]  # of the members, those that were still to bring their first token


def no_record(members: Sequence[str], admitted: Sequence[str]) -> None:
    """Nobody wants to know."""


def open_record() -> int:
    """A nameless file for one engine's records; both processes map it. Close it when the engine is gone."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("penstock-flight")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _HEADER_BYTES + 2 * _SLOT_BYTES)
    return descriptor


class FlightRecorder:
    """The writer. There are two slots: a process that dies while it fills one leaves the other as it was."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _HEADER_BYTES + 2 * _SLOT_BYTES)
        self._encoder = msgspec.msgpack.Encoder()
        self._num_written = 0

    def __call__(self, members: Sequence[str], admitted: Sequence[str]) -> None:
        """Record the step that comes."""
        self._num_written += 1
        body = self._encoder.encode(FlightRecord(self._num_written, list(members), list(admitted)))
        if len(body) + _LENGTH.size > _SLOT_BYTES:
            body = self._encoder.encode(FlightRecord(self._num_written, [], []))
        slot = self._num_written % 2
        start = _HEADER_BYTES + slot * _SLOT_BYTES
        self._memory[start : start + _LENGTH.size + len(body)] = _LENGTH.pack(len(body)) + body
        self._memory[0] = slot + 1  # one byte, so whole at any time: from here on the new one counts


def read_record(descriptor: int) -> FlightRecord | None:
    """The last whole record; None where there is none."""
    with mmap.mmap(descriptor, _HEADER_BYTES + 2 * _SLOT_BYTES, prot=mmap.PROT_READ) as memory:
        slot = memory[0]
        if slot not in {1, 2}:
            return None
        start = _HEADER_BYTES + (slot - 1) * _SLOT_BYTES
        (length,) = _LENGTH.unpack(memory[start : start + _LENGTH.size])
        body = memory[start + _LENGTH.size : start + _LENGTH.size + min(length, _SLOT_BYTES)]
    try:
        return msgspec.msgpack.decode(body, type=FlightRecord)
    except msgspec.DecodeError:
        return None  # a process that runs wild may write anywhere
