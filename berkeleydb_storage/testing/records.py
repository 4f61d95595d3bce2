"""Small object graphs as packed records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from durus.serialize import pack_record
from durus.storage import Storage

ROOT = b"\0" * 8
UNKNOWN = (1_000_000).to_bytes(8, "big")
"""An oid that the tests do not come to. Not a large one: some storages keep a bitmap of oids."""
HEADER = 12
"""Bytes of a record before its data."""


def record_of(oid: bytes, data: bytes = b"", refs: Iterable[bytes] = ()) -> bytes:
    """Return the record of an object, from its data and the oids that it refers to."""
    record: bytes = pack_record(oid, data, b"".join(refs))
    return record


def commit(
    storage: Storage, records: Iterable[bytes], handle_invalidations: Callable[[list[bytes]], None] | None = None
) -> None:
    """Store records in one commit, as ``Connection`` does."""
    storage.begin()
    for record in records:
        storage.store(record[:8], record)
    storage.end(handle_invalidations or accept)


def accept(oids: list[bytes]) -> None:
    """Take note of nothing, and find no conflict."""


def new_root(storage: Storage) -> bytes:
    """Take the root's oid, the first that an empty storage hands out."""
    oid: bytes = storage.new_oid()
    assert oid == ROOT
    return oid


def populate(storage: Storage, count: int) -> dict[bytes, bytes]:
    """Fill an empty storage with a root that refers to `count` other objects; return oid -> record."""
    root = new_root(storage)
    oids = [storage.new_oid() for _ in range(count)]
    records = {oid: record_of(oid, b"object %d" % number) for number, oid in enumerate(oids)}
    records[root] = record_of(root, b"root", oids)
    commit(storage, records.values())
    return records


def loaded(storage: Storage, oids: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return oid -> record as the storage has them now."""
    return {oid: storage.load(oid) for oid in oids}


def noise(size: int) -> bytes:
    """Return `size` bytes that do not compress, the same ones every time."""
    return Random(size).randbytes(size)


def exists(storage: Storage, oid: bytes) -> bool:
    """Tell whether an object is there."""
    try:
        storage.load(oid)
    except KeyError:
        return False
    return True
