"""Counts the references between all objects of a storage in one pass over their records, in any order.

Memory: two roaring bitmaps, about two bits an object; what is referred to more than once is counted in a table.
For one thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from zlib import crc32

from pyroaring import BitMap64

from berkeleydb_storage.environment import Table, Transaction
from berkeleydb_storage.format import (
    ROOT_OID,
    pack_count,
    pack_oids,
    pack_uint64,
    references,
    unpack_count,
    unpack_oids,
    unpack_uint64,
)


class Tally:
    """The references seen so far. The root has one from outside, so that its count is that of the format."""

    def __init__(self, table: Table) -> None:
        """Begin.

        Args:
            table: oid -> count row, of objects with more than one referrer. Empty, and nobody else writes to it.
        """
        self._table = table
        self._extra: dict[bytes, int] = {}
        self.stored = BitMap64()
        self.referenced = BitMap64([unpack_uint64(ROOT_OID)])
        self.several = 0
        """Objects with more than one referrer, as of the last `flush`."""
        self.digest = 0
        """A sum over the records, whatever their order."""

    def add(self, oid: bytes, record: bytes, without: BitMap64 | tuple[()] = ()) -> None:
        """Count the references of a record, but for those to the objects `without`.

        Raises:
            ValueError: it is malformed or came before; nothing is counted.
        """
        refs = references(oid, record)
        number = unpack_uint64(oid)
        if number in self.stored:
            raise ValueError(f"object {number} comes twice")
        self.stored.add(number)
        self.digest += record_digest(record)
        referenced, extra = self.referenced, self._extra
        for ref in refs:
            target = unpack_uint64(ref)
            if target in without:
                continue
            if target in referenced:
                extra[ref] = extra.get(ref, 0) + 1
            else:
                referenced.add(target)

    def add_all(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Count the references of many records: as `add` of each, in half the time.

        Args:
            rows: (oid, record) of each; a few thousand.

        Raises:
            ValueError: one is malformed or came before; what is counted is then of no use.
        """
        found: list[bytes] = []
        for oid, record in rows:
            found += references(oid, record)
        records = [record for _, record in rows]
        self._store_all(unpack_oids([oid for oid, _ in rows]))
        self._refer_all(unpack_oids(found))
        self.digest += digest_of_all(records)

    def _store_all(self, numbers: tuple[int, ...]) -> None:
        fresh = BitMap64(numbers)
        if len(fresh) != len(numbers) or not fresh.isdisjoint(self.stored):
            raise ValueError(f"object {_first_repeated(numbers, self.stored)} comes twice")
        self.stored |= fresh

    def _refer_all(self, numbers: tuple[int, ...]) -> None:
        times, extra = Counter(numbers), self._extra
        targets = BitMap64(times)
        known = targets & self.referenced
        self.referenced |= targets
        for number in known:
            ref = pack_uint64(number)
            extra[ref] = extra.get(ref, 0) + times.pop(number)
        for number, count in times.items():
            if count > 1:
                ref = pack_uint64(number)
                extra[ref] = extra.get(ref, 0) + count - 1

    def flush(self, transaction: Transaction | None = None) -> None:
        """Write the counts into the table. Call it every few thousand records, and at the end."""
        for oid, more in sorted(self._extra.items()):
            row = self._table.get(oid)
            if row is None:
                self.several += 1
            count = 1 if row is None else unpack_count(row)[0]
            self._table.put(oid, pack_count(count + more), txn=transaction)
        self._extra.clear()

    def several_of(self, oid: bytes) -> int:
        """Return the count of an object if it has more than one referrer, else 0. Flush before."""
        row = self._table.get(oid)
        return 0 if row is None else unpack_count(row)[0]

    def dangling(self) -> list[bytes]:
        """Return the objects that are referred to and were not seen; the root, if it was not."""
        return pack_oids(self.referenced - self.stored)

    def garbage(self) -> BitMap64:
        """Return the objects that nothing refers to."""
        return self.stored - self.referenced


def record_digest(record: bytes) -> int:
    """Return a number that depends on the whole record, its oid included."""
    return crc32(record) << 32 | len(record)


def digest_of_all(records: Sequence[bytes]) -> int:
    """Return the sum of `record_digest` over records of less than 4 GiB each."""
    return (sum(map(crc32, records)) << 32) + sum(map(len, records))


def _first_repeated(numbers: Sequence[int], stored: BitMap64) -> int:
    seen = BitMap64(stored)
    for number in numbers:
        if number in seen:
            break
        seen.add(number)
    return number
