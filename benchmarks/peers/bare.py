"""Berkeley DB with nothing around it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from berkeleydb import db

from berkeleydb_storage.files import PAGE_SIZE
from berkeleydb_storage.options import DEFAULT_CACHE


class Bare:
    """A table of Berkeley DB with our options and nothing else: no counts, no journal, no mutex, no checks."""

    def __init__(self, directory: Path, cachesize: int = DEFAULT_CACHE) -> None:
        """Open it, or create it."""
        directory.mkdir(exist_ok=True)
        self.environment: Any = db.DBEnv()
        self.environment.set_cachesize(0, cachesize, 1)
        self.environment.set_get_returns_none(2)
        self.environment.set_lg_bsize(1 << 20)
        self.environment.set_lg_max(16 << 20)
        flags = db.DB_CREATE | db.DB_INIT_MPOOL | db.DB_INIT_LOG | db.DB_INIT_TXN | db.DB_PRIVATE | db.DB_THREAD
        self.environment.open(str(directory), flags)
        self.table: Any = db.DB(self.environment)
        self.table.set_pagesize(PAGE_SIZE)
        self.table.set_flags(db.DB_CHKSUM)
        self.table.open("objects.db", dbtype=db.DB_BTREE, flags=db.DB_CREATE | db.DB_AUTO_COMMIT | db.DB_THREAD)

    def fill(self, records: Iterable[tuple[bytes, bytes]], batch: int = 2000) -> None:
        """Put all records, in transactions of `batch`."""
        transaction = self.environment.txn_begin()
        for n, (oid, record) in enumerate(records):
            self.table.put(oid, record, txn=transaction)
            if n % batch == batch - 1:
                transaction.commit(db.DB_TXN_NOSYNC)
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
