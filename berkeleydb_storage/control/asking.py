"""A storage that another process owns, asked over the control socket in its directory.

`ControlSource` is a `Source`. Each call is a connection of its own: it holds nothing, and any thread may use it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from berkeleydb_storage.backup.source import Chunk, Copied, Moment
from berkeleydb_storage.control import protocol
from berkeleydb_storage.control.protocol import CONTROL, ERROR, HEADER, RESULT
from berkeleydb_storage.control.values import Live, to_copied, to_live, to_moment
from berkeleydb_storage.errors import AccessDenied, OwnerGone, WireError
from berkeleydb_storage.files import Position
from berkeleydb_storage.transport import unix

TIMEOUT = 60.0
"""Default seconds that the owner may take for what it does at once."""
LONG = 10
"""Times as long may it take until it goes on with a copy: a checkpoint comes first."""


class ControlSource:
    """The storage of another process.

    Errors are those that the owner raises, with their texts. Beside them every method raises `OwnerGone` where nobody
    answers, or answers no longer, `AccessDenied` where the owner belongs to somebody else, and `WireError` where what
    answers is no owner.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = TIMEOUT) -> None:
        """Ask nothing yet.

        Args:
            path: the directory.
            timeout: seconds that the owner may take for what it does at once; default 60.
        """
        self._path = Path(path).absolute()
        self._timeout = timeout

    @property
    def path(self) -> Path:
        """The directory of the storage, absolute."""
        return self._path

    def ping(self) -> int:
        """Return the owner's process id, as soon as it answers."""
        return protocol.number(self._ask("ping"))

    def statistics(self) -> Live:
        """Return the figures of the owner."""
        return to_live(self._ask("statistics"))

    def look(self) -> Moment:
        """Return the state of now, as `Source` says."""
        return to_moment(self._ask("look"))

    def copy(self) -> Generator[Chunk, None, Copied]:
        """Give all tables and their log, as `Source` says; one at a time."""
        return to_copied((yield from self._stream(LONG, "copy")))

    def log(self, start: Position, end: Position) -> Iterator[Chunk]:
        """Give the log from `start` to `end`, as `Source` says."""
        return self._stream(1, "log", start, end)

    def hold(self, holder: str, start: Position, limit: int) -> None:
        """Keep the log from `start` on, as `Source` says."""
        self._ask("hold", holder, start, limit)

    def release(self, holder: str) -> None:
        """Keep no log for `holder` any more."""
        self._ask("release", holder)

    def held(self, holder: str) -> Position | None:
        """Return from where on the log is kept for `holder`, as `Source` says."""
        found = self._ask("held", holder)
        return None if found is None else protocol.position(found)

    def _ask(self, name: str, *arguments: object) -> Any:
        with closing(self._stream(1, name, *arguments)) as answer:
            try:
                next(answer)
            except StopIteration as end:
                return end.value
            raise WireError(f"files come for an answer to {name}: look who listens in {self._path}")

    def _stream(self, patience: float, name: str, *arguments: object) -> Generator[Chunk, None, Any]:
        """Ask; yield the bytes of files that come, and return the result."""
        request = protocol.encode_request(name, *arguments)
        with self._connected() as sock:
            with self._explaining():
                sock.settimeout(self._timeout * patience)
                with suppress(BrokenPipeError, ConnectionResetError):  # who refuses does not read: the answer is there
                    sock.sendall(request)
            while True:
                with self._explaining():
                    kind, length = protocol.decode_header(_read(sock, HEADER.size))
                    body = _read(sock, length)
                if kind == ERROR:
                    raise protocol.decode_error(body)
                if kind == RESULT:
                    return protocol.decode_result(body)
                yield Chunk(*protocol.decode_chunk(body))

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        try:
            sock = unix.connect(str(self._path / CONTROL), time.monotonic() + self._timeout)
        except PermissionError as error:
            raise AccessDenied(f"{self._path} may be asked by its user and root: be one ({error.strerror})") from error
        except OSError as error:
            raise OwnerGone(f"no process that has {self._path} open answers, try again ({error.strerror})") from error
        with sock:
            yield sock

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Raise `OwnerGone` in place of an error of the connection."""
        try:
            yield
        except TimeoutError as error:
            raise OwnerGone(f"the process that has {self._path} open does not answer: is it stopped?") from error
        except OSError as error:
            raise OwnerGone(f"the process that had {self._path} open has ended or closed it: try again") from error


def _read(sock: socket.socket, length: int) -> bytes:
    """Read so many bytes, or raise an `OSError`."""
    data = bytearray(length)
    with memoryview(data) as view:
        done = 0
        while done < length:
            read = sock.recv_into(view[done:])
            if not read:
                raise ConnectionResetError
            done += read
    return bytes(data)
