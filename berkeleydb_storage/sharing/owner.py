"""Who owns a shared storage: one of the processes that use it, which serves it to the others.

An `Owner` has the right to own the directory, which is flock on the directory itself, then the file ``socket`` in it,
then the storage, then the server; it is made and closed under the lock of its `Place`.

Invariants:

1. Only the process that has the right makes or removes the file ``socket``, or opens the storage for sharing.
2. From the moment on at which somebody has the right, the others can connect, and wait until they are served. So they
   need not ask again and again how far a recovery is; and a storage in use where nobody listens is not a shared one.
3. A forked child has nothing of its parent's: neither the right nor a connection.

Killed at any point: the right and the lock are free, the connections of the others break, one of them opens the
storage, which recovers it, and listens in place of the socket that is left there.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

from berkeleydb_storage.errors import BerkeleyDBStorageError, StorageInUse
from berkeleydb_storage.server import Server
from berkeleydb_storage.storage import BerkeleyDBStorage
from berkeleydb_storage.transport import unix

logger = logging.getLogger(__name__)

SOCKET = "socket"
BACKLOG = 1024
"""Connections that wait until the storage is open."""
GRACE = 1.0
"""Seconds that requests under way have when the owner closes. Who is cut off asks the next owner what became of it."""

Wait = Callable[[StorageInUse], None]
"""Called while somebody who does not share has the storage; returns when it is to be tried again, or raises."""


class Owned(Exception):
    """Raised when another process has the right to own a directory."""


class Owner:
    """The storage that this process owns, and the server for the others."""

    def __init__(self, path: Path, options: Mapping[str, Any], wait: Wait, ended: Callable[[Owner], None]) -> None:
        """Open the storage and serve it.

        Args:
            path: the directory.
            options: of `BerkeleyDBStorage`.
            wait: see `Wait`.
            ended: called by a thread of its own when the server has ended, whatever the reason: then `close`.

        Raises:
            Owned: another process has the right.
            BerkeleyDBStorageError: the storage cannot be opened, or not be served.
        """
        self.path = path
        self.names: set[str] = set()
        """What the server's sockets are bound to; a child finds by them what it has inherited."""
        self._right = -1
        with ExitStack() as undo:
            self._take_right()
            undo.callback(self._release_right)
            sock = self._listen()
            undo.callback(_discard, sock)
            self.storage = self._open(options, wait)
            undo.callback(self.storage.close)
            backup = options.get("backup")
            self.backup_to = None if backup is None else backup.to
            """Where backups go that are asked for."""
            self.server = Server(self.storage, sockets=[sock], grace=GRACE, backup_to=self.backup_to)
            undo.callback(self.server.close)
            self.server.start()
            undo.pop_all()
        threading.Thread(target=self._watch, args=(ended,), name="berkeleydb_storage owner", daemon=True).start()
        logger.info("process %d owns %s", os.getpid(), path)

    def _take_right(self) -> None:
        _owners.add(self)
        self._right = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._right, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release_right()
            raise Owned from None
        except BaseException:
            self._release_right()
            raise

    def _release_right(self) -> None:
        right, self._right = self._right, -1
        if right >= 0:
            os.close(right)

    def _listen(self) -> socket.socket:
        """Take the place of whoever was killed here."""
        for left_behind in self.path.glob(f"{SOCKET}.*"):
            with suppress(FileNotFoundError):
                if stat.S_ISSOCK(left_behind.lstat().st_mode):
                    left_behind.unlink()
        sock = unix.listen(str(self.path / SOCKET), BACKLOG)
        self.names.add(sock.getsockname())
        return sock

    def _open(self, options: Mapping[str, Any], wait: Wait) -> BerkeleyDBStorage:
        while True:
            try:
                return BerkeleyDBStorage(self.path, **options)
            except StorageInUse as error:
                wait(error)

    def _watch(self, ended: Callable[[Owner], None]) -> None:
        self.server.join()
        ended(self)

    @property
    def has_stopped(self) -> bool:
        """Whether the storage, or the server, can do nothing more."""
        try:
            self.storage.engine.require_open()
        except BerkeleyDBStorageError:
            return True
        return self.server.has_ended

    def close(self) -> None:
        """Stop serving, close the storage, and leave the right to others."""
        try:
            self.server.close()
        finally:
            try:
                self.storage.close()
            finally:
                self._release_right()
        logger.info("process %d does not own %s any more", os.getpid(), self.path)

    def forked(self) -> None:
        """Let go of everything in a forked child, or else nobody would notice the end of its parent."""
        self._release_right()
        unix.let_go(self.names)


def _discard(sock: socket.socket) -> None:
    unix.unlink(sock)
    sock.close()


_owners: WeakSet[Owner] = WeakSet()
"""Of this process, and those that are about to be; for `_forked`."""


def _forked() -> None:
    for owner in list(_owners):
        owner.forked()
    _owners.clear()


os.register_at_fork(after_in_child=_forked)
