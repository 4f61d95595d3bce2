"""The objects and records that are stored: small ones, in folders of a thousand.

`Item` and `Folder` are for programs that go through ``Connection``; `records` makes what they would be stored as, for
those that work on a storage, without the time that pickling takes.
"""

from __future__ import annotations

from collections.abc import Iterator

from durus.connection import Connection
from durus.persistent import Persistent
from durus.serialize import pack_record
from durus.storage import Storage

from berkeleydb_storage.format import pack_uint64

FOLDER = 1000
"""Objects in a folder, itself among them; also those of a commit."""
DATA = 130
"""Bytes of data in a record that is not a folder's: with oid and length, 142."""


class Item(Persistent):
    """A small object."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"item {number}"
        self.price = number * 0.01


class Folder(Persistent):
    """An object with many references."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items


def build(connection: Connection, count: int) -> None:
    """Store `count` objects through a connection, a folder a commit."""
    root = connection.get_root()
    for first in range(0, count, FOLDER):
        size = min(FOLDER, count - first)
        root[first] = Folder([Item(first + n) for n in range(size - 1)])
        connection.commit()


def record(number: int, version: int = 0, references: bytes = b"") -> bytes:
    """Return the record of an object; each version has other bytes."""
    return pack_record(pack_uint64(number), (b"%016d%016d" % (number, version)).ljust(DATA, b"."), references)


def _oids(numbers: range) -> bytes:
    return b"".join(map(pack_uint64, numbers))


def records(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield (oid, record) of `count` objects in order: the root, and folders with all that is in them."""
    yield pack_uint64(0), record(0, 0, _oids(range(1, count, FOLDER)))
    for first in range(1, count, FOLDER):
        end = min(first + FOLDER, count)
        yield pack_uint64(first), record(first, 0, _oids(range(first + 1, end)))
        for number in range(first + 1, end):
            yield pack_uint64(number), record(number)


def fill(storage: Storage, count: int) -> None:
    """Store `count` objects, a folder a commit, as ``Connection`` would: the root is stored with each of them."""
    storage.begin()
    storage.store(storage.new_oid(), record(0))
    storage.end()
    for first in range(1, count, FOLDER):
        end = min(first + FOLDER, count)
        storage.begin()
        storage.store(pack_uint64(0), record(0, 0, _oids(range(1, end, FOLDER))))
        for number in range(first, end):
            refs = _oids(range(first + 1, end)) if number == first else b""
            storage.store(storage.new_oid(), record(number, 0, refs))
        storage.end()
