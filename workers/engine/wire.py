"""What goes over the socket between the engine's process and its parent? Frames: 4 bytes of length, then MessagePack.

The parent's first frame is an `EngineConfig`; the child answers `Ready` or `Failed`. From then on the parent sends
commands, and the child one `StepOutput` a step.
"""

import struct

import msgspec

from workers.engine.config import EngineConfig
from workers.engine.protocol import EngineInfo, Request, StepOutput
from workers.engine.tokenizer import TokenizerBundle

MAX_FRAME_BYTES = 1 << 30  # more than this is a broken stream, not a message
_LENGTH = struct.Struct("!I")
LENGTH_BYTES = _LENGTH.size


class Add(msgspec.Struct, frozen=True, tag="add", array_like=True):
    """Take a request in."""

    request: Request


class Abort(msgspec.Struct, frozen=True, tag="abort", array_like=True):
    """Forget a request, or one of its choices."""

    request_id: str
    choice: int | None = None


class Stop(msgspec.Struct, frozen=True, tag="stop", array_like=True):
    """Exit now, with status 0; what isn't finished is dropped."""


Command = Add | Abort | Stop


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded."""

    info: EngineInfo
    tokenizer: TokenizerBundle


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine can't start; the process exits."""

    code: str
    message: str


Hello = Ready | Failed

_encoder = msgspec.msgpack.Encoder()
_config_decoder = msgspec.msgpack.Decoder(EngineConfig)
_command_decoder = msgspec.msgpack.Decoder(Command)
_hello_decoder = msgspec.msgpack.Decoder(Hello)
_output_decoder = msgspec.msgpack.Decoder(StepOutput)


def frame(message: EngineConfig | Command | Hello | StepOutput) -> bytes:
    """A message with its length in front."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def frame_length(header: bytes | bytearray) -> int:
    """Bytes of the body that follows a header of LENGTH_BYTES; raises ValueError for what can't be one."""
    length: int = _LENGTH.unpack(header)[0]
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes: the stream is broken")
    return length


def decode_config(body: bytes) -> EngineConfig:
    """Raises msgspec.ValidationError, which names the field."""
    return _config_decoder.decode(body)


def decode_command(body: bytes) -> Command:
    """What the parent wants."""
    command: Command = _command_decoder.decode(body)
    return command


def decode_hello(body: bytes) -> Hello:
    """The child's first word."""
    hello: Hello = _hello_decoder.decode(body)
    return hello


def decode_output(body: bytes) -> StepOutput:
    """What a step brought forth."""
    return _output_decoder.decode(body)


STOP_BODY = frame(Stop())[LENGTH_BYTES:]
