"""How does the worker run an engine in a process of its own? The parent's side; asyncio, no torch."""

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from workers.engine import wire
from workers.engine.config import EngineConfig
from workers.engine.errors import EngineDied, EngineStartFailed
from workers.engine.flight import FlightRecord, open_record, read_record
from workers.engine.protocol import EngineInfo, Request, StepOutput
from workers.engine.tokenizer import TokenizerBundle

_LOG_TAIL_BYTES = 8192
_SOCKET_BYTES = 1 << 20
_EXIT_S = 1.0  # from the end of its socket to its own
_ROOT = Path(__file__).parents[2]


class EngineProcess:
    """A running engine. Made by `start`; used by one event loop.

    Reading `async for output in engine` is what keeps it going: if nobody reads, the socket fills and the engine waits.
    """

    def __init__(
        self, process: Process, connection: "_Connection", log: "_Log", flight: "_Flight", ready: wire.Ready
    ) -> None:
        self._process = process
        self._flight = flight
        self._connection = connection
        self._log = log
        self._tokenizer = ready.tokenizer
        self._is_stopping = False
        self.info: EngineInfo = ready.info

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        log_path: Path | None = None,
        *,
        timeout_s: float = 600.0,
        python: Path | None = None,
    ) -> "EngineProcess":
        """Start a process and wait until its model is loaded. `python`: the interpreter to run it; None = our own.

        Its stderr is appended to `log_path`, or kept in a nameless file. Raises EngineStartFailed; a process that
        didn't get ready, also because this call was cancelled, is killed.
        """
        if python is not None and not os.access(python, os.X_OK):
            raise EngineStartFailed(f"{python} isn't an interpreter that can be run: check PENSTOCK_ENGINE_PYTHON")
        log = _Log(log_path)
        flight = _Flight()
        try:
            process, connection = await _spawn(log, flight, python)
        except BaseException:
            flight.close()
            log.close()
            raise
        try:
            async with asyncio.timeout(timeout_s):
                await connection.send(wire.frame(config))
                hello = wire.decode_hello(await connection.receive())
            if isinstance(hello, wire.Failed):
                raise EngineStartFailed(hello.message, log.tail(), hello.code)  # noqa: TRY301
        except (asyncio.IncompleteReadError, ConnectionError):
            returncode = await process.wait()
            await _end(process, connection)
            tail = log.close()
            flight.close()
            last_words = tail.rpartition("\n")[2]
            message = f"the engine's process ended with exit status {returncode} before it was ready: {last_words}"
            raise EngineStartFailed(message, tail) from None
        except TimeoutError:
            await _end(process, connection)
            flight.close()
            raise EngineStartFailed(f"the engine wasn't ready within {timeout_s:g} s", log.close()) from None
        except BaseException:
            await _end(process, connection)
            flight.close()
            log.close()
            raise
        return cls(process, connection, log, flight, hello)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def tokenizer(self) -> TokenizerBundle:
        """The model's tokenizer, template and special tokens."""
        return self._tokenizer

    @property
    def tokenizer_json(self) -> str:
        """For `tokenizers.Tokenizer.from_str`."""
        return self._tokenizer.tokenizer_json

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that turns messages into a prompt, if the model has one."""
        return self._tokenizer.chat_template

    def last_flight(self) -> FlightRecord | None:
        """What it was about to do when it was last heard of, also after its death, until `stop`; None: nothing yet."""
        return self._flight.read()

    async def add(self, request: Request) -> None:
        """Hand a request over; returns when the socket has room. Of a dead process the iteration tells, not this."""
        await self._send(wire.Add(request))

    async def abort(self, request_id: str, choice: int | None = None) -> None:
        """Make the engine forget a request or a choice; what it sent before that may still arrive."""
        await self._send(wire.Abort(request_id, choice))

    async def __aiter__(self) -> AsyncIterator[StepOutput]:
        """Each step's output. Ends after `stop`; raises EngineDied if the process ends otherwise, `kill` included.

        Cancelling loses nothing: the next iteration goes on with the next output. One reader at a time.
        """
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                yield wire.decode_output(await self._connection.receive())
        if not self._is_stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    _EXIT_S
                ):  # a kill that meets its exit would take the status from the watcher
                    await self._process.wait()
            self.kill()  # a process that closed its socket is of no use, whatever else it still does
            raise EngineDied(await self._process.wait(), self._log.tail())

    async def stop(self, grace_s: float = 5.0) -> int:
        """Ask it to exit, kill it after `grace_s` seconds; its exit status. Frees everything; may be called again."""
        self._is_stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._send(wire.Stop())
                await self._process.wait()
        returncode = await _end(self._process, self._connection)
        self._log.close()
        self._flight.close()
        return returncode

    def kill(self) -> None:
        """Kill -9 at once. Call `stop` afterwards to free what belongs to it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _send(self, command: wire.Command) -> None:
        with contextlib.suppress(ConnectionError):
            await self._connection.send(wire.frame(command))


class _Connection:
    """Frames over the parent's end of the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._pending_length: int | None = None  # of the body that comes next, if its header was read

    async def send(self, data: bytes) -> None:
        try:
            self._writer.write(data)
        except RuntimeError as error:  # uvloop's word for a closed connection; asyncio's own loop says nothing yet
            raise ConnectionResetError("the engine has closed its socket") from error
        await self._writer.drain()

    async def receive(self) -> bytes:
        if self._pending_length is None:
            self._pending_length = wire.frame_length(await self._reader.readexactly(wire.LENGTH_BYTES))
        body = await self._reader.readexactly(self._pending_length)
        self._pending_length = None
        return body

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class _Flight:
    """The flight record's memory, as long as its engine is of interest."""

    def __init__(self) -> None:
        self.descriptor = open_record()

    def read(self) -> FlightRecord | None:
        return None if self.descriptor < 0 else read_record(self.descriptor)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class _Log:
    """The child's stderr: a file that grows, of which an error shows the end."""

    def __init__(self, path: Path | None) -> None:
        self.file: BinaryIO = tempfile.TemporaryFile() if path is None else path.open("ab+")  # noqa: SIM115
        self._start = os.fstat(self.file.fileno()).st_size  # what is before it belongs to another process
        self._tail = ""

    def tail(self) -> str:
        if not self.file.closed:
            descriptor = self.file.fileno()
            # pread: a read that doesn't move the position, which a nameless file shares with its writer.
            start = max(self._start, os.fstat(descriptor).st_size - _LOG_TAIL_BYTES)
            self._tail = os.pread(descriptor, _LOG_TAIL_BYTES, start).decode(errors="replace").strip()
        return self._tail

    def close(self) -> str:
        tail = self.tail()
        self.file.close()
        return tail


async def _spawn(log: _Log, flight: _Flight, python: Path | None) -> tuple[Process, _Connection]:
    parent_end, child_end = socket.socketpair()
    try:
        for end in (parent_end, child_end):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        search_path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        process = await asyncio.create_subprocess_exec(
            sys.executable if python is None else str(python),
            "-P",  # a folder `workers` in the user's working directory isn't ours
            "-m",
            "workers.engine.child",
            str(child_end.fileno()),
            str(os.getpid()),
            str(flight.descriptor),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=log.file,
            pass_fds=[child_end.fileno(), flight.descriptor],
            env=os.environ | {"PYTHONPATH": search_path},
        )
        reader, writer = await asyncio.open_connection(sock=parent_end)
    except BaseException:
        parent_end.close()
        raise
    finally:
        child_end.close()
    return process, _Connection(reader, writer)


async def _end(process: Process, connection: _Connection) -> int:
    with contextlib.suppress(ProcessLookupError):
        process.kill()  # does nothing to one that has exited
    returncode = await process.wait()
    await connection.close()
    return returncode
