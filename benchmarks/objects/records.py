"""The small objects that most workloads store, in folders of a thousand: as objects, and as the records of a storage.

Object 0 is the root; each thousand begins with a folder, which refers to the others of it; each hundredth folder refers
to those up to the next hundredth, too, and the root to the hundredth ones. So a commit that adds a folder changes one
other object, or two, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator

from durus.connection import Connection
from durus.serialize import pack_record
from durus.storage import Storage

from benchmarks.objects.durus_classes import Folder, Item
from benchmarks.peers.contract import Record
from berkeleydb_storage.format import pack_uint64

FOLDER = 1000
"""Objects in a folder, itself among them; also the new ones of a commit."""
AISLE = 100
"""Folders up to the next that the root refers to."""
DATA = 130
"""Bytes of data in a record that is not a folder's: with oid and length, 142."""


def build(connection: Connection, count: int) -> None:
    """Store `count` objects through a Durus connection, a folder a commit."""
    root = connection.get_root()
    for first in range(0, count, FOLDER):
        size = min(FOLDER, count - first)
        root[first] = Folder([Item(first + n) for n in range(size - 1)])
        connection.commit()


def is_item(number: int) -> bool:
    """Tell whether an object refers to no other, of those that `records` makes."""
    return number > 0 and (number - 1) % FOLDER > 0


def record(number: int, version: int = 0, references: bytes = b"") -> bytes:
    """Return the record of an object as Durus has it; each version has other bytes."""
    return pack_record(pack_uint64(number), (b"%016d%016d" % (number, version)).ljust(DATA, b"."), references)


def _oids(numbers: range) -> bytes:
    return b"".join(map(pack_uint64, numbers))


def _referring(number: int, count: int) -> Record:
    """Return the root or a folder, where there are `count` objects in all."""
    if number == 0:
        references = _oids(range(1, count, FOLDER * AISLE))
    else:
        references = _oids(range(number + 1, min(number + FOLDER, count)))
        if number // FOLDER % AISLE == 0:
            references += _oids(range(number + FOLDER, min(number + FOLDER * AISLE, count), FOLDER))
    return pack_uint64(number), record(number, 0, references)


def records(count: int) -> Iterator[Record]:
    """Yield (oid, record) of `count` objects in order: the root, and folders with all that is in them."""
    for number in range(count):
        yield (pack_uint64(number), record(number)) if is_item(number) else _referring(number, count)


def batches(count: int) -> Iterator[list[Record]]:
    """Yield the same objects as the commits that a program would store them in: a folder each, and who refers to it.

    No record refers to one that is not stored before or in the same commit.
    """
    yield [_referring(0, 1)]
    for first in range(1, count, FOLDER):
        end = min(first + FOLDER, count)
        aisle = first - first // FOLDER % AISLE * FOLDER
        referrer = _referring(0 if aisle == first else aisle, end)
        yield [referrer, _referring(first, end), *((pack_uint64(n), record(n)) for n in range(first + 1, end))]


def fill(storage: Storage, count: int) -> None:
    """Store `count` objects in a storage of Durus, `batches` of them."""
    known = 0
    for batch in batches(count):
        storage.begin()
        for oid, data in batch:
            if int.from_bytes(oid, "big") >= known:
                known = int.from_bytes(storage.new_oid(), "big") + 1
            storage.store(oid, data)
        storage.end()
