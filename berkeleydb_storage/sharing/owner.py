"""Who owns a shared storage: one of the processes that use it, which serves it to the others.

Owns the file ``socket`` in the directory of the storage. Any thread may call everything.

Invariants:

1. Only the process that holds the lock of the directory makes or removes the file ``socket``.
2. In a process there is one `Owner` of a directory at most, which ends with the last of its links.
3. A forked child has nothing of its parent's: it begins anew.

Killed at any point: the lock is free, the connections of the others break, one of them opens the storage, which
recovers it, and listens in place of the socket that is left there.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from berkeleydb_storage.client.dialing import Credentials, open_link
from berkeleydb_storage.client.link import Link, Welcome
from berkeleydb_storage.errors import BerkeleyDBStorageError, StorageInUse
from berkeleydb_storage.server import Server
from berkeleydb_storage.sharing.local import LocalLink
from berkeleydb_storage.storage import BerkeleyDBStorage
from berkeleydb_storage.transport.addresses import connect, parse_address

logger = logging.getLogger(__name__)

SOCKET = "socket"

_lock = threading.RLock()
_owners: dict[str, Owner] = {}  # real path -> who owns it in this process; guarded by _lock


class Owner:
    """The storage that this process owns, and the server for the others."""

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        """Open the storage and serve it.

        Raises:
            StorageInUse: another process owns it.
            BerkeleyDBStorageError: it cannot be opened, or not be served.
        """
        self.path = path
        self.storage = BerkeleyDBStorage(path, **options)
        self._links = 0
        try:
            self.server = Server(self.storage, f"unix:{path / SOCKET}")
            self.server.start()
        except BaseException:
            self.storage.close()
            raise
        atexit.register(self.abandon)
        threading.Thread(target=self._watch, name="berkeleydb_storage owner", daemon=True).start()
        logger.info("this process owns %s now", path)

    def _watch(self) -> None:
        """Give the directory up when the server has ended, because the storage has stopped or a client asked for it."""
        self.server.join()
        self.abandon()

    def link(self) -> LocalLink:
        """Return a way to use it."""
        self._links += 1
        return LocalLink(self)

    def release(self) -> None:
        """Note that a link has ended; the last one closes the storage."""
        with _lock:
            self._links -= 1
            if self._links <= 0:
                self.abandon()

    def abandon(self) -> None:
        """Stop serving, and close the storage: the next one to come owns it. Works twice."""
        with _lock:
            if _owners.get(str(self.path)) is not self:
                return
            del _owners[str(self.path)]
            atexit.unregister(self.abandon)
            self.server.close()
            self.storage.close()
            logger.info("this process does not own %s any more", self.path)


class SharedOpener:
    """Makes a link to whoever owns a storage, or becomes that."""

    def __init__(self, path: str | os.PathLike[str], options: Mapping[str, Any]) -> None:
        """Take note of the directory, and of how to open the storage."""
        self._path = Path(os.path.realpath(path))
        self._options = dict(options)

    def __str__(self) -> str:
        """Return the directory."""
        return str(self._path)

    def __call__(self, dialing: float, timeout: float, identity: bytes, tid: int) -> tuple[Link, Welcome]:
        """See `Opener`.

        Raises:
            OSError: another process is about to own it, or has just ended.
        """
        with _lock:
            owner = _owners.get(str(self._path))
            if owner is not None:
                return self._local(owner, identity, tid)
        try:
            return open_link(
                self._dial, Credentials("shared"), dialing=dialing, timeout=timeout, identity=identity, tid=tid
            )
        except OSError as error:
            if isinstance(error, BerkeleyDBStorageError):
                raise
            return self._own(identity, tid)

    def _dial(self, timeout: float) -> socket.socket:
        return _connect(self._path, timeout)

    def _own(self, identity: bytes, tid: int) -> tuple[Link, Welcome]:
        with _lock:
            owner = _owners.get(str(self._path))
            if owner is None:
                try:
                    owner = Owner(self._path, self._options)
                except StorageInUse as error:
                    raise ConnectionRefusedError(str(error)) from error
                _owners[str(self._path)] = owner
            return self._local(owner, identity, tid)

    def _local(self, owner: Owner, identity: bytes, tid: int) -> tuple[Link, Welcome]:
        link = owner.link()
        try:
            return link, link.welcome(identity, tid)
        except BaseException:
            link.close()
            raise


def _connect(path: Path, timeout: float) -> socket.socket:
    return connect(parse_address(f"unix:{path / SOCKET}"), timeout=timeout)


def _forked() -> None:
    """Leave everything to the parent."""
    global _lock
    _lock = threading.RLock()
    _owners.clear()


os.register_at_fork(after_in_child=_forked)
