"""Reads objects one by one or in batches, for those who are no session.

Owns nothing. Any thread may call it; it takes the mutex, for as long as one batch is read.
"""

from __future__ import annotations

import math

from pyroaring import BitMap64

from berkeleydb_storage.doomed import Doomed
from berkeleydb_storage.environment import reading, rows
from berkeleydb_storage.format import unpack_uint64
from berkeleydb_storage.gate import Gate


class Reader:
    """Reads the table of objects. What cannot be read is a `DamagedError`, or what the gate refuses with."""

    def __init__(self, gate: Gate, doomed: Doomed) -> None:
        """Read through `gate`."""
        self._gate = gate
        self._doomed = doomed

    def get(self, oid: bytes) -> bytes | None:
        """Return the record of an object, None where there is none."""
        gate = self._gate
        with gate.lock, gate.explaining():
            return gate.objects.get(oid)

    def rows(self, start: bytes, limit: int, size: float = math.inf) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` objects, about `size` bytes, in key order from the oid `start`; the table is a btree."""
        found: list[tuple[bytes, bytes]] = []
        gate = self._gate
        with gate.lock, gate.explaining(), reading(gate.objects) as cursor:
            row = cursor.set_range(start)
            while row is not None:
                found.append(row)
                size -= len(row[1])
                if len(found) == limit or size <= 0:
                    break
                row = cursor.next()
        return found

    def living(self, found: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return those of the rows whose objects are not doomed."""
        with self._gate.lock:
            closed = self._doomed.closed
            return [row for row in found if unpack_uint64(row[0]) not in closed] if closed else found

    def numbers(self) -> BitMap64:
        """Return all oids as numbers, for a table that has no order, but for doomed ones."""
        gate = self._gate
        with gate.lock, gate.explaining():
            return BitMap64(unpack_uint64(oid) for oid, _ in rows(gate.objects)) - self._doomed.closed
