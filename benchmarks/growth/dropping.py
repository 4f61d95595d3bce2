"""What is collected: units of a thousand objects, subtrees and a ring, beside those that live; and how long that takes.

Each peer stores the same units, lets go of them by one commit that changes the root, and collects as it is made to:
ours in the background, the others by a pack, which reads all that lives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

from durus.storage import Storage

from benchmarks.growth.using import chosen, require_object
from benchmarks.method.contest import Contender
from benchmarks.method.measure import seconds
from benchmarks.objects.records import record, records
from benchmarks.peers.contract import Record
from benchmarks.peers.durus import DurusStore, ours
from benchmarks.peers.registry import OURS, open_store
from berkeleydb_storage import (
    BerkeleyDBStorage,
    GarbageManual,
    GarbageNumbers,
    GarbageThread,
    garbage_collection_interface,
)
from berkeleydb_storage.format import pack_oids, pack_uint64, references, unpack_uint64

UNIT = 1000
"""Objects of a unit, with the one that the root refers to."""
TREE = 50
"""Objects of a subtree."""
BRANCHES = 5
"""Of a node of it, at most."""
PLAIN, RETURNING = 10, 8
"""Subtrees of a unit: without pointers to the parents, and with them. The rest of it is a ring."""
SHARED = 10
"""Each so manieth object refers to one that lives."""
GONE, READ, WORK = "s until gone", "records read", "ms of work"
TENTH = "s until a tenth is gone"
WATCH = 0.005
"""Seconds between two looks at a storage that collects in the background."""
PATIENCE = 900
"""Seconds after which what is not collected never will be."""
CHECKED = 100_000
"""Objects of a storage of ours, at most, that is looked through whether its books are right."""
EVERYTHING = 1 << 62


def unit(numbers: Sequence[int], living: Sequence[int]) -> list[Record]:
    """Return the records of a unit.

    Args:
        numbers: `UNIT` of them; the first is of the object that holds the others.
        living: numbers of objects that live, to some of which it refers.
    """
    refers: list[list[int]] = [[] for _ in numbers]
    for n in range(PLAIN + RETURNING):
        _plant(refers, 1 + n * TREE, returning=n >= PLAIN)
    ring = range(1 + (PLAIN + RETURNING) * TREE, len(numbers))
    for n in ring:
        refers[n].append(n + 1 if n + 1 in ring else ring[0])
    refers[0].append(ring[0])
    named = [[numbers[n] for n in refs] for refs in refers]
    for refs, number in zip(named[1::SHARED], living, strict=False):
        refs.append(number)
    return [
        (pack_uint64(number), record(number, 0, b"".join(pack_oids(refs))))
        for number, refs in zip(numbers, named, strict=True)
    ]


def _plant(refers: list[list[int]], top: int, *, returning: bool) -> None:
    """Let a subtree begin at `top`, held by 0."""
    refers[0].append(top)
    for n in range(1, TREE):
        parent = top + (n - 1) // BRANCHES
        refers[parent].append(top + n)
        if returning:
            refers[top + n].append(parent)


class Beds:
    """The units of one store."""

    def __init__(self, store: Any, objects: int) -> None:
        """Store nothing yet.

        Args:
            store: a `Store` that has a `storage` of Durus or of ZODB, which hands out oids.
            objects: how many live, with the numbers below this.
        """
        self._store = store
        self._objects = objects
        self._root = next(iter(records(objects)))
        self._version = count(1)
        self.dropped: list[int] = []
        """Numbers of what the root does not lead to any more."""

    def use(self, store: Any) -> None:
        """Go on with the same store, which was opened anew."""
        self._store = store

    def store(self, units: int) -> None:
        """Store so many units, a commit each."""
        holders: list[int] = []
        for n in range(units):
            numbers = self._numbers()
            holders.append(numbers[0])
            self.dropped += numbers
            living = chosen(n, UNIT // SHARED, self._objects)
            self._store.commit([self._rooted(holders), *unit(numbers, living)])

    def _numbers(self) -> list[int]:
        """Return new ones; a SqliteStorage begins with one that it has."""
        fresh = (unpack_uint64(self._store.storage.new_oid()) for _ in count())
        numbers: list[int] = []
        while len(numbers) < UNIT:
            if (number := next(fresh)) >= self._objects:
                numbers.append(number)
        return sorted(numbers)

    def _rooted(self, holders: Iterable[int]) -> Record:
        """Return the root, which refers to these as well."""
        oid, data = self._root
        return oid, record(0, next(self._version), b"".join([*references(oid, data), *pack_oids(holders)]))

    def drop(self) -> None:
        """Let go of all units."""
        self._store.commit([self._rooted([])])

    def require_gone(self) -> None:
        """Make sure that what was dropped is gone, and that of what lives nothing is.

        Raises:
            AssertionError: it is not so.
        """
        if isinstance(self._store.storage, Storage):
            self._store.storage.sync()  # as a connection does before it loads what others have changed
        left = sum(self._has(number) for number in self.dropped)
        if left:
            raise AssertionError(f"{left} of {len(self.dropped)} objects that were dropped are there")
        for number in chosen(0, 1000, self._objects):
            require_object(number, self._store.load(pack_uint64(number)))

    def _has(self, number: int) -> bool:
        try:
            self._store.load(pack_uint64(number))
        except KeyError:
            return False
        return True


class AtOnce(garbage_collection_interface):
    """Does all that there is to do after each commit, without a rest."""

    grace = 0.0

    def amount(self, numbers: GarbageNumbers) -> int:
        """Return more than there is."""
        return EVERYTHING


class Collects(Contender):
    """Stores units and lets go of them; measures how long it takes until they are gone."""

    def __init__(self, peer: str, path: str, objects: int, units: int) -> None:
        """Do nothing yet.

        Args:
            peer: who.
            path: where it has a store.
            objects: how many live there.
            units: a tenth of that; 0: only one unit is collected.
        """
        super().__init__(peer, path)
        self._objects, self._units = objects, units

    def round(self) -> dict[str, float]:
        """Do it with one unit and with a tenth of what lives."""
        return self._in_the_background() if self.peer == OURS.name else self._by_packing()

    def _by_packing(self) -> dict[str, float]:
        found = {GONE: self._packed(1)}
        return found | {TENTH: self._packed(self._units)} if self._units else found

    def _packed(self, units: int) -> float:
        """Return the seconds that a pack takes; what it left is looked at through a store that is opened after it."""
        store: Any = open_store(self.peer, self.path)
        beds = Beds(store, self._objects)
        beds.store(units)
        beds.drop()
        taken = seconds(packer(store.storage))
        store.close()
        for left in self.path.parent.glob("*.prepack"):
            left.unlink()
        store = open_store(self.peer, self.path)
        beds.use(store)
        beds.require_gone()
        store.close()
        return taken

    def _in_the_background(self) -> dict[str, float]:
        alone, _ = self._collected(1, at_once=True)
        gone, read = self._collected(1)
        found = {GONE: gone, READ: read, WORK: alone * 1e3}
        return found | {TENTH: self._collected(self._units)[0]} if self._units else found

    def _collected(self, units: int, *, at_once: bool = False) -> tuple[float, int]:
        """Return the seconds that it takes ours to collect units, and how many records it reads for them.

        The storage is opened anew before, so that its cache does not have what was stored last.
        """
        with ours(self.path, garbage_collection=GarbageManual()) as storage:
            beds = Beds(DurusStore(storage), self._objects)
            beds.store(units)
        policy = AtOnce() if at_once else GarbageThread(grace=0)
        with ours(self.path, garbage_collection=policy) as storage:
            beds.use(DurusStore(storage))
            started = time.perf_counter()
            beds.drop()
            taken = self._until_gone(storage) - started
            beds.require_gone()
            self._require_sound(storage)
            return taken, storage.statistics().collected.read

    def _until_gone(self, storage: BerkeleyDBStorage) -> float:
        """Wait until what lives is all that there is, and return when that was."""
        started = time.perf_counter()
        while (left := storage.statistics().objects - self._objects) > 0:
            if time.perf_counter() - started > PATIENCE:
                raise AssertionError(f"{left} objects that were dropped are there after {PATIENCE} seconds")
            time.sleep(WATCH)
        return time.perf_counter()

    def _require_sound(self, storage: BerkeleyDBStorage) -> None:
        if self._objects <= CHECKED and (faults := storage.check().faults):
            raise AssertionError(f"{len(faults)} faults: {faults[0]}")


def packer(storage: Any) -> Callable[[], object]:
    """Return what packs a storage of Durus or of ZODB; the latter is told how to find the references of our records."""
    if isinstance(storage, Storage):
        return storage.pack
    mended = mended_relstorage if type(storage).__module__.startswith("relstorage") else nullcontext

    def pack() -> None:
        with mended():
            storage.pack(time.time(), _referred)

    return pack


@contextmanager
def mended_relstorage() -> Iterator[None]:
    """Let RelStorage 4.3 pack objects with references among many that have none, on sqlite3.

    Where it empties a batch before the first row of another kind goes in, it asks sqlite3 to insert no rows, which that
    refuses ("incomplete input"). So kinds without rows are taken out before.
    """
    from relstorage.adapters.batch import RowBatcher

    insert = RowBatcher._do_inserts

    def insert_rows(self: Any) -> int:
        for kind in [kind for kind, rows in self.inserts.items() if not rows]:
            del self.inserts[kind]
        count: int = insert(self) if self.inserts else 0
        return count

    RowBatcher._do_inserts = insert_rows
    try:
        yield
    finally:
        RowBatcher._do_inserts = insert


def _referred(data: bytes, found: list[bytes] | None = None) -> list[bytes]:
    """Return the oids in a record, as ZODB's `referencesf` does; into a list, where one is given."""
    oids = list(references(data[:8], data))
    if found is not None:
        found += oids
    return oids
