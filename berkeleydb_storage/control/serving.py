"""The control socket of an open storage, in the process that owns it.

A `Control` owns the file ``control`` in the directory, a thread that accepts, and one for each process that is just
being answered. `start` and `stop` are called by any thread, while the lock on the directory is held.

Invariants:

1. Only the user that this process runs as, and root, get an answer.
2. No bytes that come, and no process that does not read what it asked for, hurt the owner: all that is held for one who
   asks is a thread, a frame, and the log that he is to get, which he loses after `TAKING` seconds.
3. `stop` waits for no peer. When it returns, no thread is in the source any more.
4. A forked child has nothing of it: it does not answer, and keeps no connection open.
5. Where the socket cannot be made, the storage works without.

Killed at any point: the socket is left, and the next owner, who has the lock then, puts its own in its place.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from functools import cache, partial
from typing import Any
from weakref import WeakSet

from berkeleydb_storage.backup.source import Chunk, Source
from berkeleydb_storage.control import protocol
from berkeleydb_storage.control.protocol import CHUNK, CONTROL, ERROR, LONGEST_PART, LONGEST_REQUEST, RESULT, Request
from berkeleydb_storage.control.values import from_copied, from_moment
from berkeleydb_storage.errors import AccessDenied, BackupError, BerkeleyDBStorageError
from berkeleydb_storage.maintenance import background
from berkeleydb_storage.transport import unix

logger = logging.getLogger(__name__)

UMASK = 0o177
BACKLOG = 64
MOST = 32
"""Who are answered at a time; another one is told to wait."""
ASKING = 5.0
"""Seconds that a request may take to arrive."""
TAKING = 600.0
"""Seconds that a frame may take to be read."""
SENT = 32 << 10
"""Bytes that may be sent and not be taken yet: a copy rests in proportion to the time that writing it takes there."""
BREATH = 0.1
"""Seconds without accepting, where the process has no descriptor left."""
NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""The application may have given SIGPIPE its default back."""

Frame = tuple[bytes, bytes, bytes]
"""Kind, and the body in two parts."""


class _Gone(Exception):
    """Raised when who asks has gone, or neither sends nor takes what he should."""


class Control:
    """Answers other processes."""

    def __init__(self, source: Source, statistics: Callable[[], Mapping[str, Any]]) -> None:
        """Listen nowhere yet.

        Args:
            source: what is read from; any thread may call it.
            statistics: figures, as JSON has them; any thread may call it.
        """
        self._path = source.path.absolute()
        self._source = source
        self._statistics = statistics
        self._lock = threading.Lock()
        self._answers: dict[socket.socket, threading.Thread] = {}  # guarded by _lock
        self._thread: threading.Thread | None = None
        self._undo = ExitStack()
        self._waker: socket.socket | None = None
        self.names: set[str] = set()
        """What the sockets are bound to; a child finds by them what it has inherited."""

    def start(self) -> None:
        """Listen, in a thread. Where that is not possible it is logged."""
        try:
            with ExitStack() as undo:
                self._remove_leftovers()
                sock = unix.listen(str(self._path / CONTROL), BACKLOG, umask=UMASK)
                undo.callback(_discard, sock)
                self.names.add(sock.getsockname())
                woken, self._waker = (undo.enter_context(each) for each in socket.socketpair())
                _watch_forks()
                _controls.add(self)
                thread = background(partial(self._run, sock, woken), "control")
                thread.start()
                self._thread, self._undo = thread, undo.pop_all()
        except (OSError, RuntimeError, BerkeleyDBStorageError) as error:
            logger.warning("%s has no control socket, and cannot be backed up by commands: %s", self._path, error)

    def _remove_leftovers(self) -> None:
        """Remove what an owner left that was killed: nobody else may have one, as this process has the lock."""
        for name in os.listdir(self._path):
            if name.partition(".")[0] == CONTROL:
                with suppress(FileNotFoundError):
                    if stat.S_ISSOCK((self._path / name).lstat().st_mode):
                        (self._path / name).unlink()

    def stop(self) -> None:
        """End all answers, and listen no more. Works twice."""
        thread, self._thread = self._thread, None
        if thread is None or self._waker is None:
            return
        self._waker.send(b"\0")
        thread.join()
        with self._lock:
            answers = dict(self._answers)
            for sock in answers:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for answer in answers.values():
            answer.join()
        self._undo.close()

    def _run(self, sock: socket.socket, woken: socket.socket) -> None:
        """Accept until something comes over `woken`."""
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        poll.register(woken, select.POLLIN)
        failing = False
        while woken.fileno() not in [descriptor for descriptor, _ in poll.poll()]:
            try:
                self._accept(sock)
            except (OSError, RuntimeError) as error:  # no descriptor, or no thread
                if not failing:
                    logger.warning("%s: who asks has to wait: %s", self._path, error)
                failing = True
                time.sleep(BREATH)
            else:
                failing = False

    def _accept(self, sock: socket.socket) -> None:
        try:
            peer, _ = sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        if (refusal := self._refusal(peer)) is not None:
            with peer, suppress(_Gone):
                peer.setblocking(False)
                _send(peer, (ERROR, protocol.encode_error(refusal), b""))
            return
        thread = background(partial(self._talk, peer), "control answer")
        with self._lock:
            self._answers[peer] = thread
        try:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENT)
            peer.settimeout(TAKING)
            thread.start()
        except BaseException:
            self._forget(peer)
            raise

    def _forget(self, peer: socket.socket) -> None:
        """Close a connection: under the lock, for `stop` might shut down another one that gets its descriptor."""
        with self._lock:
            self._answers.pop(peer, None)
            peer.close()

    def _talk(self, peer: socket.socket) -> None:
        """Answer one request."""
        try:
            try:
                with closing(self._frames(_request(peer))) as frames:
                    for frame in frames:
                        _send(peer, frame)
            except Exception as error:
                _send(peer, (ERROR, protocol.encode_error(self._explained(error)), b""))
        except _Gone as gone:
            logger.debug("%s: %s", self._path, gone)
        finally:
            self._forget(peer)

    def _explained(self, error: Exception) -> BerkeleyDBStorageError:
        """Return the error to tell; one of this package as it is."""
        if isinstance(error, _Gone):
            raise error
        if isinstance(error, BerkeleyDBStorageError):
            return error
        if isinstance(error, OSError):
            return BackupError(f"{self._path} cannot be read: {error}")
        logger.error("%s: an answer failed", self._path, exc_info=error)
        return BackupError(f"{self._path}: the process that has it open failed ({error!r}): look into its log")

    def _refusal(self, peer: socket.socket) -> BerkeleyDBStorageError | None:
        """Return why this one is not answered: another user, or too many at once."""
        user = unix.peer_uid(peer)
        if user not in (None, 0, os.geteuid()):
            return AccessDenied(f"{self._path} is in use by user {os.geteuid()}: ask as that user, or as root")
        with self._lock:
            crowded = len(self._answers) >= MOST
        return BackupError(f"{self._path}: {MOST} others are asking: try again later") if crowded else None

    def _frames(self, request: Request) -> Generator[Frame]:
        """Yield the answer."""
        source, arguments = self._source, request.arguments
        result: Any = None
        if request.name == "copy":
            result = from_copied((yield from _chunks(source.copy())))
        elif request.name == "log":
            yield from _chunks(iter(source.log(*arguments.values())))
        elif request.name == "look":
            result = from_moment(source.look())
        elif request.name == "ping":
            result = os.getpid()
        elif request.name == "statistics":
            result = dict(self._statistics())
        else:
            result = getattr(source, request.name)(*arguments.values())
        yield RESULT, protocol.encode_result(result), b""

    def forked(self) -> None:
        """Let go of everything in a forked child: who asks would wait for it, and not notice the end of its parent."""
        unix.let_go(self.names)


def _discard(sock: socket.socket) -> None:
    with suppress(OSError):
        unix.unlink(sock)
    sock.close()


def _chunks(chunks: Iterator[Chunk]) -> Generator[Frame, None, Any]:
    """Yield bytes of files; return what the other generator does."""
    while True:
        try:
            name, data = next(chunks)
        except StopIteration as end:
            return end.value
        start = protocol.encode_chunk(name)
        for offset in range(0, len(data) or 1, LONGEST_PART):
            yield CHUNK, start, data[offset : offset + LONGEST_PART]


def _request(peer: socket.socket) -> Request:
    """Read what is asked for."""
    deadline = time.monotonic() + ASKING
    line = b""
    try:
        while b"\n" not in line and len(line) <= LONGEST_REQUEST:
            peer.settimeout(max(deadline - time.monotonic(), 0.001))
            data = peer.recv(LONGEST_REQUEST + 1 - len(line))
            if not data:
                raise _Gone("who came asked for nothing")
            line += data
        peer.settimeout(TAKING)
    except OSError as error:
        raise _Gone(f"who came asked for nothing: {error}") from error
    return protocol.decode_request(line)


def _send(peer: socket.socket, frame: Frame) -> None:
    kind, start, rest = frame
    try:
        peer.sendall(protocol.encode_header(kind, len(start) + len(rest)) + start, NO_SIGNAL)
        peer.sendall(rest, NO_SIGNAL)
    except OSError as error:
        raise _Gone(f"who asked does not listen: {error}") from error


_controls: WeakSet[Control] = WeakSet()
"""Of this process; for `_forked`."""


@cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    for control in list(_controls):
        control.forked()
