"""Gives the room that deleted objects took back to the file system, while the storage is used.

A table's free pages are used again for new rows; its file shrinks only when used pages move from its end into free
ones before them. A step merges the rows of neighbouring pages, which frees some, or gives back: it moves pages of a
range of keys down, and cuts off what is then free at the end. Ranges are taken from both ends of the table: what is
merged in front frees the pages into which what is behind moves.

Every step is some transactions of the library, which holds none of the engine's: killed at any point, the storage has
all that it had. Any thread may take the steps; the engine's mutex is held for one of them, because there is no lock
subsystem.

Invariants:

1. A step works for about as long as the caller says. What it costs besides grows with the number of free pages, which
   the library sorts each time: so few are made at a time.
2. Between two steps every table is whole, and nothing that the engine knows has changed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from math import inf
from typing import NamedTuple

from berkeleydb_storage import failpoints
from berkeleydb_storage.checkpoint import LOG_BYTES, Checkpointer
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.environment import CUT, GIVE_BACK, LIBRARY_ERRORS, MERGE, TABLES, reading
from berkeleydb_storage.errors import OptionError, ReadOnlyError, StorageClosed
from berkeleydb_storage.files import PAGE_SIZE

HOLD = 0.003
"""Seconds with the mutex that a step is to take."""
FILL = 90
"""Percent of a page that are full afterwards: the rest lets records grow without splitting it. Pages that are filled in
order have 93, so that they are left alone."""
ANY_FILL = 1
"""Percent where nothing is to be merged. The library moves a page that is fuller in any case, and else the last leaf
never."""
CACHED, READ = 1e-6, 20e-6
"""Twice the seconds that the library takes for a free page in the cache, and for one that it must read."""
CACHE_SHARE = 4
"""At most this fraction (1/4) of the cache is free pages that merging made."""
WORTH, WORTH_MANY = 32, 4
"""A step that gives back goes through at least this fraction (1/32) of as many pages as are free, because the library
looks at all of those; 1/4 where they are more than half of the cache, so that each look reads them."""
USEFUL, VAIN = 4, 2
"""A sweep is in vain if it gives back less than this fraction (1/4) of what merging makes free. Two of them are the
end: the first may only have moved what stood in the way of the second."""
COUNTED = 1 << 20
"""Free pages that are counted; the number is for estimates."""
FIRST_STEP, SMALLEST_STEP = 32, 8
"""Pages."""
LARGEST_STEP = 20_000
"""Pages, however many are free: 120 MB of room are asked for."""
EASY = 10e-6
"""Seconds that a step plans for a page, at the least: one with nothing to do takes 0.5, but the next may take 50."""
ROOM_SHARE = 2
"""A page that a step goes through takes a half (1/2) of its size, times what `Room` allows for: 4 of 6 KB measured."""
SMALL = 64
"""Pages of a table that is compacted in three steps; the library may always look at so many free ones."""

Progress = Callable[[str, int], None]


class Step(NamedTuple):
    """What a step did."""

    table: str
    """Where."""
    returned: int
    """Bytes that it gave back to the file system."""
    seconds: float
    """How long it held the mutex."""


Steps = Generator[Step, None, None]


def run(engine: Engine, checkpointer: Checkpointer, progress: Progress, *, hold: float = HOLD) -> int:
    """Take all steps, resting after each for as long as it took; make checkpoints, so that neither log nor risk grows.

    A table that is shorter than what the last checkpoint noted makes a recovery look at a copy first.

    Args:
        engine: the engine.
        checkpointer: its storage's.
        progress: called between the steps with what is being done, and the pages given back so far of that table;
            what it raises ends the work.
        hold: seconds with the mutex that a step is to take.

    Returns:
        Bytes given back to the file system.

    Raises:
        StorageClosed, ReadOnlyError, CommitRefused, DiskFullError, DamagedError: as `compact` does.
    """
    _require_writable(engine)
    checkpointer.checkpoint()
    returned, before, table = 0, 0, ""
    try:
        for step in compact(engine, hold=hold):
            if step.table != table:
                table, before = step.table, returned
            returned += step.returned
            progress(f"compacting {table}", (returned - before) // PAGE_SIZE)
            if _log_bytes(engine, checkpointer) >= LOG_BYTES:
                checkpointer.checkpoint()
            else:
                time.sleep(step.seconds)
    finally:
        if returned and not engine.closing:
            checkpointer.checkpoint()
    return returned


def compact(engine: Engine, *, hold: float = HOLD, merge: bool = True) -> Steps:
    """Compact all tables in steps, between which commits go on. Stop it whenever you like, and begin anew.

    Make a checkpoint before, so that it knows how many pages are free, and after steps that gave something back.

    Args:
        engine: the engine.
        hold: seconds with the mutex that a step is to take. One takes longer where the storage has more free pages
            than fit into a quarter of the cache: 10 microseconds for each of them.
        merge: False gives back pages that are free already, and looks for no others. Cost: in proportion to them where
            the highest oids are at the end of the file, or else to the table.

    Yields:
        What the step did.

    Raises:
        OptionError: `hold` is not positive.
        StorageClosed, ReadOnlyError: it may not be written to.
        CommitRefused: something is done exclusively, such as a migration.
        DiskFullError: there is no room for the log of a step; nothing is lost.
        DamagedError: a page cannot be read, or the library has stopped.
    """
    if not 0 < hold < inf:
        raise OptionError(f"hold is a positive number of seconds, not {hold!r}")
    for name in TABLES:
        yield from _Compaction(engine, name, hold).steps(merge)
    failpoints.reached("compact.done")


def _log_bytes(engine: Engine, checkpointer: Checkpointer) -> int:
    with engine.lock:
        engine.require_open()
        return checkpointer.numbers().log_bytes


def _require_writable(engine: Engine) -> None:
    if not engine.environment.writable:
        raise ReadOnlyError(f"{engine.environment.path} was opened read-only: it cannot be compacted")


class _Pace:
    """How many pages a step takes, so that it lasts as long as it is to."""

    def __init__(self, hold: float) -> None:
        self._hold = hold
        self._most = int(hold / EASY)
        self.pages = FIRST_STEP

    def adapt(self, seconds: float, least: int = 0) -> None:
        """Take note of how long a step took. With fewer pages than `least` it is not worth its while."""
        factor = min(max(self._hold / max(seconds, 1e-6), 0.25), 1.5)
        worthy = max(min(int(self.pages * factor), self._most), least, SMALLEST_STEP)
        self.pages = min(worthy, LARGEST_STEP)


class _Compaction:
    """The compaction of one table. Its keys are numbers here: big-endian, as long as the last key."""

    def __init__(self, engine: Engine, name: str, hold: float) -> None:
        self._engine = engine
        self._environment = engine.environment
        self._name = name
        self._rows = engine.environment.tables[name]
        self._merging, self._giving = _Pace(hold), _Pace(hold)
        self._hold = hold
        self._filling = True
        self._held = 0.0
        self._length = self._above = self._returned = self._most = self._cached = 0
        self._free = 0
        """An estimate: others use and free pages between the steps."""

    def steps(self, merge: bool) -> Steps:
        """Compact the table."""
        with self._holding():
            extent = self._environment.extent(self._name)
            cache = self._environment.cache_statistics()
        pages = ((cache["gbytes"] << 30) + cache["bytes"]) // PAGE_SIZE
        self._cached = pages // CACHE_SHARE * 2
        self._most = max(min(int(self._hold / CACHED), pages // CACHE_SHARE), int(self._hold / READ), SMALL)
        self._free = self._environment.free_pages(self._name, COUNTED)
        if extent.buckets:
            yield from self._hash(merge)
        elif not (merge or self._free):
            return
        elif extent.pages <= SMALL:
            for how in (MERGE, GIVE_BACK, GIVE_BACK):
                yield self._whole(how)
        else:
            yield from self._btree(merge)

    def _hash(self, merge: bool) -> Steps:
        """Merge bucket after bucket, then cut off what is free at the end.

        Nothing is moved there: the library moves half of the table at once for that.
        """
        bucket: int | None = 0 if merge else None
        while bucket is not None:
            bucket = self._merge_buckets(bucket)
            yield self._step(0)
        yield self._whole(CUT)

    def _merge_buckets(self, first: int) -> int | None:
        """Merge some buckets; return the next one, None behind the last."""
        with self._holding():
            behind = self._environment.extent(self._name).buckets
            end = min(first + self._merging.pages, behind)
            if first < end:
                self._call(_bucket(first), _bucket(end - 1), MERGE, end - first)
        self._merging.adapt(self._held)
        return end if end < behind else None

    def _whole(self, how: int) -> Step:
        """Compact the whole table in one step."""
        with self._holding():
            before = self._returned
            self._call(None, None, how, SMALL)
        return self._step(self._returned - before)

    def _btree(self, merge: bool) -> Steps:
        """Merge from the first key on, and give back from the last one on, in turns.

        Giving back is a sweep to the first key, and then another one: the end of the file may hold the page of any
        key, and nothing before it can be cut off until that has moved.
        """
        bounds = self._bounds()
        if bounds is None:
            yield self._whole(GIVE_BACK)
            return
        low, end = bounds if merge else (bounds[1], bounds[1])
        vain = 0
        while low < end or (vain < VAIN and self._free > 0):
            before, high = self._returned, self._above
            while high > bounds[0] and (low < end or self._free > 0):
                if low < end and self._has_few():
                    low = self._merge(low, end)
                    yield self._step(0)
                else:
                    returned = self._returned
                    high = self._give_back(bounds[0], high)
                    yield self._step(self._returned - returned)
            vain = vain + 1 if self._returned - before < self._most // USEFUL else 0
            self._most <<= vain >= VAIN

    def _has_few(self) -> bool:
        """Tell whether to merge now: free pages are made until there are enough, and used until half are left."""
        self._filling = self._free < (self._most if self._filling else self._most // 2)
        return self._filling

    def _bounds(self) -> tuple[int, int] | None:
        """Return the numbers of the first key, and of one above the last; None where there is no row."""
        with self._holding(), reading(self._rows) as cursor:
            first, last = cursor.first(), cursor.last()
        if first is None or last is None:
            return None
        self._length = len(last[0])
        self._above = 1 << 8 * self._length
        return _number(first[0]), _number(last[0]) + 1

    def _merge(self, low: int, high: int) -> int:
        """Merge a range from `low` on; return where it ends."""
        with self._holding():
            end = self._find(self._share(low), self._merging.pages, low + 1, high)
            self._call(self._key(low), self._key(end), MERGE, self._merging.pages)
        self._merging.adapt(self._held)
        return end

    def _give_back(self, first: int, high: int) -> int:
        """Move the pages of a range that ends at `high`; return where it begins."""
        with self._holding():
            start = self._find(self._share(high), -self._giving.pages, first, high - 1)
            self._call(self._key(start), self._key(high), GIVE_BACK, self._giving.pages)
        self._giving.adapt(self._held, self._free // (WORTH if self._free <= self._cached else WORTH_MANY))
        return start

    def _find(self, share: float, pages: int, bottom: int, top: int) -> int:
        """Return a number between `bottom` and `top`, so many pages behind (or before) where `share` of the rows end.

        The numbers in between may be many or few: the library estimates their share from the pages above the leaves.
        """
        part = pages / self._environment.extent(self._name).pages
        wanted, tolerance = share + part, abs(part) / 4
        while bottom < top:
            middle = (bottom + top) // 2
            found = self._share(middle)
            if abs(found - wanted) <= tolerance:
                return middle
            bottom, top = (middle + 1, top) if found < wanted else (bottom, middle)
        return bottom

    def _share(self, number: int) -> float:
        """Return the share of the rows before a key."""
        key = self._key(number)
        return 1.0 if key is None else self._rows.key_range(key)[0]

    def _key(self, number: int) -> bytes | None:
        """Return a key; None for what is above the last one there can be."""
        return number.to_bytes(self._length, "big") if number < self._above else None

    def _call(self, start: bytes | None, stop: bytes | None, how: int, pages: int) -> None:
        """Let the library compact about so many pages. The mutex is held."""
        self._engine.transactions.need_room(pages * PAGE_SIZE // ROOM_SHARE)
        failpoints.reached("compact.begun")
        before = self._environment.extent(self._name).pages
        freed = self._environment.compact(self._name, start, stop, how, FILL if how == MERGE else ANY_FILL)
        returned = before - self._environment.extent(self._name).pages
        failpoints.reached("compact.returned" if returned else "compact.merged")
        self._free = max(0, self._free + freed - returned)
        self._returned += returned

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Hold the mutex if the storage may be written to now, and take the time."""
        engine = self._engine
        with engine.lock:
            started = time.perf_counter()
            if engine.closing:
                raise StorageClosed(f"{self._environment.path} is being closed")
            engine.require_open()
            engine.require_idle()
            _require_writable(engine)
            try:
                yield
            except LIBRARY_ERRORS as error:
                raise self._failed(error) from error
            self._held = time.perf_counter() - started

    def _failed(self, error: Exception) -> Exception:
        """Return what an error of the library means; the log may have been synced for a step."""
        stopped = self._environment.distrust(error)
        if stopped is None:
            return self._engine.failed(error)
        self._engine.refuse(stopped)
        return stopped

    def _step(self, returned: int) -> Step:
        return Step(self._name, returned * PAGE_SIZE, self._held)


def _number(key: bytes) -> int:
    return int.from_bytes(key, "big")


def _bucket(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
