"""How many records refer to each object, and the queues of those whose count fell.

Owns the tables refcounts, garbage and suspects. Every method runs inside a transaction of the engine, by the thread
that holds its mutex.

Invariants, between transactions:

1. An object has a row in refcounts if and only if its count is not 1.
2. The root's count is one more than its referrers, so that it never gets to 0.
3. An object is in the garbage queue if and only if its count is 0, under the time that its count row has.
4. Every suspect is an object.
5. `pending` has every suspect that is to be looked at, and `unsettled` every one that only a full pack can settle,
   but for those of before the opening that nobody came across yet. Both may have some that are none any more.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from pyroaring import BitMap64

from berkeleydb_storage.environment import GARBAGE, OBJECTS, REFCOUNTS, SUSPECTS, Table, Transaction, reading
from berkeleydb_storage.errors import DamagedError
from berkeleydb_storage.format import (
    ACQUITTED,
    PENDING,
    ROOT_OID,
    UNSETTLED,
    Suspect,
    has_references,
    pack_condemned,
    pack_count,
    pack_garbage_key,
    pack_suspect,
    unpack_count,
    unpack_garbage_key,
    unpack_suspect,
    unpack_uint64,
)

LARGE = 1 << 16
"""Bytes of a record that is too large to be looked at."""
PATIENCE = 192
"""Records that are read for a suspect, in all, whenever its count falls."""
NO_SUSPECT = Suspect(0, 0, PENDING)
LAST_PATIENCE = 288
"""Beyond `PATIENCE` only an application's commit makes it a suspect again, and only up to this many records."""


class ReferenceCounts:
    """The reference counts of a storage. `garbage` and `suspects` are the numbers of rows in the two queues."""

    def __init__(self, tables: Mapping[str, Table], garbage: int, suspects: int) -> None:
        """Take the tables, and the lengths of the queues as the journal has them."""
        self._objects = tables[OBJECTS]
        self._counts = tables[REFCOUNTS]
        self._garbage = tables[GARBAGE]
        self._suspects = tables[SUSPECTS]
        self.garbage = garbage
        self.suspects = suspects
        self.pending = BitMap64()
        self.unsettled = BitMap64()

    def settle(
        self,
        changes: Mapping[bytes, int],
        born: Container[bytes],
        lost: Container[bytes],
        now: int,
        transaction: Transaction,
    ) -> list[bytes]:
        """Apply the summed changes of the counts of a commit.

        Args:
            changes: oid -> change of its count; every object in `born` is among them.
            born: the objects that did not exist before this commit.
            lost: those that lost a referrer, whatever they gained: that may hang on them.
            now: microseconds since the epoch.
            transaction: the commit's.

        Returns:
            The objects that gained a reference and do not exist. If there are any, abort the transaction.

        Raises:
            DamagedError: a count would become negative.
        """
        dangling: list[bytes] = []
        for oid, change in changes.items():
            if oid in born:
                if change != 1 or oid == ROOT_OID:
                    self._write(oid, 1, 0, change + (oid == ROOT_OID), now, transaction)
            elif change:
                row = self._counts.get(oid)
                if row is not None:
                    before, since = unpack_count(row)
                elif change > 0 and not self._objects.exists(oid):
                    dangling.append(oid)
                    continue
                else:
                    before, since = 1, 0
                after = before + change
                if after < 0:
                    raise _negative(oid)
                self._write(oid, before, since, after, now, transaction)
                if oid in lost or not before:  # what links it again from the queue may hang on it, too
                    self._suspect(oid, after, now, LAST_PATIENCE, transaction)
            elif oid in lost:
                self._suspect(oid, 1, now, LAST_PATIENCE, transaction)
        return dangling

    def _is_parent(self, oid: bytes) -> bool:
        """Tell whether an object refers to others. A large one is taken to."""
        record = self._objects.get(oid, dlen=LARGE, doff=0)
        return record is not None and (len(record) == LARGE or has_references(oid, record))

    def _write(self, oid: bytes, before: int, since: int, after: int, now: int, transaction: Transaction) -> None:
        """Write the count of an object, which was `before` (0: condemned at `since`), and mind invariants 1 and 3."""
        if before == after:
            return
        if before == 0:
            self._garbage.delete(pack_garbage_key(since, oid), txn=transaction)
            self.garbage -= 1
        if after == 0:
            self.condemn(oid, now, transaction)
        elif after != 1:
            self._counts.put(oid, pack_count(after), txn=transaction)
        elif before != 1:
            self._counts.delete(oid, txn=transaction)

    def _suspect(self, oid: bytes, count: int, since: int, patience: int, transaction: Transaction) -> None:
        """Note an object that lost a referrer, and has another, or had none: it may hang on a dead cycle.

        One that refers to nothing is on none.
        """
        if not count or oid == ROOT_OID or not self._is_parent(oid):
            return
        row = self._suspects.get(oid)
        last, spent, state = NO_SUSPECT if row is None else unpack_suspect(row)
        if spent < patience:
            self._suspects.put(oid, pack_suspect(Suspect(max(since, last), spent, PENDING)), txn=transaction)
            self.pending.add(unpack_uint64(oid))
            self.suspects += row is None
        elif state == ACQUITTED:  # what was known of it is not known any more
            self.note_search(oid, Suspect(max(since, last), spent, UNSETTLED), transaction)

    def suspect(self, oid: bytes) -> Suspect | None:
        """Return what is known of a suspect, None where the object is none."""
        row = self._suspects.get(oid)
        return None if row is None else unpack_suspect(row)

    def note_search(self, oid: bytes, suspect: Suspect, transaction: Transaction) -> None:
        """Write what is known of a suspect after a search."""
        self._suspects.put(oid, pack_suspect(suspect), txn=transaction)
        self.remember(oid, suspect)

    def remember(self, oid: bytes, suspect: Suspect) -> None:
        """Note in memory what a row of the suspects says."""
        number = unpack_uint64(oid)
        for state, numbers in ((PENDING, self.pending), (UNSETTLED, self.unsettled)):
            if suspect.state == state:
                numbers.add(number)
            else:
                numbers.discard(number)

    def suspected(self, start: bytes, limit: int) -> list[tuple[bytes, Suspect]]:
        """Return up to `limit` suspects in the order of their oids, from the oid `start`."""
        with reading(self._suspects) as cursor:
            row = cursor.set_range(start)
            found: list[tuple[bytes, Suspect]] = []
            while row is not None and len(found) < limit:
                found.append((row[0], unpack_suspect(row[1])))
                row = cursor.next()
        return found

    def acquit(self, oid: bytes, transaction: Transaction) -> None:
        """Take an object off the suspects, of which it is one."""
        self._suspects.delete(oid, txn=transaction)
        self.suspects -= 1
        self.pending.discard(unpack_uint64(oid))
        self.unsettled.discard(unpack_uint64(oid))

    def condemn(self, oid: bytes, since: int, transaction: Transaction) -> None:
        """Put an object whose count is 0 since `since` (microseconds) into the queue."""
        self._counts.put(oid, pack_condemned(since), txn=transaction)
        self._garbage.put(pack_garbage_key(since, oid), b"", txn=transaction)
        self.garbage += 1

    def next_condemned(self) -> tuple[int, bytes] | None:
        """Return (time, oid) of the object that has been in the queue for longest, None where it is empty."""
        return next(self.condemned(b""), None)

    def condemned(self, start: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (time, oid) of the queue in its order, from the queue key `start`; do not write meanwhile."""
        with reading(self._garbage) as cursor:
            row = cursor.set_range(start)
            while row is not None:
                yield unpack_garbage_key(row[0])
                row = cursor.next()

    def is_condemned(self, oid: bytes, since: int) -> bool:
        """Tell whether an entry of the queue is right: its object has count 0 since then."""
        row = self._counts.get(oid)
        return row is not None and unpack_count(row) == (0, since)

    def unqueue_doomed(self, oid: bytes, transaction: Transaction) -> bool:
        """Take an object out of the queue if it is there, because it is deleted for another reason.

        Returns:
            Whether it has a count row.
        """
        row = self._counts.get(oid)
        if row is None:
            return False
        count, since = unpack_count(row)
        if not count:
            self.unqueue(oid, since, transaction)
        return True

    def unqueue(self, oid: bytes, since: int, transaction: Transaction) -> None:
        """Take an entry out of the queue, and nothing else."""
        self._garbage.delete(pack_garbage_key(since, oid), txn=transaction)
        self.garbage -= 1

    def count(self, oid: bytes) -> int:
        """Return how many objects refer to an object, which exists."""
        row = self._counts.get(oid)
        return 1 if row is None else unpack_count(row)[0]

    def drop_reference(self, oid: bytes, since: int, transaction: Transaction, *, suspecting: bool = True) -> bool:
        """Lower the count of an object because a referrer was deleted.

        Args:
            oid: the object.
            since: when the referrer became garbage, in microseconds since the epoch.
            transaction: the one that deletes the referrer.
            suspecting: whether it may hang on a dead cycle now.

        Returns:
            True where it has no referrer any more: it has no count row, and is for the caller to delete or condemn.

        Raises:
            DamagedError: the count was 0 already, or is about to be the root's.
        """
        row = self._counts.get(oid)
        if row is None:
            if oid == ROOT_OID:
                raise _negative(oid)
            return True
        before, _ = unpack_count(row)
        if before == 0:
            raise _negative(oid)
        self._write(oid, before, 0, before - 1, since, transaction)
        if suspecting:
            self._suspect(oid, before - 1, since, PATIENCE, transaction)
        return False

    def forget(self, oid: bytes, transaction: Transaction, *, counted: bool) -> None:
        """Remove every row of an object that is being deleted, but for its entry in the garbage queue.

        Args:
            oid: the object.
            transaction: the one that deletes it.
            counted: whether it has a count row.
        """
        if counted:
            self._counts.delete(oid, transaction)
        if self.suspects and self._suspects.exists(oid):
            self.acquit(oid, transaction)


def _negative(oid: bytes) -> DamagedError:
    return DamagedError(
        f"the reference count of object {unpack_uint64(oid)} is lower than its number of referrers: "
        "run `durus-bdb check --repair`"
    )
