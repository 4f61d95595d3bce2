"""Going through objects that refer to one another, with an empty cache of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

from benchmarks.method.caches import drop
from benchmarks.method.contest import Contender, Found, against, contest, rows
from benchmarks.method.measure import Result, Series, seconds
from benchmarks.method.usage import parts
from benchmarks.objects.shapes import GOES_THROUGH, build_shapes
from benchmarks.peers.contract import Database
from benchmarks.peers.registry import FILE, FILE2, OURS, RELSTORAGE, SQLITE_STORAGE, ZODB_FILE, Peer, open_database
from benchmarks.work.stores import apart, some

PEERS = [OURS, FILE, FILE2, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE]
COLD, WARM = "cold", "warm"
DROPPED = "dropped"


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    objects: int
    """Of each shape."""
    rounds: int
    few: bool = False


SIZES = {"tiny": Sizes(1500, 1, few=True), "quick": Sizes(10_000, 3), "full": Sizes(40_000, 3)}


def column(shape: str, state: str) -> str:
    """Return the column of a shape."""
    return f"{shape}, {state}, µs an object"


class Traversing(Contender):
    """Goes through shapes that were stored before."""

    def __init__(self, peer: str, path: str, objects: int) -> None:
        """Store them, in a process that ends then, if a round before has not."""
        super().__init__(peer, path)
        self._objects = objects
        if not parts(self.path):
            apart(self._build)

    def _build(self) -> None:
        database = open_database(self.peer, self.path)
        build_shapes(database, self._objects)
        database.close()

    def round(self) -> dict[str, float]:
        """Go through each shape in a storage that was just opened, and again with what it has in memory then."""
        found, dropped = {}, True
        for shape in GOES_THROUGH:
            database = open_database(self.peer, self.path)
            dropped &= drop(self.path)
            found[column(shape, COLD)] = self.through(database, shape)
            database.forget()
            found[column(shape, WARM)] = self.through(database, shape)
            database.close()
        return {**found, DROPPED: float(dropped)}

    def through(self, database: Database, shape: str) -> float:
        """Go through a shape; return the microseconds an object.

        Raises:
            AssertionError: an object was not met, or twice.
        """
        visited: list[object] = []
        walk = GOES_THROUGH[shape]
        taken = seconds(lambda: visited.extend(walk(database.root[shape])))
        count = self._objects - (shape == next(iter(GOES_THROUGH)))
        if len(visited) != count or set(visited) != set(range(count)):
            raise AssertionError(f"{self.peer} led to {len(visited)} objects of {count} in the {shape}")
        return taken / count * 1e6


def undropped(found: Found) -> list[str]:
    """Take the column `DROPPED` away; return a note on whose caches were not quite empty."""
    kept = [peer for peer, columns in found.items() if not all(columns.pop(DROPPED))]
    return [f"cold, the system kept a little of these files in memory: {', '.join(kept)}"] if kept else []


def mean_against(found: Found, columns: Sequence[str], peer: Peer, other: Peer) -> Series | None:
    """Return the geometric mean of peer / other of some columns, round by round; None as `against` does."""
    each = [against(found, column, peer, other) for column in columns]
    return None if None in each else [geometric_mean(ratios) for ratios in zip(*filter(None, each), strict=True)]


def traverse(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare how long it takes to meet an object."""
    peers = some(PEERS, sizes.few)
    found = contest(Traversing, peers, directory, [sizes.objects], sizes.rounds, warm=False)
    result = Result(
        "traverse",
        f"{sizes.objects:,} small objects gone through from one to the next, in each shape, through a connection with "
        "an empty cache of objects. Cold: the storage was just opened, and the system's cache of its files dropped. "
        "Warm: once more, with what the storage and the system have in memory then. Each is met once: verified.",
    )
    result.notes += undropped(found)
    rows(result, peers, found)
    for state in (COLD, WARM):
        columns = [column(shape, state) for shape in GOES_THROUGH]
        for peer in PEERS[1:]:
            series = mean_against(found, columns, peer, OURS)
            result.figure(f"{state}, geometric mean of the shapes, {peer.name} / ours", series)
    return [result]
