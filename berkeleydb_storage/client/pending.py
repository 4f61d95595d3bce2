"""The commit under way of a client, and the oids that it was given for it."""

from __future__ import annotations

from berkeleydb_storage.errors import CommitRefused
from berkeleydb_storage.format import references

FIRST_BATCH = 32
LARGEST_BATCH = 2048
"""Oids that are asked for at once; each time twice as many."""


class Oids:
    """Oids that were handed out to this client, and not used yet."""

    def __init__(self) -> None:
        """Begin without any."""
        self._left: list[bytes] = []
        self._batch = FIRST_BATCH

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self._left)

    @property
    def batch(self) -> int:
        """How many to ask for."""
        return self._batch

    def fill(self, oids: list[bytes]) -> None:
        """Take what was handed out; it is used in this order."""
        self._batch = min(2 * self._batch, LARGEST_BATCH)
        self._left = [*reversed(oids), *self._left]

    def take(self) -> bytes:
        """Return the next one."""
        return self._left.pop()

    def take_back(self, oids: list[bytes]) -> None:
        """Use these first, in this order: nothing was stored under them."""
        self._left.extend(reversed(oids))

    def clear(self) -> None:
        """Give up all of them: they are somebody else's."""
        self._left.clear()
        self._batch = FIRST_BATCH


class Pending:
    """Records to be stored together."""

    def __init__(self) -> None:
        """Begin without any."""
        self.clear()

    def clear(self) -> None:
        """Drop them."""
        self.records: dict[bytes, bytes] = {}
        self.size = 0
        """Bytes of the records."""
        self.new: list[bytes] = []
        self.foreign = False
        """Whether some of `new` were handed out by another storage, or are those of a parent process."""

    def store(self, oid: bytes, record: bytes) -> None:
        """Add a record, in place of an earlier one of the same object.

        Raises:
            ValueError: it is malformed, or another object's. All records are dropped.
        """
        record = bytes(record)
        try:
            references(oid, record)
        except ValueError:
            self.clear()
            raise
        if oid in self.records:
            self.size -= len(self.records[oid])
        self.records[oid] = record
        self.size += len(record)

    def estrange(self) -> None:
        """Note that the oids of this commit are not this client's any more."""
        self.foreign = bool(self.new)

    def require_own(self) -> None:
        """Refuse the commit if it has oids that are not this client's.

        Raises:
            CommitRefused: it has.
        """
        if self.foreign:
            raise CommitRefused(
                "the server, or this process, is another one since the commit began, and hands out other oids: "
                "nothing was stored; abort, and do it again"
            )
