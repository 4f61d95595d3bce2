"""Going through many objects of a server, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush

from pyroaring import BitMap64

from berkeleydb_storage.format import OID_LENGTH, references, unpack_uint64

LAST_OID = (1 << 64) - 1

Rows = Callable[[int, int], list[bytes]]
"""Returns the records of up to so many objects, from this oid on."""


def number_of(record: bytes) -> int:
    """Return the oid of a record as a number."""
    return unpack_uint64(record[:OID_LENGTH])


def in_order(rows: Rows, batch_size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield (oid, record) of all objects up to the highest oid that there is at first."""
    last, number = highest(rows), 0
    while number <= last and (records := rows(number, batch_size)):
        for record in records:
            if number_of(record) <= last:
                yield record[:OID_LENGTH], record
        number = number_of(records[-1]) + 1


def highest(rows: Rows) -> int:
    """Return the highest oid of an object, -1 where there is none: by steps that grow, and then by halves."""
    found, step = -1, 1
    while (higher := min(found + step, LAST_OID)) > found and (records := rows(higher, 1)):
        found, step = number_of(records[0]), 2 * step
    while found + 1 < higher:
        middle = (found + 1 + higher) // 2
        records = rows(middle, 1)
        if records:
            found = number_of(records[0])
        else:
            higher = middle
    return found


def reachable(
    bulk_load: Callable[[Iterable[bytes]], Iterable[bytes]], start_oid: bytes, batch_size: int
) -> Iterator[tuple[bytes, bytes]]:
    """Yield (oid, record) of an object and of all that it leads to, the lowest oids of those that are known first."""
    todo, seen = [start_oid], BitMap64()
    while todo:
        batch: list[bytes] = []
        while todo and len(batch) < batch_size:
            oid = heappop(todo)
            number = unpack_uint64(oid)
            if number not in seen:
                seen.add(number)
                batch.append(oid)
        for oid, record in zip(batch, bulk_load(batch), strict=True):
            yield oid, record
            for ref in references(oid, record):
                if unpack_uint64(ref) not in seen:
                    heappush(todo, ref)
