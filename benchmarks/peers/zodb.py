"""ZODB's FileStorage, and RelStorage on sqlite3, at both levels.

FileStorage keeps the past of each object until it is packed, for it has no other way; RelStorage is told not to
(`keep-history`), which its documents advise where nobody undoes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from transaction import TransactionManager
from ZODB.Connection import TransactionMetaData
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage
from ZODB.interfaces import IMVCCStorage
from ZODB.mvccadapter import MVCCAdapter
from ZODB.utils import z64

from benchmarks.peers.contract import Record
from benchmarks.peers.filling import together
from berkeleydb_storage.options import DEFAULT_CACHE

EVERYTHING = 1 << 30
"""Objects in a connection's cache: it would be measured, too, how it shrinks."""
OFF, NORMAL, FULL = range(3)
"""Of sqlite3's `synchronous`."""
TABLES = "main.sqlite3"
"""The file of RelStorage's directory that has the objects."""


class ZodbStore:
    """An instance of a storage as a connection of ZODB has it, used as a connection does.

    Its operations: https://zodb.org/en/latest/reference/storages.html.
    """

    def __init__(
        self,
        opener: Callable[[], Any],
        filling: Callable[[], Any] | None = None,
        sync: Callable[[], None] | None = None,
    ) -> None:
        """Open it.

        Args:
            opener: opens the storage.
            filling: opens it for the first records, where it need not sync them.
            sync: waits for the disk after that.
        """
        self._opener, self._filling, self._sync = opener, filling, sync
        self._open(opener)

    def _open(self, opener: Callable[[], Any]) -> None:
        self.storage = opener()
        several = self.storage if IMVCCStorage.providedBy(self.storage) else MVCCAdapter(self.storage)
        self._instance = several.new_instance()
        self._instance.poll_invalidations()
        self._serials: dict[bytes, bytes] = {}

    def fill(self, batches: Iterable[Sequence[Record]]) -> None:
        """Store first records, many at a time: each transaction waits for the disk."""
        if self._filling is not None:
            self._again(self._filling)
        highest = b""
        for batch in together(batches):
            self._transact(batch, lambda oid, highest=highest: z64 if oid > highest else self._serial(oid))
            highest = max(highest, *(oid for oid, _ in batch))
        if self._filling is not None:
            self._again(self._opener)
        if self._sync is not None:
            self._sync()

    def _again(self, opener: Callable[[], Any]) -> None:
        self.close()
        self._open(opener)

    def load(self, oid: bytes) -> bytes:
        """Return a record."""
        record: bytes = self._instance.load(oid)[0]
        return record

    def commit(self, changes: Sequence[Record]) -> None:
        """Store records as a connection does, which knows the serial of each object that it has: so do we of those
        that we have stored; of others, it is read first.
        """
        serials = self._serials
        for oid, _ in changes:
            if oid not in serials:
                serials[oid] = self._serial(oid)
        serials.update(dict.fromkeys((oid for oid, _ in changes), self._transact(changes, serials.__getitem__)))

    def _transact(self, changes: Sequence[Record], serial: Callable[[bytes], bytes]) -> bytes:
        instance, transaction = self._instance, TransactionMetaData()
        instance.tpc_begin(transaction)
        for oid, record in changes:
            instance.store(oid, serial(oid), record, "", transaction)
        instance.tpc_vote(transaction)
        tid: bytes = instance.tpc_finish(transaction)
        instance.poll_invalidations()
        return tid

    def _serial(self, oid: bytes) -> bytes:
        try:
            serial: bytes = self._instance.load(oid)[1]
        except KeyError:
            return z64
        return serial

    def close(self) -> None:
        """Close it."""
        self._instance.release()
        self.storage.close()


class ZodbDatabase:
    """A connection of ZODB.

    Its transactions begin when they are told to, "explicit mode": https://transaction.readthedocs.io.
    """

    toolkit = "zodb"

    def __init__(self, storage: Any, shrink: Callable[[], None] | None = None) -> None:
        """Connect to a storage that is open.

        Args:
            storage: which.
            shrink: gives back what its files can do without, where packing does not.
        """
        self._shrink = shrink
        self._db = DB(storage, cache_size=EVERYTHING)
        self._manager = TransactionManager(explicit=True)
        self._connection = self._db.open(self._manager)
        self._manager.begin()
        self.root = self._connection.root()

    def commit(self) -> None:
        """Commit, and begin anew."""
        self._manager.commit()
        self._manager.begin()

    def forget(self) -> None:
        """Make ghosts of all objects, the root among them; who uses it loads it."""
        self._connection.cacheMinimize()

    def collect(self) -> None:
        """Pack to this moment, with the collection of garbage that is part of it."""
        self._manager.abort()
        self._db.pack()
        if self._shrink is not None:
            self._shrink()
        self._manager.begin()

    def close(self) -> None:
        """Close the connection and all else."""
        self._manager.abort()
        self._connection.close()
        self._db.close()


def _file(path: Path) -> FileStorage:
    """Open one that does not keep what was there before a pack beside what is there."""
    return FileStorage(str(path), pack_keep_old=False)


def file_store(path: Path) -> ZodbStore:
    """Open a FileStorage at the level of records."""
    return ZodbStore(lambda: _file(path))


def file_database(path: Path) -> ZodbDatabase:
    """Open a FileStorage at the level of objects."""
    return ZodbDatabase(_file(path))


def _relstorage(path: Path, synchronous: int) -> Any:
    """Open a RelStorage with two caches, each as large as ours: sqlite3's of pages, and its own of records.

    https://relstorage.readthedocs.io/en/latest/sqlite3/options.html names the first as useful; of the second,
    https://relstorage.readthedocs.io/en/latest/relstorage-options.html says that it should be large enough.
    """
    from relstorage.adapters.sqlite.adapter import Sqlite3Adapter
    from relstorage.options import Options
    from relstorage.storage import RelStorage

    path.mkdir(exist_ok=True)
    pragmas = {"synchronous": synchronous, "cache_size": -DEFAULT_CACHE // 1024}
    options = Options(keep_history=False, cache_local_mb=DEFAULT_CACHE >> 20)
    return RelStorage(Sqlite3Adapter(str(path), pragmas=pragmas, options=options), options=options)


def _relstorage_store(path: Path, synchronous: int) -> ZodbStore:
    from benchmarks.peers.sqlite import sync

    return ZodbStore(
        lambda: _relstorage(path, synchronous), lambda: _relstorage(path, OFF), lambda: sync(path / TABLES)
    )


def _relstorage_database(path: Path, synchronous: int) -> ZodbDatabase:
    """Open a RelStorage, which says of sqlite3's files: "you may want to VACUUM"."""
    from benchmarks.peers.sqlite import vacuum

    return ZodbDatabase(_relstorage(path, synchronous), lambda: vacuum(path / TABLES))


def relstorage_full_store(path: Path) -> ZodbStore:
    """Open a RelStorage that syncs each commit, at the level of records."""
    return _relstorage_store(path, FULL)


def relstorage_full_database(path: Path) -> ZodbDatabase:
    """Open a RelStorage that syncs each commit, at the level of objects."""
    return _relstorage_database(path, FULL)


def relstorage_normal_store(path: Path) -> ZodbStore:
    """Open a RelStorage as it comes, at the level of records."""
    return _relstorage_store(path, NORMAL)


def relstorage_normal_database(path: Path) -> ZodbDatabase:
    """Open a RelStorage as it comes, at the level of objects."""
    return _relstorage_database(path, NORMAL)
