"""Berkeley DB with nothing around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from berkeleydb import db

from benchmarks.peers.contract import Record
from berkeleydb_storage.files import PAGE_SIZE
from berkeleydb_storage.options import DEFAULT_CACHE

_FLAGS = (
    db.DB_CREATE | db.DB_RECOVER | db.DB_INIT_MPOOL | db.DB_INIT_LOG | db.DB_INIT_TXN | db.DB_PRIVATE | db.DB_THREAD
)
LOGS = 32 << 10
"""KiB of log after which there is a checkpoint, which lets it be removed."""


class Bare:
    """A table of Berkeley DB with our options and nothing else: no counts, no journal, no mutex, no checks.

    Opened with recovery, and its logs removed, as the library's documents advise a program that is alone.
    """

    def __init__(self, directory: Path, cachesize: int = DEFAULT_CACHE) -> None:
        """Open it, or create it."""
        directory.mkdir(exist_ok=True)
        self.environment: Any = db.DBEnv()
        self.environment.set_cachesize(0, cachesize, 1)
        self.environment.set_get_returns_none(2)
        self.environment.set_lg_bsize(1 << 20)
        self.environment.set_lg_max(16 << 20)
        self.environment.log_set_config(db.DB_LOG_AUTO_REMOVE, 1)
        self.environment.open(str(directory), _FLAGS)
        self.table: Any = db.DB(self.environment)
        self.table.set_pagesize(PAGE_SIZE)
        self.table.set_flags(db.DB_CHKSUM)
        self.table.open("objects.db", dbtype=db.DB_BTREE, flags=db.DB_CREATE | db.DB_AUTO_COMMIT | db.DB_THREAD)

    def fill(self, records: Iterable[Record], batch: int = 2000) -> None:
        """Put all records, in transactions of `batch`."""
        transaction = self.environment.txn_begin()
        for n, (oid, record) in enumerate(records):
            self.table.put(oid, record, txn=transaction)
            if n % batch == batch - 1:
                transaction.commit(db.DB_TXN_NOSYNC)
                self.environment.txn_checkpoint(LOGS)
                transaction = self.environment.txn_begin()
        transaction.commit()
        self.environment.txn_checkpoint()

    def commit(self, oid: bytes, record: bytes) -> None:
        """Put a record and sync."""
        transaction = self.environment.txn_begin()
        self.table.put(oid, record, txn=transaction)
        transaction.commit()

    def commit_unsynced(self, oid: bytes, record: bytes) -> None:
        """Put a record, and hand the log to the system."""
        transaction = self.environment.txn_begin()
        self.table.put(oid, record, txn=transaction)
        transaction.commit(db.DB_TXN_WRITE_NOSYNC)

    def close(self) -> None:
        """Make a checkpoint and close."""
        self.environment.txn_checkpoint()
        self.table.close()
        self.environment.close()


class BareStore:
    """The same as the other peers."""

    def __init__(self, path: Path, end: int) -> None:
        """Open it, or create it.

        Args:
            path: the directory.
            end: flags of the library, how a transaction ends.
        """
        self._bare = Bare(path)
        self._begin = self._bare.environment.txn_begin
        self._checkpoint = self._bare.environment.txn_checkpoint
        self._put = self._bare.table.put
        self._end = end
        self.load = self._bare.table.__getitem__
        self.close = self._bare.close

    def fill(self, batches: Iterable[Sequence[Record]]) -> None:
        """Put first records."""
        self._bare.fill(chain.from_iterable(batches))

    def commit(self, changes: Sequence[Record]) -> None:
        """Put records in one transaction, and make a checkpoint where there is much log since the last."""
        transaction = self._begin()
        for oid, record in changes:
            self._put(oid, record, transaction)
        transaction.commit(self._end)
        self._checkpoint(LOGS)


def bare_store(path: Path) -> BareStore:
    """Open one that syncs each commit."""
    return BareStore(path, 0)


def bare_unsynced_store(path: Path) -> BareStore:
    """Open one that hands each commit to the system."""
    return BareStore(path, db.DB_TXN_WRITE_NOSYNC)
