"""Who is compared, by name: what each promises of a commit, and where the code is that opens it.

A peer's code is imported only by a process that opens it, so that nobody pays for the memory of others.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.peers.contract import Database, Store

SYNCS = "syncs each commit"
NEVER_SYNCS = "hands each commit to the system, never syncs"
UNLOGGED = "Berkeley DB's hash: syncs its pages at each commit, without a log; a crash meanwhile may break it"


@dataclass(frozen=True)
class Peer:
    """One way to keep objects or records."""

    name: str
    durability: str
    """What a commit promises, and what else must be known to compare it."""
    store: str = ""
    """module:function that opens it at the level of records, given a path; "" where there is no such level."""
    database: str = ""
    """The same at the level of objects."""
    package: str = ""
    """The distribution that it is of, where that is not one that we need ourselves."""

    @property
    def synced(self) -> bool:
        """Whether a commit is on the disk when it returns."""
        return self.durability.startswith(SYNCS)


def _peer(name: str, durability: str, module: str, opener: str, package: str = "", *, records: bool = True) -> Peer:
    database = f"benchmarks.peers.{module}:{opener}_database"
    return Peer(name, durability, f"benchmarks.peers.{module}:{opener}_store" if records else "", database, package)


def _records(name: str, durability: str, module: str, opener: str, package: str = "") -> Peer:
    return Peer(name, durability, f"benchmarks.peers.{module}:{opener}_store", "", package)


OURS = _peer("ours", f"{SYNCS} (durable=True, the default)", "durus", "ours")
OURS_UNSYNCED = _peer("ours, not synced", f"durable=False: {NEVER_SYNCS}", "durus", "ours_unsynced")
OURS_BUFFERED = _peer(
    "ours, buffered",
    "durable=False, async_log_write=False: keeps commits in a buffer of 1 MiB",
    "durus",
    "ours_buffered",
)
FILE = _peer("FileStorage", NEVER_SYNCS, "durus", "file")
FILE_PACKED = _records("FileStorage, packed", f"{NEVER_SYNCS}; after its pack()", "durus", "file_packed")
FILE_SYNCED = _peer("FileStorage + sync", f"{SYNCS} (a fsync that we added)", "durus", "file_synced")
FILE2 = _peer("FileStorage2", SYNCS, "durus", "file2")
SQLITE_STORAGE = _peer("SqliteStorage", f"{SYNCS} (sqlite3 as it comes)", "durus", "sqlite")
ZODB_FILE = _peer("ZODB FileStorage", SYNCS, "zodb", "file", "ZODB")
RELSTORAGE = _peer("RelStorage, full", f"{SYNCS} (sqlite3, synchronous=full)", "zodb", "relstorage_full", "RelStorage")
RELSTORAGE_NORMAL = _peer(
    "RelStorage, normal", "syncs its log from time to time (sqlite3, synchronous=normal)", "zodb", "relstorage_normal",
    "RelStorage",
)  # fmt: skip
BARE = _records("bare Berkeley DB", f"{SYNCS}; our options, nothing around it", "bare", "bare")
BARE_UNSYNCED = _records("bare Berkeley DB, not synced", NEVER_SYNCS, "bare", "bare_unsynced")
LMDB = _records("LMDB", SYNCS, "lmdb", "lmdb", "lmdb")
SQLITE3 = _records("sqlite3, full", f"{SYNCS} (WAL, synchronous=full)", "sqlite", "full")
SQLITE3_NORMAL = _records("sqlite3, normal", "syncs its log from time to time (WAL)", "sqlite", "normal")
SHELVE = _records("shelve", UNLOGGED, "shelf", "shelve")

PEERS = {
    peer.name: peer
    for peer in (
        OURS,
        OURS_UNSYNCED,
        OURS_BUFFERED,
        FILE,
        FILE_PACKED,
        FILE_SYNCED,
        FILE2,
        SQLITE_STORAGE,
        ZODB_FILE,
        RELSTORAGE,
        RELSTORAGE_NORMAL,
        BARE,
        BARE_UNSYNCED,
        LMDB,
        SQLITE3,
        SQLITE3_NORMAL,
        SHELVE,
    )
}
"""Everyone who keeps things in a file or a directory; those with a server of their own are in `benchmarks.serving`."""


def is_here(peer: Peer) -> bool:
    """Tell whether what the peer needs is installed."""
    try:
        return not peer.package or bool(version(peer.package))
    except PackageNotFoundError:
        return False


def present(peers: Sequence[Peer]) -> list[Peer]:
    """Return those of these peers that are installed, in order."""
    return [peer for peer in peers if is_here(peer)]


def _open(where: str, path: Path) -> Any:
    module, _, function = where.partition(":")
    return getattr(importlib.import_module(module), function)(path)


def open_store(name: str, path: Path) -> Store:
    """Open a peer at the level of records; what is not there is created."""
    store: Store = _open(PEERS[name].store, path)
    return store


def open_database(name: str, path: Path) -> Database:
    """Open a peer at the level of objects; what is not there is created."""
    database: Database = _open(PEERS[name].database, path)
    return database
