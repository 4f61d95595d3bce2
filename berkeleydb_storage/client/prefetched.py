"""Records that were fetched before anybody asked for them, in bounded memory.

Not thread-safe: its storage's lock guards it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable

OVERHEAD = 200
"""Bytes that an entry takes beside its record."""


class Prefetched:
    """Records by oid. What was not asked for yet is kept longest: a server does not send it again by itself."""

    def __init__(self, limit: int) -> None:
        """Begin empty.

        Args:
            limit: bytes of memory.
        """
        self._limit = limit
        self.size = 0
        """Bytes of memory that are taken."""
        self._records: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._records)

    def get(self, oid: bytes) -> bytes | None:
        """Return the record of an object, or None. From now on it is the first to make room for others."""
        record = self._records.get(oid)
        if record is not None:
            self._records.move_to_end(oid, last=False)
        return record

    def add(self, records: Iterable[bytes]) -> None:
        """Keep these records, each with its oid in its first 8 bytes."""
        for record in records:
            oid = record[:8]
            if oid not in self._records:
                self._records[oid] = record
                self.size += len(record) + OVERHEAD
        while self.size > self._limit:
            self.size -= len(self._records.popitem(last=False)[1]) + OVERHEAD

    def drop(self, oids: Collection[bytes]) -> None:
        """Forget these: they were changed."""
        if self._records:
            for oid in oids:
                record = self._records.pop(oid, None)
                if record is not None:
                    self.size -= len(record) + OVERHEAD

    def clear(self) -> None:
        """Forget everything."""
        self._records.clear()
        self.size = 0
