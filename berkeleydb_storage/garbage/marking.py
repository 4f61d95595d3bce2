"""Mark and sweep, with commits going on: finds all that the root does not reach.

Marks from the root, along references, a step at a time. What a transaction touches meanwhile (what it stores, and all
that this refers to or did) is marked as well, so that no record that was looked at ever refers to one that will not
be: the incremental mark of Dijkstra and others (1978). What existed at the beginning and is not marked at the end is
garbage, and closed: nothing that is marked, or newer, refers to it.

One thread at a time. The engine's mutex is held for reading a few records. Memory: three roaring bitmaps, of what is
marked, what is still to be read, and what is found to be garbage: about two bits an object where oids are dense.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice

from pyroaring import BitMap64

from berkeleydb_storage.bitmaps import members
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.environment import reading, rows
from berkeleydb_storage.errors import DamagedError
from berkeleydb_storage.format import ROOT_OID, pack_oids, pack_uint64, references, unpack_oids, unpack_uint64

ROOT = 0
OIDS = (1 << 64) - 1
"""Above every oid that is handed out."""
SPARSE = 16
"""In a table of type hash each oid is asked for that was ever handed out. Where they are so many times as the objects,
it is looked through in one step, of a microsecond for each object."""
TRACE_BYTES = 1 << 20
"""Bytes of records that a step reads at most, but for its last record."""
CHUNK = 1 << 16
"""Oids whose absence from the marks is looked at together."""


class Mark:
    """One mark of one storage. End it with `close`."""

    def __init__(self, engine: Engine, *, ordered: bool) -> None:
        """Begin: what exists now, and is not reached at the end, is garbage.

        Args:
            engine: the storage.
            ordered: whether the table of objects has an order (btree).
        """
        self._engine = engine
        self._ordered = ordered
        with engine.lock:
            engine.require_open()
            self.watch = engine.transactions.watches.begin()
            self._limit = engine.next_oid
            self.rooted = engine.objects.exists(ROOT_OID)
        self.marked = BitMap64([ROOT])
        self._grey = BitMap64([ROOT])  # marked, and not read yet
        self._from_root = True
        self._late = BitMap64()  # marked for the sake of what was touched
        self._position = 0  # the grey ones are read in the order of their oids, round and round
        self.garbage = BitMap64()
        self._looked = 0  # up to here it is known what exists and is not marked

    def close(self) -> None:
        """End the watch."""
        with self._engine.lock:
            self._engine.transactions.watches.end(self.watch)

    @property
    def spoiled(self) -> bool:
        """Whether the storage was filled or repaired meanwhile: the mark is of no use."""
        return self.watch.spoiled

    def trace(self, limit: int) -> int:
        """Read up to `limit` objects and mark what they refer to; return how many, 0 where all are read.

        Raises:
            DamagedError: a record is malformed: what it keeps alive is not known.
        """
        engine = self._engine
        with engine.lock, engine.gate.explaining():
            engine.require_open()
            batch = self._read(self._next(limit))
        self._absorb(batch)
        return len(batch)

    def catch_up(self, limit: int) -> bool:
        """Mark what was touched and all it leads to, if that takes no more than `limit` records.

        Call it when `trace` has ended; where it does not suffice, trace again. The caller holds the mutex, so that
        nothing is touched meanwhile: under constant load there would always be something.

        Returns:
            Whether everything is marked that can be reached.
        """
        self._from_root = False
        self._shade(self.watch.touched)
        while self._grey and limit > 0:
            batch = self._read(self._next(limit))
            self._absorb(batch)
            limit -= len(batch)
        return not self._grey

    def _absorb(self, batch: list[tuple[bytes, bytes | None]]) -> None:
        """Mark what records refer to, and that they are read."""
        if batch:
            self._shade(_targets(batch))
            read = unpack_oids([oid for oid, _ in batch])
            self._grey.difference_update(BitMap64(read))
            self._position = read[-1] + 1

    def _read(self, batch: list[int]) -> list[tuple[bytes, bytes | None]]:
        """Read objects, and no more of them once they have `TRACE_BYTES`."""
        found: list[tuple[bytes, bytes | None]] = []
        size = 0
        with closing(self._in_order(batch) if self._ordered else self._one_by_one(batch)) as records:
            for oid, record in records:
                found.append((oid, record))
                size += len(record or b"")
                if size > TRACE_BYTES:
                    break
        return found

    def _one_by_one(self, batch: list[int]) -> Generator[tuple[bytes, bytes | None]]:
        for oid in pack_oids(batch):
            yield oid, self._engine.objects.get(oid)

    def _in_order(self, batch: list[int]) -> Generator[tuple[bytes, bytes | None]]:
        """Look up the first of neighbours, and go on from there: a third of the time of a look-up."""
        with reading(self._engine.objects) as cursor:
            following = -1
            for number, oid in zip(batch, pack_oids(batch), strict=True):
                row = cursor.next() if number == following else cursor.set_range(oid)
                found = row is not None and row[0] == oid
                following = number + 1 if found else -1
                yield oid, row[1] if row is not None and found else None

    def settled(self, number: int) -> bool:
        """Tell whether an object lives, or hangs on one that became a suspect since the mark began.

        So it is where the root led to it and nothing touched it. What was reached only from an object that was
        touched may have been garbage before, and may be still.
        """
        return number in self.marked and number not in self._late and number not in self.watch.touched

    def look(self, limit: int) -> int:
        """Look for up to `limit` objects that exist and are not marked; return how many were, 0 at the end.

        Call it when `trace` has ended; what is marked after that is not garbage all the same.
        """
        with self._engine.lock, self._engine.gate.explaining():
            self._engine.require_open()
            looked = 0
            with closing(self._unmarked()) as candidates:
                for found in islice(candidates, limit):
                    looked += 1
                    if found is not None:
                        self.garbage.add(found)
        return looked

    def _shade(self, numbers: BitMap64) -> None:
        fresh = numbers - self.marked
        if not self._from_root:
            self._late |= fresh
        self.marked |= fresh
        fresh.remove_range(self._limit, OIDS)  # what is new refers only to what was touched
        self._grey |= fresh

    def _next(self, limit: int) -> list[int]:
        """Return the next grey objects."""
        batch = members(self._grey, self._position, limit)
        if not batch and self._grey:
            self._position = 0
            batch = members(self._grey, 0, limit)
        return batch

    def _unmarked(self) -> Generator[int | None]:
        """Yield, for each look into the table, an object that is not marked, or None."""
        if not self._ordered and self._looked < self._limit and self._limit > SPARSE * self._engine.size:
            yield from self._all()
        while self._looked < self._limit:
            end = min(self._looked // CHUNK * CHUNK + CHUNK, self._limit)
            absent = BitMap64(range(self._looked, end)) - self.marked
            yield from self._existing(absent) if self._ordered else self._asked(absent)
            self._looked = max(self._looked, end)

    def _all(self) -> Iterator[int | None]:
        """Look through the whole table at once: it has no order, so that a later step could not go on."""
        existing = BitMap64(unpack_uint64(oid) for oid, _ in rows(self._engine.objects))
        existing.remove_range(self._limit, OIDS)
        self.garbage |= existing - self.marked
        self._looked = self._limit
        yield None

    def _asked(self, absent: BitMap64) -> Iterator[int | None]:
        for number in absent:
            self._looked = number + 1
            yield number if self._engine.objects.exists(pack_uint64(number)) else None

    def _existing(self, absent: BitMap64) -> Iterator[int | None]:
        """Look for those of `absent` that exist, jumping over gaps in the table, beyond `absent` too."""
        with reading(self._engine.objects) as cursor:
            for number in absent:
                if number < self._looked:
                    continue
                row = cursor.set_range(pack_uint64(number), dlen=0, doff=0)
                found = self._limit if row is None else unpack_uint64(row[0])
                self._looked = min(found, self._limit) if found != number else number + 1
                yield number if found == number else None


def _targets(batch: list[tuple[bytes, bytes | None]]) -> BitMap64:
    """Return what records refer to; those that were deleted meanwhile to nothing.

    Raises:
        DamagedError: a record is malformed.
    """
    found: list[bytes] = []
    for oid, record in batch:
        if record is not None:
            try:
                found += references(oid, record)
            except ValueError as error:
                raise DamagedError(
                    f"{error}; what it keeps alive is not known, so that nothing is deleted: run `durus-bdb check`"
                ) from error
    return BitMap64(unpack_oids(found))
