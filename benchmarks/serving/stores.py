"""What a client works with, whoever keeps the objects: each is a `Client`, opened by name in the process of the client.

Each is used as its documents advise where there are several clients. Where a load finds that others changed the object
since the client last asked what they did, it asks, and loads again, as a program does that begins its work anew.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from durus.error import ReadConflictError
from durus.storage import Storage

from benchmarks.peers.contract import Record, Store
from benchmarks.peers.durus import DurusStore
from benchmarks.peers.sqlite import SqliteStore
from benchmarks.serving.clients import DURUS, OURS, SHARED, connected, ignore

HOST = "127.0.0.1"
PASSWORD = "a password of letters"
"""Of CyberDB's server."""
TABLE = "objects"
SMALL = 16
"""Records that are sent to CyberDB's server at once: it loses its place in messages of more than 4096 bytes now and
then, for it takes what comes at once for a piece of that size."""
LARGE = 200
"""Bytes of a record that is sent alone."""
PATIENCE = 60
"""Seconds that sqlite3 waits for another process, else 5."""

Place = Any
"""The port of a server of this machine, or the directory or file that processes share."""


class Client(Store, Protocol):
    """A store that others change, too."""

    def begin(self) -> None:
        """Begin a transaction: learn what others changed."""


class DurusClient(DurusStore):
    """A storage of Durus' kind that others use as well."""

    def __init__(self, storage: Storage) -> None:
        """Use a storage that is open."""
        super().__init__(storage)
        self._load = storage.load
        self.load = self._load_anew
        self.begin = storage.sync

    def _load_anew(self, oid: bytes) -> bytes:
        while True:
            try:
                return self._load(oid)
            except ReadConflictError:
                self.begin()

    def commit(self, changes: Sequence[Record]) -> None:
        """Store records that nobody else changes in one transaction."""
        storage = self.storage
        storage.begin()
        for oid, record in changes:
            storage.store(oid, record)
        storage.end(ignore)


class CyberClient:
    """A dict at CyberDB's server, through a proxy of its own, as its documents say for each thread.

    https://github.com/Cyberbolt/CyberDB, "Manipulate proxy Objects".
    """

    def __init__(self, port: int) -> None:
        """Connect."""
        import cyberdb

        self._proxy = cyberdb.connect(host=HOST, port=port, password=PASSWORD).get_proxy()
        self._proxy.connect()
        self._table: Any = None

    def _dict(self) -> Any:
        if self._table is None:
            self._table = self._proxy.get_cyberdict(TABLE)
        return self._table

    def begin(self) -> None:
        """Nothing: each load shows what is there now."""

    def load(self, oid: bytes) -> bytes:
        """Return what is stored under an oid."""
        data: bytes = self._dict()[oid]
        return data

    def commit(self, changes: Sequence[Record]) -> None:
        """Set one record after the other: there are no transactions."""
        table = self._dict()
        for oid, data in changes:
            table[oid] = data

    def fill(self, batches: Iterable[Sequence[Record]]) -> None:
        """Make the dict, and set the first records, some at once."""
        self._proxy.create_cyberdict(TABLE, {b"": b""})  # an empty one is not found
        table = self._dict()
        for batch in batches:
            self.commit([each for each in batch if len(each[1]) > LARGE])
            small = [each for each in batch if len(each[1]) <= LARGE]
            for first in range(0, len(small), SMALL):
                table.update(dict(small[first : first + SMALL]))

    def close(self) -> None:
        """Hang up."""
        connection = self._proxy._con.s  # close() keeps it for the next proxy
        self._proxy.close()
        connection.close()


class SqliteClient(SqliteStore):
    """A table of sqlite3 in a file that processes share."""

    def __init__(self, path: str) -> None:
        """Open it."""
        super().__init__(Path(path), "full")
        self._execute(f"PRAGMA busy_timeout = {PATIENCE * 1000}")

    def begin(self) -> None:
        """Nothing: each load is a transaction."""


def ours(port: int) -> DurusClient:
    """Return a client of our server."""
    return DurusClient(connected(OURS, port))


def shared(directory: str) -> DurusClient:
    """Return a storage of ours that processes share."""
    return DurusClient(connected(SHARED, directory))


def durus(port: int) -> DurusClient:
    """Return a client of Durus' server."""
    return DurusClient(connected(DURUS, port))


STORES = {
    "ours": "stores:ours",
    "shared": "stores:shared",
    "durus": "stores:durus",
    "cyberdb": "stores:CyberClient",
    "sqlite3": "stores:SqliteClient",
    "zeo": "zodb_stores:zeo",
    "relstorage": "zodb_stores:relstorage",
    "ZODB file": "zodb_stores:file",
}
"""Where the code is that opens each."""


def quiet_zeo() -> None:
    """Keep ZEO from telling of each commit that waits for another one, and of news that come in another order."""
    logging.getLogger("ZEO").setLevel(logging.CRITICAL)


def opened(name: str, place: Place) -> Client:
    """Open a store by its name in `STORES`, given its place."""
    module, _, function = STORES[name].partition(":")
    client: Client = getattr(importlib.import_module(f"benchmarks.serving.{module}"), function)(place)
    return client
