"""Deletes objects: those without referrers, with what their deletion leaves without referrers; and doomed sets.

Every step is one small transaction of the engine, which needs no flush: a crash that loses it loses no correctness,
the objects are still in the queue, or doomed. One thread at a time; the engine's mutex is held for one step.

Invariants:

1. An object is deleted only while its count is 0, in the transaction that saw it, or when it is doomed.
2. After every step each object with count 0 that still exists is in the queue.
3. The children of a deleted object inherit the time since which it had no referrer: so has the whole structure.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from pickle import dumps
from typing import NamedTuple
from zlib import compress

from durus.persistent import Persistent
from durus.serialize import pack_record
from pyroaring import BitMap64

from berkeleydb_storage import failpoints
from berkeleydb_storage.change import Change
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.format import pack_uint64, references, unpack_uint64
from berkeleydb_storage.room import AMPLIFICATION

logger = logging.getLogger(__name__)

STEP = 50
"""Objects a step: about half a millisecond with the mutex."""
STEP_BYTES = 1 << 18
"""Bytes of records that a step deletes at most, but for its last record: the library logs them all. If they are nothing
but references, looking at them takes 5 milliseconds."""
FAN = 500
"""References that a step lets go of at most: some 4 milliseconds. A record with more is split first."""
NOTHING = dumps(Persistent, 2) + compress(dumps({}, 2))
"""The data of an object without attributes, as Durus' ObjectWriter makes it."""


Settled = Callable[[int], bool]
"""Tells whether an object cannot hang on a dead cycle of which nobody knows."""


def unsettled(_: int) -> bool:
    """Return False: that is not known of any object."""
    return False


class Deleted(NamedTuple):
    """What a step came to."""

    done: int
    """Entries of the queue and objects that were done with; 0 where there is nothing to do."""
    objects: int
    bytes: int
    """In their records."""


class Deletion:
    """Deletes what is garbage in one storage."""

    def __init__(self, engine: Engine) -> None:
        """Delete nothing yet."""
        self._engine = engine
        self._spare: list[bytes] = []  # oids for the parts of large records
        self._wanted = 0  # how many more of them it takes to go on
        self._size = 0  # of what the step under way deleted

    def collect(self, limit: int, until: int) -> Deleted:
        """Delete objects without referrers.

        Nothing is done while something is doomed: the counts of what that refers to are not those of its referrers.

        Args:
            limit: how many at most.
            until: only those that have had none since then, in microseconds since the epoch.

        Raises:
            DiskFullError: there is no room; nothing is lost, it goes on when there is.
        """
        self._fetch_oids()
        with self._engine.lock, self._engine.change() as change:
            failpoints.reached("collect.begun")
            done = 0 if self._engine.doomed.closed else self._collect(limit, until, change)
            failpoints.reached("collect.written")
        if done:
            failpoints.reached("collect.committed")
        return Deleted(done, len(change.deleted), self._size)

    def sweep(self, limit: int, since: int | None = None, settled: Settled = unsettled) -> Deleted:
        """Delete up to `limit` doomed objects.

        Args:
            limit: how many at most.
            since: when they became garbage, in microseconds since the epoch; None: that is not known.
            settled: tells of an object that they refer to whether it lives, or hangs on one that is a suspect anyway.

        Raises:
            DiskFullError: there is no room; nothing is lost, it goes on when there is.
        """
        engine = self._engine
        self._fetch_oids()
        with engine.lock:
            batch = engine.doomed.first(limit)
            if not batch:
                return Deleted(0, 0, 0)
            with engine.change() as change:
                failpoints.reached("sweep.begun")
                when = change.now if since is None else since
                start = self._sweep(batch, engine.doomed.closed, when, change, settled)
                engine.doomed.advance(start, change.transaction)
                failpoints.reached("sweep.written")
            engine.doomed.advanced(start)
        failpoints.reached("sweep.committed")
        done = sum(number < start for number in batch)
        return Deleted(max(1, done), len(change.deleted), self._size)  # 0 where it waits for oids, and is to go on

    def delete_closed(self, closed: BitMap64, since: int, change: Change) -> Deleted:
        """Delete a closed set within a transaction of the caller, or doom it where that is too much for one.

        Args:
            closed: the set.
            since: when it became garbage, in microseconds since the epoch.
            change: the transaction.
        """
        self._size = 0
        batch = list(islice(closed, STEP))
        start = self._sweep(batch, closed, since, change)
        if start <= closed.max():
            self._engine.doomed.doom(closed, start, change.transaction)
            change.dooms = True
        change.touched = True
        return Deleted(len(batch), len(change.deleted), self._size)

    def doom(self, closed: BitMap64, change: Change) -> None:
        """Doom a closed set within a transaction of the caller."""
        self._engine.doomed.doom(closed, 0, change.transaction)
        change.dooms = change.touched = True

    def _fetch_oids(self) -> None:
        """Get the oids that the last step lacked. Not under the mutex."""
        self._spare += [self._engine.new_oid() for _ in range(self._wanted)]
        self._wanted = self._size = 0

    def _collect(self, limit: int, until: int, change: Change) -> int:
        """Delete from the queue within a transaction; return how many entries and objects were done with."""
        orphans: list[tuple[int, bytes]] = []
        done = dropped = 0
        while (
            done < limit
            and self._size <= STEP_BYTES
            and (entry := orphans.pop() if (orphan := bool(orphans)) else self._take(until, change))
        ):
            since, oid = entry
            record = self._found(oid, change, counted=not orphan)
            children = _children(oid, record)
            if dropped + len(children) > FAN:
                if dropped or not self._split(oid, children, since, change, counted=not orphan):
                    orphans.append(entry)
                done += 1
                break
            done += 1
            self._delete(oid, record, change, counted=not orphan)
            dropped += len(children)
            orphans += [(since, child) for child in self._drop(children, since, change)]
        for since, oid in orphans:
            self._engine.counts.condemn(oid, since, change.transaction)
        return done

    def _sweep(
        self, batch: Sequence[int], closed: BitMap64, since: int, change: Change, settled: Settled = unsettled
    ) -> int:
        """Delete objects of a closed set within a transaction, in this order; return the number up to which it got."""
        counts, transaction = self._engine.counts, change.transaction
        dropped = 0
        for number in batch:
            oid = pack_uint64(number)
            record = self._engine.objects.get(oid) or b""
            children = _outside(oid, record, closed)
            if dropped + len(children) > FAN:
                if dropped or not self._part(children, since, change):
                    return number
                children = []
            counted = counts.unqueue_doomed(oid, transaction)
            self._delete(oid, record, change, counted=counted)
            dropped += len(children)
            for child in self._drop(children, since, change, settled):
                counts.condemn(child, since, transaction)
            if self._size > STEP_BYTES:
                return number + 1
        return batch[-1] + 1

    def _delete(self, oid: bytes, record: bytes, change: Change, *, counted: bool) -> None:
        """Delete an object, if it exists, and account for it."""
        if len(record) > STEP_BYTES:
            self._engine.transactions.need_room(len(record) // AMPLIFICATION)  # the log gets as much
        if record:
            change.delete(oid, counted=counted)
        self._size += len(record)

    def _drop(self, children: Sequence[bytes], since: int, change: Change, settled: Settled = unsettled) -> list[bytes]:
        """Lower the counts of what a deleted object referred to; return those that have no referrer any more."""
        drop, transaction = self._engine.counts.drop_reference, change.transaction
        doubtful = {child for child in children if not settled(unpack_uint64(child))}
        change.touch(doubtful)  # and not what is settled, which would not be any more
        return [child for child in children if drop(child, since, transaction, suspecting=child in doubtful)]

    def _take(self, until: int, change: Change) -> tuple[int, bytes] | None:
        """Take the oldest entry out of the queue; None where none is as old as `until`. Wrong ones are dropped."""
        counts = self._engine.counts
        while (entry := counts.next_condemned()) is not None and entry[0] <= until:
            since, oid = entry
            counts.unqueue(oid, since, change.transaction)
            change.touched = True
            if counts.is_condemned(oid, since):
                return entry
            logger.error("object %d was in the garbage queue by mistake: taken out", unpack_uint64(oid))
        return None

    def _found(self, oid: bytes, change: Change, *, counted: bool) -> bytes:
        """Return the record of a condemned object; nothing where it does not exist, and then its rows are removed."""
        record = self._engine.objects.get(oid)
        if record is None:
            logger.error("object %d is garbage and does not exist: its rows are removed", unpack_uint64(oid))
            self._engine.counts.forget(oid, change.transaction, counted=counted)
            change.touched = True
        return record or b""

    def _split(self, oid: bytes, children: Sequence[bytes], since: int, change: Change, *, counted: bool) -> bool:
        """Put objects that have `FAN` of its references each in the place of a condemned one, and condemn them."""
        if not self._part(children, since, change):
            return False
        change.delete(oid, counted=counted)
        return True

    def _part(self, children: Sequence[bytes], since: int, change: Change) -> bool:
        """Make condemned objects that have `FAN` of these references each, for an object that is deleted.

        So every step stays short, and the storage is as consistent between them as ever.

        Returns:
            False where that takes more oids than are at hand; they are there at the next step.
        """
        parts = [children[start : start + FAN] for start in range(0, len(children), FAN)]
        self._wanted = max(0, len(parts) - len(self._spare))
        if self._wanted:
            return False
        self._engine.transactions.need_room(16 * len(children))
        for part in parts:
            substitute = self._spare.pop()
            change.create(substitute, pack_record(substitute, NOTHING, b"".join(part)))
            self._engine.counts.condemn(substitute, since, change.transaction)
        change.touch(children)
        return True


def _outside(oid: bytes, record: bytes, closed: BitMap64) -> list[bytes]:
    """Return what an object of a closed set refers to outside of it."""
    return [child for child in _children(oid, record) if unpack_uint64(child) not in closed]


def _children(oid: bytes, record: bytes) -> tuple[bytes, ...]:
    """Return what a deleted record referred to; nothing where it is malformed: that is kept, and not lost."""
    if not record:
        return ()
    try:
        return references(oid, record)
    except ValueError as error:
        logger.error("garbage is malformed, so that what it referred to stays: %s", error)
        return ()
