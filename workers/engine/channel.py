"""How does the engine's process talk to its parent, without deadlock, and notice its death?"""

import ctypes
import os
import select
import signal
import socket
import sys
import threading

from workers.engine import wire

PARENT_GONE_STATUS = 3  # the exit status of a child that lost its parent

_RECEIVE_BYTES = 1 << 18
_PR_SET_PDEATHSIG = 1


class ParentGone(Exception):  # the end of the child's life, not an error
    """The parent closed its end of the socket."""


class Channel:
    """The child's end of the socket, for one thread."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._buffer = bytearray()
        self._bodies: list[bytes] = []
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def receive(self, *, block: bool) -> list[bytes]:
        """The bodies of the frames that have come; with `block`, at least one. Raises ParentGone."""
        while self._poll.poll(None if block and not self._bodies else 0):
            self._read()
        bodies, self._bodies = self._bodies, []
        return bodies

    def send(self, data: bytes) -> None:
        """Send all of `data`; gives up when told to stop. Raises ParentGone.

        It reads while it waits: a parent that lags in reading may be waiting to write.
        """
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                self._poll.modify(self._socket, select.POLLIN | select.POLLOUT)
                readable = any(events & select.POLLIN for _, events in self._poll.poll())
                self._poll.modify(self._socket, select.POLLIN)
                if readable:
                    self._read()
                if wire.STOP_BODY in self._bodies:
                    return
            except (BrokenPipeError, ConnectionResetError):
                raise ParentGone from None

    def _read(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            raise ParentGone from None
        if not data:
            raise ParentGone
        self._buffer += data
        self._split()

    def _split(self) -> None:
        start = 0
        while len(self._buffer) - start >= wire.LENGTH_BYTES:
            body_start = start + wire.LENGTH_BYTES
            end = body_start + wire.frame_length(self._buffer[start:body_start])
            if len(self._buffer) < end:
                break
            self._bodies.append(bytes(self._buffer[body_start:end]))
            start = end
        del self._buffer[:start]


def die_with_parent(connection: socket.socket, parent_pid: int) -> None:
    """Make this process exit at once when its parent goes, even in the middle of a forward pass.

    The kernel's signal is the fast way (Linux). A thread that waits for the hangup of the socket is the sure one: it
    also sees a parent that is alive and has closed its end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before the request to be told
            os._exit(PARENT_GONE_STATUS)
    threading.Thread(target=_exit_on_hangup, args=(connection.fileno(),), name="watchdog", daemon=True).start()


def die_with_spawner() -> None:
    """Make a process that multiprocessing spawned end with the one that spawned it, however that ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Its pid isn't known yet while the main module is imported; one that is an orphan already belongs to init.
        if os.getppid() == 1:
            os._exit(PARENT_GONE_STATUS)


def _exit_on_hangup(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, getattr(select, "POLLRDHUP", 0))  # POLLHUP is always reported
    poll.poll()
    os._exit(PARENT_GONE_STATUS)
