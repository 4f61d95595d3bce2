"""What clients of ZODB's kind work with: an instance of a storage, as a connection of ZODB has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ZODB.POSException import ReadConflictError
from ZODB.serialize import referencesf

from benchmarks.peers.zodb import FULL, ZodbStore, _file, _relstorage
from benchmarks.serving.stores import quiet_zeo


class ZodbClient(ZodbStore):
    """A storage that shows all objects as they were when the transaction began."""

    def __init__(self, opener: Callable[[], Any]) -> None:
        """Open it."""
        super().__init__(opener)
        self.begin: Callable[[], object] = self._instance.poll_invalidations

    def load(self, oid: bytes) -> bytes:
        """Return a record, and know its serial: who changes an object has loaded it before."""
        data: bytes
        while True:
            try:
                data, self._serials[oid] = self._instance.load(oid)
            except ReadConflictError:  # a pack took what was there when the transaction began
                self.begin()
            else:
                return data

    def pack(self) -> None:
        """Pack to this moment, and wait for it: as ``zeopack`` and ``zodbpack`` do."""
        self.storage.pack(time.time(), referencesf)

    def size(self) -> int:
        """Return the number of objects, as the storage knew it when it was opened."""
        return len(self.storage)


def zeo(port: int) -> ZodbClient:
    """Return a client with a cache of its own, in a temporary file of 20 MB: what is made without options.

    https://zeo.readthedocs.io/en/latest/clients.html.
    """
    from ZEO.ClientStorage import ClientStorage  # RelStorage may be here without it

    quiet_zeo()
    return ZodbClient(lambda: ClientStorage(("127.0.0.1", port)))


def relstorage(directory: str) -> ZodbClient:
    """Return a RelStorage that syncs each commit."""
    return ZodbClient(lambda: _relstorage(Path(directory), FULL))


def file(path: str) -> ZodbClient:
    """Return a FileStorage, which no other process may have open."""
    return ZodbClient(lambda: _file(Path(path)))
