"""Durus' own storages, and ours, at both levels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.file_storage2 import FileStorage2
from durus.storage import Storage

from benchmarks.peers.contract import Record
from benchmarks.peers.filling import together
from berkeleydb_storage import BerkeleyDBStorage

EVERYTHING = 1 << 40
"""A cache that shrinks by itself would be measured, too."""

OURS, FILE, FILE2, BARE = "ours", "FileStorage", "FileStorage2", "bare Berkeley DB"

NEVER_SYNCS = "hands each commit to the system, never syncs"
SYNCS = "syncs each commit"
HANDS_OVER = "durable=False: hands each commit to the system, never syncs"


def ours(directory: Path, **options: Any) -> BerkeleyDBStorage:
    """Open our storage, with the default policies, in a directory that is made if need be."""
    directory.mkdir(exist_ok=True)
    return BerkeleyDBStorage(directory, **options)


OPENERS: dict[str, Callable[[Path], Storage]] = {
    OURS: ours,
    FILE: lambda path: FileStorage(str(path)),
    FILE2: lambda path: FileStorage2(str(path)),
}


class DurusStore:
    """A storage of Durus' kind."""

    def __init__(self, storage: Storage) -> None:
        """Use a storage that is open."""
        self.storage = storage
        self.load: Callable[[bytes], bytes] = storage.load
        self._handed_out = b""

    def fill(self, batches: Iterable[Sequence[Record]]) -> None:
        """Store first records, many at a time: a transaction may wait for the disk."""
        for batch in together(batches):
            self._hand_out(batch)
            self._transact(batch)

    def commit(self, changes: Sequence[Record]) -> None:
        """Store records in one transaction."""
        try:
            self._transact(changes)
        except ValueError:  # there are storages that refuse oids which they have not handed out
            self._hand_out(changes)
            self._transact(changes)

    def _transact(self, changes: Sequence[Record]) -> None:
        storage = self.storage
        storage.begin()
        store = storage.store
        for oid, record in changes:
            store(oid, record)
        storage.end()

    def _hand_out(self, changes: Sequence[Record]) -> None:
        highest = max(oid for oid, _ in changes)
        while self._handed_out < highest:
            self._handed_out = self.storage.new_oid()

    def close(self) -> None:
        """Close it."""
        self.storage.close()


class PackedStore(DurusStore):
    """A FileStorage that is packed when it is filled: then its offsets are in the file, until it is written to."""

    def fill(self, batches: Iterable[Sequence[Record]]) -> None:
        """Store new records, and pack."""
        super().fill(batches)
        self.storage.pack()
        Path(f"{self.storage.get_filename()}.prepack").unlink()


class DurusDatabase:
    """A connection of Durus."""

    toolkit = "durus"

    def __init__(self, storage: Storage) -> None:
        """Connect to a storage that is open."""
        self.connection = Connection(storage, cache_size=EVERYTHING)
        self.root = self.connection.get_root()
        self.commit = self.connection.commit

    def forget(self) -> None:
        """Connect anew: its cache is the only one."""
        self.connection = Connection(self.connection.storage, cache_size=EVERYTHING)
        self.root = self.connection.get_root()
        self.commit = self.connection.commit

    def collect(self) -> None:
        """Pack, and give back what its files can do without where that is another step."""
        self.connection.pack()
        _shrink(self.connection.storage)

    def close(self) -> None:
        """Close the storage."""
        self.connection.storage.close()


def _shrink(storage: Storage) -> None:
    if isinstance(storage, BerkeleyDBStorage):
        storage.compact()
    elif isinstance(storage, FileStorage | FileStorage2):
        Path(f"{storage.get_filename()}.prepack").unlink()  # all that there was before the pack
    else:
        from benchmarks.peers.sqlite import vacuum

        vacuum(Path(storage.get_filename()))


class _Synced(FileStorage):
    """A FileStorage with the sync that it leaves out."""

    def end(self, handle_invalidations: Callable[[Sequence[bytes]], object] | None = None) -> None:
        """Commit, and wait for the disk."""
        super().end(handle_invalidations)
        self.shelf.file.flush()
        os.fsync(self.shelf.file.file.fileno())


def _unsynced(path: Path) -> BerkeleyDBStorage:
    return ours(path, durable=False)


def _buffered(path: Path) -> BerkeleyDBStorage:
    return ours(path, durable=False, async_log_write=False)


def _file(path: Path) -> FileStorage:
    return FileStorage(str(path))


def _file_synced(path: Path) -> FileStorage:
    return _Synced(str(path))


def _file2(path: Path) -> FileStorage2:
    return FileStorage2(str(path))


def _sqlite(path: Path) -> Storage:
    from durus.sqlite_storage import SqliteStorage

    existed = path.exists()
    storage = SqliteStorage(str(path))
    if storage._last_oid is None:  # it was opened before, and is empty still: it would hand out none
        storage._last_oid = 0
    elif existed:
        storage.new_oid()  # opened again, it hands out its highest oid once more: nobody is to get that
    return storage


def _levels(opener: Callable[[Path], Storage]) -> tuple[Callable[[Path], DurusStore], Callable[[Path], DurusDatabase]]:
    return lambda path: DurusStore(opener(path)), lambda path: DurusDatabase(opener(path))


ours_store, ours_database = _levels(ours)
ours_unsynced_store, ours_unsynced_database = _levels(_unsynced)
ours_buffered_store, ours_buffered_database = _levels(_buffered)
file_store, file_database = _levels(_file)
file_synced_store, file_synced_database = _levels(_file_synced)
file2_store, file2_database = _levels(_file2)
sqlite_store, sqlite_database = _levels(_sqlite)


def file_packed_store(path: Path) -> PackedStore:
    """Open a FileStorage of Durus that `fill` leaves packed."""
    return PackedStore(_file(path))


def file_repaired_store(path: Path) -> DurusStore:
    """Open a FileStorage that ends in the middle of a commit: it is cut off, which has to be asked for."""
    return DurusStore(FileStorage(str(path), repair=True))


def file2_repaired_store(path: Path) -> DurusStore:
    """The same for a FileStorage2."""
    return DurusStore(FileStorage2(str(path), repair=True))
