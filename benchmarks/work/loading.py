"""Loading records from a storage, and objects through a connection: warm, and from the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.method.caches import drop
from benchmarks.method.contest import Contender, Found, against, contest, rows
from benchmarks.method.measure import Result, seconds
from benchmarks.objects.records import record, records
from benchmarks.peers.contract import Database
from benchmarks.peers.registry import (
    BARE,
    FILE,
    FILE2,
    FILE_PACKED,
    LMDB,
    OURS,
    RELSTORAGE,
    SHELVE,
    SQLITE3,
    SQLITE_STORAGE,
    ZODB_FILE,
    open_database,
    open_store,
)
from benchmarks.work.stores import built, filled, items, some, verify
from berkeleydb_storage.format import pack_uint64

RECORDS = [OURS, FILE, FILE_PACKED, FILE2, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE, BARE, LMDB, SQLITE3, SHELVE]
OBJECTS = [OURS, FILE, FILE2, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE]

RANDOM, IN_ORDER = "µs a record, random order", "µs a record, in order of oids"
COLD = "µs a record, cold"
FROM_STORE, FROM_CACHE = "µs an object, from the store", "µs an object, from the cache of objects"
COLD_OBJECT = "µs an object, cold"
DROPPED = "dropped"
FEW = 50
"""One object in so many is loaded cold: few others are near, which would be read with it."""
AGAIN = 20
"""Times that objects are used which are in the cache of objects: it takes so little."""
COMPARED = 1000
"""Records of each round that are compared with what was stored."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    records: int
    """What is small enough for every cache; of objects, which take longer, a quarter."""
    rounds: int
    cold_rounds: int
    few: bool = False
    """Whether only some peers take part, and the first pass counts."""

    @property
    def objects(self) -> int:
        """Return how many objects are loaded through a connection."""
        return self.records // 4


SIZES = {"tiny": Sizes(4000, 1, 1, few=True), "quick": Sizes(10_000, 5, 2), "full": Sizes(100_000, 9, 5)}


def timed(work: Callable[[], int], number: int, expected: int) -> float:
    """Return the microseconds of each of `number` loads.

    Args:
        work: loads, and returns a sum over what was loaded.
        number: how many loads that are.
        expected: the sum.

    Raises:
        AssertionError: the sum is another one.
    """
    found: list[int] = []
    taken = seconds(lambda: found.append(work()))
    if found != [expected]:
        raise AssertionError(f"what was loaded comes to {found[0]:,}, not {expected:,}")
    return taken / number * 1e6


def loads(load: Callable[[bytes], bytes], oids: Sequence[bytes], expected: int) -> float:
    """Return the microseconds of a load of these records, of `expected` bytes together."""
    return timed(lambda: sum(map(len, map(load, oids))), len(oids), expected)


class Loads(Contender):
    """Loads every record of a store that is open and was read before."""

    def __init__(self, peer: str, path: str, objects: int) -> None:
        """Open it."""
        super().__init__(peer, path)
        filled(peer, self.path, objects)
        self._store = open_store(peer, self.path)
        self._expected = sum(len(data) for _, data in records(objects))
        self._compared = items(objects, COMPARED)
        oids = [pack_uint64(number) for number in range(objects)]
        self._orders = {RANDOM: Random(1).sample(oids, objects), IN_ORDER: oids}

    def round(self) -> dict[str, float]:
        """Load them in both orders."""
        load = self._store.load
        found = {column: loads(load, oids, self._expected) for column, oids in self._orders.items()}
        verify(self._store, self.peer, self._compared)
        return found

    def close(self) -> None:
        """Close the store."""
        self._store.close()


class ColdLoads(Contender):
    """Loads random records of a store that was just opened, after the system's cache was dropped."""

    peers, column, what = RECORDS, COLD, "records"

    def __init__(self, peer: str, path: str, objects: int) -> None:
        """Open it; what opening itself read is dropped, too, as far as the store does not keep it."""
        super().__init__(peer, path)
        filled(peer, self.path, objects)
        self._dropped = drop(self.path)
        self._store = open_store(peer, self.path)
        self._numbers = items(objects, objects // FEW)
        drop(self.path)

    def round(self) -> dict[str, float]:
        """Load them, once."""
        oids = [pack_uint64(number) for number in self._numbers]
        taken = loads(self._store.load, oids, sum(len(record(number)) for number in self._numbers))
        verify(self._store, self.peer, self._numbers)
        return {COLD: taken, DROPPED: float(self._dropped)}

    def close(self) -> None:
        """Close the store."""
        self._store.close()


def unloaded(database: Database) -> list[tuple[int, Any]]:
    """Return (number, item) of all items that `building.build` made, of which only the folders are loaded."""
    folders = sorted(database.root.items())
    return [(first + n, item) for first, folder in folders for n, item in enumerate(folder.items, 1)]


def visits(found: Sequence[tuple[int, Any]]) -> float:
    """Return the microseconds that an attribute of each of these items takes."""
    numbers = [number for number, _ in found]
    objects = [item for _, item in found]
    return timed(lambda: sum(map(attrgetter("number"), objects)), len(objects), sum(numbers))


class ObjectLoads(Contender):
    """Uses every item of a database that is open and was read before, in random order."""

    def __init__(self, peer: str, path: str, objects: int) -> None:
        """Open it."""
        super().__init__(peer, path)
        built(peer, self.path, objects)
        self._database = open_database(peer, self.path)

    def round(self) -> dict[str, float]:
        """Use them when the cache of objects has none of them, and when it has all."""
        self._database.forget()
        found = unloaded(self._database)
        Random(1).shuffle(found)
        return {FROM_STORE: visits(found), FROM_CACHE: visits(found * AGAIN)}

    def close(self) -> None:
        """Close the database."""
        self._database.close()


class ColdObjectLoads(Contender):
    """Uses random items of a database that was just opened, after the system's cache was dropped."""

    peers, column, what = OBJECTS, COLD_OBJECT, "objects, through a connection that has their folders"

    def __init__(self, peer: str, path: str, objects: int) -> None:
        """Open it, and load the folders; what that read is dropped, too, as far as the store does not keep it."""
        super().__init__(peer, path)
        built(peer, self.path, objects)
        self._dropped = drop(self.path)
        self._database = open_database(peer, self.path)
        found = unloaded(self._database)
        self._found = Random(1).sample(found, objects // FEW)
        drop(self.path)

    def round(self) -> dict[str, float]:
        """Use them, once."""
        return {COLD_OBJECT: visits(self._found), DROPPED: float(self._dropped)}

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def load(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare loads of records and of objects, warm and cold."""
    places = [directory / "records", directory / "objects"]
    for place in places:
        place.mkdir()
    return [
        _records(places[0], sizes),
        _cold(places[0], sizes.records, sizes, ColdLoads),
        _objects(places[1], sizes),
        _cold(places[1], sizes.objects, sizes, ColdObjectLoads),
    ]


def _records(directory: Path, sizes: Sizes) -> Result:
    peers = some(RECORDS, sizes.few)
    found = contest(Loads, peers, directory, [sizes.records], sizes.rounds, warm=not sizes.few)
    result = Result(
        "load, records",
        f"{sizes.records:,} records of {len(record(1))} bytes, folders more, stored by the thousand, closed and "
        "reopened: each loaded once a pass. Everything was read before.",
    )
    rows(result, peers, found)
    result.figure("random order, FileStorage / ours", against(found, RANDOM, FILE, OURS), least=2.0)
    result.figure("random order, ours / bare Berkeley DB get", against(found, RANDOM, OURS, BARE), most=1.4)
    result.figure("in order of oids, ours / bare Berkeley DB get", against(found, IN_ORDER, OURS, BARE))
    for peer in peers:
        if peer not in (OURS, FILE, BARE):
            result.figure(f"random order, {peer.name} / ours", against(found, RANDOM, peer, OURS))
    for peer in (FILE, FILE_PACKED):
        result.figure(f"in order of oids, {peer.name} / ours", against(found, IN_ORDER, peer, OURS))
    result.notes.append(
        "as built, FileStorage has neighbours in one buffer of its file; few programs load in the order of oids"
    )
    return result


def _objects(directory: Path, sizes: Sizes) -> Result:
    peers = some(OBJECTS, sizes.few)
    found = contest(ObjectLoads, peers, directory, [sizes.objects], sizes.rounds, warm=not sizes.few)
    result = Result(
        "load, objects",
        f"An attribute of each of {sizes.objects:,} small objects, in random order, through a connection whose cache "
        "has none of them (the store was read before), and again when it has all. Making them of their records is "
        "included.",
    )
    rows(result, peers, found)
    for column, what in ((FROM_STORE, "from the store"), (FROM_CACHE, "from the cache of objects")):
        for peer in peers[1:]:
            result.figure(f"{what}, {peer.name} / ours", against(found, column, peer, OURS))
    return result


def _cold(directory: Path, count: int, sizes: Sizes, kind: type[ColdLoads | ColdObjectLoads]) -> Result:
    peers = some(kind.peers, sizes.few)
    found = contest(kind, peers, directory, [count], sizes.cold_rounds, warm=False, fresh=True)
    result = Result(
        f"load, cold {kind.what.partition(',')[0]}",
        f"{count // FEW:,} random ones of {count:,} {kind.what}, in a fresh process, after the store was opened and "
        "the system's cache of its files was dropped. What lies below, such as the cache of a virtual machine's "
        "host, is as it was.",
    )
    _tell_dropped(result, found)
    rows(result, peers, found)
    for peer in peers[1:]:
        result.figure(f"{peer.name} / ours", against(found, kind.column, peer, OURS))
    return result


def _tell_dropped(result: Result, found: Found) -> None:
    """Say of whom the system's cache could not be dropped."""
    left = [name for name, columns in found.items() if not all(columns.pop(DROPPED))]
    if left:
        result.notes.append(f"the system's cache could not be dropped, so not cold: {', '.join(left)}")
