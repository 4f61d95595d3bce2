"""A blocking socket with a buffer: whole messages in, whole messages out, or it is closed for good.

A channel is used by one thread at a time; `close` may be called by any.

Invariants:

1. After any failure in the middle of a message, an interrupt included, the channel is closed: nobody ever reads an
   answer that belongs to another request.
2. Nothing is waited for without end: silence may last for the time-out, and a message has to come at `SLOWEST` or
   faster.
3. A length that the other side claims costs no memory: only what has come does.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator

from berkeleydb_storage.errors import WireError
from berkeleydb_storage.protocol import HEADER

CHUNK = 1 << 16
"""Bytes that are asked for at once; most answers are shorter."""
LARGE_CHUNK = 1 << 20
"""The same, within a long message."""
PIECE = 1 << 20
"""Bytes that are joined and sent at once."""
FEW = 64
"""Parts of a message that are joined without ado."""
SLOWEST = 16 * 1024
"""Bytes a second; who sends a message more slowly is given up after the time-out."""
MAX_GREETING = 1 << 16
"""Bytes of a frame from a server that has not let the client in yet."""
MAX_FRAME = 1 << 30
"""Bytes of a frame from a server that has."""


_TIMEVAL = struct.Struct("@ll")


class ConnectionLost(ConnectionError):
    """Raised when a connection broke, or was silent for too long.

    Attributes:
        unsent: the message that was to be sent did not go out whole, so the other side cannot act on it.
    """

    def __init__(self, message: str, *, unsent: bool = False) -> None:
        super().__init__(message)
        self.unsent = unsent


class Channel:
    """A connected socket, which it owns."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        """Take over a socket.

        Args:
            sock: connected; blocking or not.
            timeout: seconds of silence, or of a message that cannot be sent, after which the connection is lost.
        """
        self._sock = sock
        self._timeout = timeout
        self._buffer = b""
        self._at = 0
        self._open = True
        self.limit = MAX_GREETING
        """Bytes that a frame may have."""
        self._set_timeout()

    def _set_timeout(self) -> None:
        """Have the kernel watch the time where it can: Python's own way takes a poll() before each call."""
        if type(self._sock).__module__ != "socket" or sys.platform != "linux":  # TLS, gevent
            self._sock.settimeout(self._timeout)
            return
        self._sock.settimeout(None)
        seconds, rest = divmod(self._timeout, 1)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(int(seconds), max(1, int(rest * 1e6))))

    def close(self) -> None:
        """Close the socket. Works twice, and in a forked child without an effect on the parent."""
        self._open = False
        self._sock.close()

    def send(self, parts: Iterable[bytes]) -> None:
        """Send a message.

        Args:
            parts: what it consists of; copied `PIECE` bytes at a time.

        Raises:
            ConnectionLost: it could not be sent whole.
        """
        parts = list(parts)
        if len(parts) <= FEW and sum(map(len, parts)) <= PIECE:
            self.send_bytes(b"".join(parts))
            return
        for piece in pieces(parts):
            self.send_bytes(piece)

    def send_bytes(self, message: bytes) -> None:
        """Send a short message, or a piece of one.

        Raises:
            ConnectionLost: it could not be sent whole.
        """
        try:
            self._sock.sendall(message)
        except OSError as error:
            raise self._lost(error, unsent=True) from error
        except BaseException:
            self.close()
            raise

    def receive(self) -> tuple[int, bytes]:
        """Return the type and the payload of the next frame.

        Raises:
            ConnectionLost: it did not come whole.
            WireError: it is empty, or longer than `limit`.
        """
        buffer = self._buffer
        if len(buffer) - self._at < HEADER.size:
            buffer = self._have(HEADER.size)
        length, kind = HEADER.unpack_from(buffer, self._at)
        if not 0 < length <= self.limit:
            self.close()
            raise WireError(f"a frame of the server has {length} bytes; it may have 1 to {self.limit}")
        self._at = at = self._at + HEADER.size
        if at + length - 1 == len(buffer):  # nearly always: one answer, and whole
            self._buffer, self._at = b"", 0
            return kind, buffer[at:]
        return kind, self.read(length - 1)

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            ConnectionLost: they did not come.
        """
        at, end = self._at, self._at + count
        if end > len(self._buffer):
            self._have(count)
            at, end = 0, count
        found = self._buffer[at:end]
        self._at = end
        if end == len(self._buffer):  # a long answer is not kept
            self._buffer, self._at = b"", 0
        return found

    def _have(self, count: int) -> bytes:
        """Have `count` bytes in the buffer, from its start, or close the channel; return the buffer."""
        try:
            return self._fill(count)
        except OSError as error:
            raise self._lost(error) from error
        except BaseException:
            self.close()
            raise

    def _fill(self, count: int) -> bytes:
        rest = self._buffer[self._at :]
        found = rest + self._recv(CHUNK)
        if len(found) < count:
            found = self._slowly(found, count)
        self._buffer, self._at = found, 0
        return found

    def _slowly(self, first: bytes, count: int) -> bytes:
        """Read on until there are `count` bytes, with an eye on the clock."""
        chunks, size = [first], len(first)
        deadline = time.monotonic() + self._timeout + count / SLOWEST
        while size < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the answer comes too slowly")
            self._sock.settimeout(min(left, self._timeout))
            chunks.append(self._recv(min(LARGE_CHUNK, max(CHUNK, count - size))))
            size += len(chunks[-1])
        self._set_timeout()
        return b"".join(chunks)

    def _recv(self, count: int) -> bytes:
        data = self._sock.recv(count)
        if not data:
            raise ConnectionError("the server closed the connection; its log says why")
        return data

    def _lost(self, error: OSError, *, unsent: bool = False) -> ConnectionLost:
        was_open, self._open = self._open, False
        self._sock.close()
        if not was_open:
            return ConnectionLost("the connection was closed", unsent=unsent)
        if isinstance(error, BlockingIOError) or (isinstance(error, TimeoutError) and not error.args[1:]):
            return ConnectionLost(f"no answer within {self._timeout:g} seconds", unsent=unsent)
        return ConnectionLost(str(error) or type(error).__name__, unsent=unsent)


def pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the parts joined to pieces of about `PIECE` bytes; what is longer stays as it is."""
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        if size and size + len(part) > PIECE:
            yield b"".join(waiting)
            waiting, size = [], 0
        waiting.append(part)
        size += len(part)
    if size:
        yield b"".join(waiting)
