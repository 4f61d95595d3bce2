"""sqlite3, a table of records by their numbers, as its documents advise.

- A number as the key of a table with rows: it is searched twice as fast as another key, and a table WITHOUT ROWID is
  for other keys and small rows, https://sqlite.org/rowidtable.html and https://sqlite.org/withoutrowid.html.
- A log that is written ahead, with which a commit syncs once, https://sqlite.org/wal.html; with synchronous=full it
  does that each time, with normal when the log is moved into the table, https://sqlite.org/pragma.html.
- A cache of pages as large as ours.
- `PRAGMA optimize` before it is closed, https://sqlite.org/lang_analyze.html.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.peers.contract import Record
from benchmarks.peers.filling import together
from berkeleydb_storage.format import unpack_uint64
from berkeleydb_storage.options import DEFAULT_CACHE

_STORE = "INSERT OR REPLACE INTO objects VALUES (?, ?)"
_LOAD = "SELECT record FROM objects WHERE oid = ?"


def connect(path: Path) -> sqlite3.Connection:
    """Open a database whose transactions begin where they are told to."""
    return sqlite3.connect(path, isolation_level=None)


def vacuum(path: Path) -> None:
    """Write a database anew without its free pages, and cut its log."""
    with closing(connect(path)) as connection:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class SqliteStore:
    """One connection, and one cursor."""

    def __init__(self, path: Path, synchronous: str) -> None:
        """Open it, or create it.

        Args:
            path: the file.
            synchronous: "full" or "normal".
        """
        self._path, self._synchronous = path, synchronous
        self._connection = connect(path)
        self._execute = self._connection.cursor().execute
        self._execute("PRAGMA journal_mode = WAL")
        self._execute(f"PRAGMA synchronous = {synchronous}")
        self._execute(f"PRAGMA cache_size = {-DEFAULT_CACHE // 1024}")
        self._execute("CREATE TABLE IF NOT EXISTS objects (oid INTEGER PRIMARY KEY, record BLOB NOT NULL)")

    def fill(self, batches: Iterable[Sequence[Record]]) -> None:
        """Store first records, and sync when they are there: a log that nobody could roll back to is not kept."""
        self._execute("PRAGMA synchronous = off")
        for batch in together(batches):
            self.commit(batch)
        self._execute(f"PRAGMA synchronous = {self._synchronous}")
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sync(self._path)

    def load(self, oid: bytes) -> bytes:
        """Return a record."""
        row = self._execute(_LOAD, (unpack_uint64(oid),)).fetchone()
        if row is None:
            raise KeyError(oid)
        record: bytes = row[0]
        return record

    def commit(self, changes: Sequence[Record]) -> None:
        """Store records in one transaction."""
        self._execute("BEGIN IMMEDIATE")
        self._connection.executemany(_STORE, [(unpack_uint64(oid), record) for oid, record in changes])
        self._execute("COMMIT")

    def close(self) -> None:
        """Close it; the log is moved into the table."""
        self._execute("PRAGMA optimize")
        self._connection.close()


def sync(path: Path) -> None:
    """Wait until a file that was written without syncs is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def full_store(path: Path) -> SqliteStore:
    """Open one that syncs each commit."""
    return SqliteStore(path, "full")


def normal_store(path: Path) -> SqliteStore:
    """Open one that syncs from time to time."""
    return SqliteStore(path, "normal")
