"""LMDB, as its documents advise: https://lmdb.readthedocs.io.

A commit is synced twice, its pages and what says that they count (`sync` and `metasync`, the defaults). The map is only
read (`writemap=False`, the default): a stray write cannot reach the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lmdb

from benchmarks.peers.contract import Record
from benchmarks.peers.filling import together

MAP = 1 << 40
"""Bytes of addresses, the most that the file may come to: "no penalty for making this huge (say 1TB)"."""


class LmdbStore:
    """A table, and a transaction that reads, which sees what was there at the last commit."""

    def __init__(self, path: Path) -> None:
        """Open it, or create it."""
        self._path = path
        self._open()

    def _open(self, **options: Any) -> None:
        # max_spare_txns: a program with one thread needs one transaction that is kept for the next that reads
        self._environment = lmdb.open(str(self._path), map_size=MAP, max_spare_txns=1, **options)
        self._look()

    def _look(self) -> None:
        self._reading = self._environment.begin()
        self._get = self._reading.get

    def fill(self, batches: Iterable[Sequence[Record]]) -> None:
        """Store first records, and sync when they are there."""
        self.close()
        self._open(sync=False)
        for batch in together(batches):
            self.commit(batch)
        self._environment.sync(True)
        self.close()
        self._open()

    def load(self, oid: bytes) -> bytes:
        """Return a record."""
        record: bytes | None = self._get(oid)
        if record is None:
            raise KeyError(oid)
        return record

    def commit(self, changes: Sequence[Record]) -> None:
        """Store records in one transaction; nobody reads meanwhile, so that it can use pages again."""
        self._reading.abort()
        with self._environment.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(changes)
        self._look()

    def close(self) -> None:
        """Close it."""
        self._reading.abort()
        self._environment.close()


def lmdb_store(path: Path) -> LmdbStore:
    """Open it."""
    return LmdbStore(path)
