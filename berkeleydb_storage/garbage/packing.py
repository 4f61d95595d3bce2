"""The full pack: deletes all that the root does not reach, in steps, with commits going on between any two of them.

First what has no referrer, then a mark from the root; what is left over is doomed, in one transaction, and swept. A
close or a kill in the middle costs the time that the mark took; a sweep that has begun goes on at the next open.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from typing import NamedTuple

from berkeleydb_storage import failpoints
from berkeleydb_storage.change import Change
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.format import META_PACKED, META_UNMARKED, pack_uint64, unpack_uint64
from berkeleydb_storage.garbage.deletion import STEP, Deleted, Deletion, Settled, unsettled
from berkeleydb_storage.garbage.marking import Mark

logger = logging.getLogger(__name__)

TRACE = 200
"""Records read in a step of the mark: a third of a millisecond with the mutex, as long again without."""
LOOK = 300
"""Looks into the table in a step of the search for what is not marked: a third of a millisecond."""
CATCH_UP = 1000
"""Records read in the step that ends the mark: 2 milliseconds. So many may be touched between two steps."""
CLEAR = 200
"""Suspects that a step clears: half a millisecond."""
NOTHING = Deleted(0, 0, 0)


class Step(NamedTuple):
    """What a step of a pack came to."""

    activity: str
    """"collecting", "marking", "looking", "deleting" or "clearing"."""
    done: int
    """How many entries, records, or objects it was about."""
    total: int | None
    """How many there will be in this activity, None where that is not known."""
    reads: int = 0
    """Records read to find out what is garbage."""
    deleted: Deleted = NOTHING


class Pack:
    """One full pack. `steps` does it."""

    def __init__(self, engine: Engine, deletion: Deletion, *, ordered: bool) -> None:
        """Do nothing yet."""
        self._engine = engine
        self._deletion = deletion
        self._ordered = ordered
        self._until = engine.time()
        self.begun = False
        """Whether what becomes garbage from now on is no business of this pack."""
        self.sweeping = False
        """Whether what is doomed is what this pack found. Nothing else can be collected until it is swept."""

    def steps(self) -> Generator[Step]:
        """Pack; each item is what a step has done.

        Raises:
            DiskFullError, DamagedError, StorageClosed: it cannot go on; what was deleted is.
        """
        started = time.monotonic()
        yield from self._sweep()
        self.begun = True
        self._until = self._engine.time()
        yield from self._collect()
        while (mark := Mark(self._engine, ordered=self._ordered)).rooted:
            try:
                complete = yield from self._run(mark)
            finally:
                mark.close()
            if complete:
                break
        mark.close()
        logger.debug("packed %s in %.2f s", self._engine.environment.path, time.monotonic() - started)

    def _collect(self) -> Generator[Step]:
        total = self._engine.counts.garbage
        while (deleted := self._deletion.collect(STEP, self._until)).done:
            yield Step("collecting", deleted.done, total, deleted=deleted)

    def _run(self, mark: Mark) -> Generator[Step, None, bool]:
        """Mark, doom and sweep; False where all changed meanwhile."""
        yield from self._mark(mark)
        while (looked := mark.look(LOOK)) and not mark.spoiled:
            yield Step("looking", looked, None)
        while not mark.spoiled and not self._doom(mark):
            yield from self._sweep()
            yield from self._mark(mark)
        if mark.spoiled:
            return False
        yield from self._sweep(mark.settled)
        self.sweeping = False
        yield from self._collect()
        yield from self._clear(mark)
        return True

    def _mark(self, mark: Mark) -> Generator[Step]:
        while (read := mark.trace(TRACE)) and not mark.spoiled:
            yield Step("marking", read, self._engine.size, read)

    def _doom(self, mark: Mark) -> bool:
        """Doom what is not marked; False where something was touched that leads to more, or something is doomed."""
        engine = self._engine
        with engine.lock:
            if engine.doomed.closed or not mark.catch_up(CATCH_UP) or mark.spoiled:
                return False
            garbage = mark.garbage - mark.marked
            if garbage:
                with engine.change(len(garbage) // 4) as change:
                    failpoints.reached("doom.begun")
                    self._deletion.doom(garbage, change)
                    failpoints.reached("doom.written")
                self.sweeping = True
                failpoints.reached("doom.committed")
        return True

    def _sweep(self, settled: Settled = unsettled) -> Generator[Step]:
        total = self._engine.doomed.left
        while (deleted := self._deletion.sweep(STEP, self._until, settled)).done:
            yield Step("deleting", deleted.done, total, deleted=deleted)

    def _clear(self, mark: Mark) -> Generator[Step]:
        """Take off the suspects what lives, or hangs on a newer suspect."""
        start: bytes | None = b""
        total = self._engine.counts.suspects
        while start is not None:
            with self._engine.lock, self._engine.change() as change:
                failpoints.reached("clear.begun")
                start, done = self._clear_some(mark, start, change)
                if start is None:
                    self._engine.set_meta(META_PACKED, pack_uint64(change.now), change.transaction)
                    self._engine.set_meta(META_UNMARKED, None, change.transaction)
                failpoints.reached("clear.written")
            self._engine.unmarked = self._engine.unmarked and start is not None
            yield Step("clearing", done, total)

    def _clear_some(self, mark: Mark, start: bytes, change: Change) -> tuple[bytes | None, int]:
        counts = self._engine.counts
        found = counts.suspected(start, CLEAR)
        for oid, _ in found:
            if mark.settled(unpack_uint64(oid)):
                counts.acquit(oid, change.transaction)
                change.touched = True
        return (found[-1][0] + b"\0" if len(found) == CLEAR else None), len(found)
