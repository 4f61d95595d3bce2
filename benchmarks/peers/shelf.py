"""Python's shelve, on what Debian's Python has below it: Berkeley DB's hash.

`shelve.open` takes what it finds. In Debian's Python that is dbm.ndbm, which is Berkeley DB's hash under another name,
and of which nothing is sure to be in the file before it is closed; in others it may be dbm.dumb, which writes all of
its keys at each sync, or (from 3.13) dbm.sqlite3, which syncs each key by itself. So the hash is named here, whatever
there is: the same everywhere, and it can sync. https://docs.python.org/3/library/shelve.html, `Shelf(dict)`.
"""

from __future__ import annotations

import shelve
from collections.abc import Iterable, Sequence
from pathlib import Path

from berkeleydb import db

from benchmarks.peers.contract import Record
from berkeleydb_storage.options import DEFAULT_CACHE


class ShelveStore:
    """A shelf of bytes; its keys are text, as shelve has it."""

    def __init__(self, path: Path) -> None:
        """Open it, or create it, with a cache as large as ours."""
        table = db.DB()
        table.set_cachesize(0, DEFAULT_CACHE, 1)
        table.open(str(path), dbtype=db.DB_HASH, flags=db.DB_CREATE)
        self._shelf: shelve.Shelf[bytes] = shelve.Shelf(table)

    def fill(self, batches: Iterable[Sequence[Record]]) -> None:
        """Store first records, and sync."""
        shelf = self._shelf
        for batch in batches:
            for oid, record in batch:
                shelf[oid.hex()] = record
        shelf.sync()

    def load(self, oid: bytes) -> bytes:
        """Return a record."""
        record: bytes = self._shelf[oid.hex()]
        return record

    def commit(self, changes: Sequence[Record]) -> None:
        """Store records, and sync: there are no transactions."""
        shelf = self._shelf
        for oid, record in changes:
            shelf[oid.hex()] = record
        shelf.sync()

    def close(self) -> None:
        """Close it."""
        self._shelf.close()


def shelve_store(path: Path) -> ShelveStore:
    """Open it."""
    return ShelveStore(path)
