"""Looks at the suspects one after the other: is there a closed set around it? Then the set is deleted.

One thread at a time. The engine's mutex is held for one step; commits go on between the steps. What they touch
meanwhile is watched: a set is deleted only if none of it was touched since it was read.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from pyroaring import BitMap64

from berkeleydb_storage import failpoints
from berkeleydb_storage.bitmaps import members
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.format import (
    ACQUITTED,
    META_SEARCHED,
    PENDING,
    UNSETTLED,
    Suspect,
    pack_uint64,
    references,
    unpack_oids,
)
from berkeleydb_storage.garbage.cycles import ALIVE, CLOSED, UNKNOWN, Search
from berkeleydb_storage.garbage.deletion import Deleted, Deletion
from berkeleydb_storage.refcounts import LARGE, LAST_PATIENCE, PATIENCE
from berkeleydb_storage.watch import Watch

BUDGETS = ((64, 64), (PATIENCE, PATIENCE - 64))
"""Records spent so far on a suspect, less than the first number: budget of its next search."""
LAST_BUDGET = 4
"""Budget once `PATIENCE` is used up: enough to find a set whose top the suspect is."""
ROWS_A_READ = 5
"""Suspects that are taken into memory, or passed over, in the time that it takes to read a record and look at it."""
PIECES = 1000
"""Objects of a search that are freed at once: a third of a millisecond."""
MOST = (1 << 32) - 1
EVER = (1 << 64) - 1


class Looked(NamedTuple):
    """What a step came to."""

    done: int
    """Records read or deleted, and suspects that were passed over; 0 where there is nothing to do."""
    reads: int
    """Records read to find out."""
    deleted: Deleted


NOTHING = Deleted(0, 0, 0)


class Suspicion:
    """Looks at the suspects of one storage."""

    def __init__(self, engine: Engine, deletion: Deletion) -> None:
        """Look at none yet."""
        self._engine = engine
        self._deletion = deletion
        self._position = 0  # the suspects are looked at in the order of their oids, round and round
        self._known = 0  # how many there were when the last round began
        self._earliest = 0  # if all of them were too young: when the count of the first of them fell
        self._unread: bytes | None = b""  # those of before the opening, from this oid on, are not in memory yet
        self._search: Search | None = None
        self._ended: Search | None = None  # to be freed
        self._watch = Watch()
        self._until = 0
        self._young = BitMap64()  # read, and the count fell after `_until`
        self._latest = 0  # when the last of those did
        self._old = 0  # when the last of the others did
        self._vain = 0
        """Records read in vain since the last full pack, less those that were deleted. Once they are as many as a
        full mark would read, which settles everything, no search reads more than its budget."""

    @property
    def complete(self) -> bool:
        """Whether all suspects of before the opening are in memory."""
        return self._unread is None

    def step(self, limit: int, until: int) -> Looked:
        """Read up to `limit` records for a suspect whose count last fell at `until` (microseconds) or before.

        Raises:
            DiskFullError: there is no room to note what was found; nothing is lost, it goes on when there is.
        """
        engine = self._engine
        with engine.lock:
            engine.require_open()
            if self._unread is not None and engine.counts.suspects:
                return Looked(self._find(self._unread, limit), 0, NOTHING)
            passed, reads = self._go_on(limit, until)
            search = self._search
            if search is None:
                return Looked(passed, 0, NOTHING)
            deleted = NOTHING if search.outcome is None else self._conclude(search, until)
        if deleted.done:
            failpoints.reached("search.committed")
        self.shed()
        return Looked(max(1, passed + reads + deleted.done), reads, deleted)

    def _go_on(self, limit: int, until: int) -> tuple[int, int]:
        """Begin a search, if there is none, and go on with it; return how many suspects were passed over, and reads.

        One that an error or a signal interrupted has lost count of what it has seen: it is given up.
        """
        try:
            passed = 0 if self._search is not None else self._begin(limit, until)
            search = self._search
            if search is None:
                return passed, 0
            before, self._until = search.reads, until
            with self._engine.gate.explaining():
                search.run(self._read, self._count, limit)
        except BaseException:
            self._end()
            raise
        return passed, search.reads - before

    def forgive(self) -> None:
        """Drop a search under way, and forget what was read in vain: all is settled. The caller holds the mutex."""
        self._end()
        self._vain = 0

    def shed(self) -> None:
        """Free the memory of a search that has ended, with room for other threads in between. Not under the mutex."""
        ended, self._ended = self._ended, None
        while ended is not None and ended.shed(PIECES):
            time.sleep(0)

    def _find(self, start: bytes, limit: int) -> int:
        """Take suspects of before the opening into memory; return how many."""
        rows = limit * ROWS_A_READ
        found = self._engine.counts.suspected(start, rows)
        for oid, suspect in found:
            self._engine.counts.remember(oid, suspect)
        self._unread = found[-1][0] + b"\0" if len(found) == rows else None
        return 1 + len(found) // ROWS_A_READ

    def _begin(self, limit: int, until: int) -> int:
        """Begin a search for the next suspect that is old enough; return what it took, in records read."""
        counts = self._engine.counts
        passed, rows = 0, limit * ROWS_A_READ
        start = self._position
        if not start:
            if until < self._earliest and len(counts.pending) == self._known:
                return 0
            self._earliest, self._known = EVER, len(counts.pending)
        for number in members(counts.pending, self._position, rows):
            self._position = number + 1
            suspect = counts.suspect(pack_uint64(number))
            if suspect is None or suspect.state != PENDING or not counts.count(pack_uint64(number)):
                counts.pending.discard(number)  # where the count is 0, the queue has it
                self._earliest = 0
            elif suspect.since <= until:
                self._earliest = 0
                self._suspect = suspect
                self._watch = self._engine.transactions.watches.begin()  # before there is a search that needs it
                self._young, self._latest, self._old = BitMap64(), 0, 0
                self._search = Search(number, _budget(suspect.spent), self._engine.size - self._vain)
                return passed // ROWS_A_READ
            else:
                self._earliest = min(self._earliest, suspect.since)
            passed += 1
        if passed == rows:
            return limit
        self._position = 0
        return 1 if start and passed < len(counts.pending) else 0

    def _conclude(self, search: Search, until: int) -> Deleted:
        """Delete what was found, or note what is known now. The caller holds the mutex."""
        engine, oid = self._engine, pack_uint64(search.suspect)
        since = self._garbage_since(search)
        disturbed = self._watch.spoiled or not self._watch.touched.isdisjoint(search.closed)
        deleted = NOTHING
        with engine.change() as change:
            failpoints.reached("search.begun")
            engine.set_meta(META_SEARCHED, pack_uint64(change.now), change.transaction)
            if search.outcome == CLOSED and not disturbed and since <= until:
                deleted = self._deletion.delete_closed(search.closed, since, change)
            elif engine.counts.suspect(oid) is not None:
                engine.counts.note_search(oid, self._after(search, since, disturbed), change.transaction)
            failpoints.reached("search.written")
        self._vain = max(0, self._vain - len(search.closed) if deleted.done else self._vain + search.reads)
        self._end()
        return deleted

    def _garbage_since(self, search: Search) -> int:
        """Return when the last object of a closed set lost a reference from outside, or a somewhat later time."""
        return self._old if self._young.isdisjoint(search.closed) else self._latest

    def _date(self, number: int) -> None:
        """Note when the count of a suspect that is read last fell. Where it falls again, the watch will know."""
        suspect = self._engine.counts.suspect(pack_uint64(number))
        if suspect is not None and suspect.since > self._until:
            self._young.add(number)
            self._latest = max(self._latest, suspect.since)
        elif suspect is not None:
            self._old = max(self._old, suspect.since)

    def _after(self, search: Search, since: int, disturbed: bool) -> Suspect:
        """Return what is known of a suspect that stays."""
        if search.outcome == CLOSED and not disturbed:
            return self._suspect._replace(since=since)
        current = self._engine.counts.suspect(pack_uint64(search.suspect)) or self._suspect
        disturbed = disturbed or current.since != self._suspect.since
        spent = min(self._suspect.spent + (PATIENCE // 4 if disturbed else search.reads), MOST)
        if disturbed:
            state = PENDING if spent < LAST_PATIENCE else UNSETTLED
        elif search.outcome == UNKNOWN:
            state = PENDING if spent < PATIENCE else UNSETTLED
        else:
            state = ACQUITTED if search.outcome == ALIVE else UNSETTLED
        return Suspect(current.since, spent, state)

    def _end(self) -> None:
        if self._search is not None:
            self._ended, self._search = self._search, None
        self._engine.transactions.watches.end(self._watch)

    def _read(self, number: int) -> tuple[int, ...] | None:
        """Return what an object refers to; None where it is gone, malformed or large."""
        oid = pack_uint64(number)
        if number in self._engine.counts.pending:
            self._date(number)
        record = self._engine.objects.get(oid, dlen=LARGE, doff=0)
        if record is None or len(record) == LARGE:
            return None
        try:
            return unpack_oids(references(oid, record))
        except ValueError:
            return None

    def _count(self, number: int) -> int:
        return self._engine.counts.count(pack_uint64(number))


def _budget(spent: int) -> int:
    """Return the budget of a search for a suspect for which so many records were read before."""
    return next((budget for below, budget in BUDGETS if spent < below), LAST_BUDGET)
