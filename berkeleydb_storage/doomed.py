"""Objects that are garbage together and are being deleted, in several transactions.

Between two of these transactions what is left of such a set refers to what is gone. So the whole set is noted on the
disk before the first of it is deleted, and from then on it does not exist for anybody: a commit that refers to one of
it, or stores one, is refused. What a crash interrupts goes on at the next open.

Owns two rows of the table meta. Every method runs by the thread that holds the engine's mutex.

Invariants:

1. A doomed set is closed: only objects in it refer to objects in it, and the root is not among them.
2. It is deleted in the order of the oids, as far as the row `META_DOOMED_FROM` says. There is one set at a time.
"""

from __future__ import annotations

from collections.abc import Collection

from pyroaring import BitMap64

from berkeleydb_storage.bitmaps import members
from berkeleydb_storage.environment import Table, Transaction
from berkeleydb_storage.errors import DamagedError
from berkeleydb_storage.format import META_DOOMED, META_DOOMED_FROM, pack_oids, pack_uint64, unpack_oids, unpack_uint64


class Doomed:
    """What is doomed: `closed`, those that were deleted already included. It is empty most of the time.

    None of them is left below `start`.
    """

    def __init__(self, meta: Table) -> None:
        """Read what there is."""
        self._meta = meta
        self.reload()

    def reload(self) -> None:
        """Take it from the disk, after a transaction whose outcome is not known.

        Raises:
            DamagedError: it is not what this package writes.
        """
        try:
            self.closed, self.start = self._read()
        except (ValueError, IndexError) as error:
            raise DamagedError(f"meta.db has a malformed set of doomed objects ({error}): restore a backup") from error

    def _read(self) -> tuple[BitMap64, int]:
        row, start = self._meta.get(META_DOOMED), self._meta.get(META_DOOMED_FROM)
        if row is None:
            return BitMap64(), 0
        return unpack_doomed(row), 0 if start is None else unpack_uint64(start)

    def noted(self) -> bool:
        """Tell whether it is what the table says."""
        try:
            return self._read() == (self.closed, self.start)
        except (ValueError, IndexError):
            return False

    @property
    def left(self) -> int:
        """How many are not deleted yet."""
        closed = self.closed
        return closed.range_cardinality(self.start, closed.max() + 1) if closed else 0

    def among(self, oids: Collection[bytes]) -> list[bytes]:
        """Return those of the objects that are doomed."""
        return pack_oids(self.closed.intersection(BitMap64(unpack_oids(oids))))

    def first(self, limit: int) -> list[int]:
        """Return up to `limit` of those that are to be deleted next."""
        return members(self.closed, self.start, limit)

    def doom(self, numbers: BitMap64, start: int, transaction: Transaction) -> None:
        """Write that these objects are doomed, and none of them is left below `start`. It counts from `reload` on."""
        self._meta.put(META_DOOMED, numbers.serialize(), txn=transaction)
        self._meta.put(META_DOOMED_FROM, pack_uint64(start), txn=transaction)

    def advance(self, start: int, transaction: Transaction) -> None:
        """Write that none is left below `start`. It counts from `advanced` on."""
        if start > self.closed.max():
            for key in (META_DOOMED, META_DOOMED_FROM):
                if self._meta.exists(key):  # not where `advanced` was interrupted
                    self._meta.delete(key, txn=transaction)
        else:
            self._meta.put(META_DOOMED_FROM, pack_uint64(start), txn=transaction)

    def advanced(self, start: int) -> None:
        """Note that the transaction with `advance` was committed."""
        self.start = start
        if start > self.closed.max():
            self.closed, self.start = BitMap64(), 0


def unpack_doomed(row: bytes) -> BitMap64:
    """Return the oids of a row `META_DOOMED`.

    Raises:
        ValueError: it is malformed.
    """
    numbers = BitMap64.deserialize(row)
    if not numbers:
        raise ValueError("it is empty")
    return numbers
