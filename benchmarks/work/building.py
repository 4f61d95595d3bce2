"""Making new objects and storing them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmarks.method.contest import Contender, against, contest, rows
from benchmarks.method.measure import Result, seconds
from benchmarks.objects.records import FOLDER
from benchmarks.peers.contract import Database
from benchmarks.peers.registry import (
    FILE,
    FILE2,
    FILE_SYNCED,
    OURS,
    OURS_UNSYNCED,
    RELSTORAGE,
    RELSTORAGE_NORMAL,
    SQLITE_STORAGE,
    ZODB_FILE,
    open_database,
)

PEERS = [OURS, OURS_UNSYNCED, FILE, FILE_SYNCED, FILE2, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE, RELSTORAGE_NORMAL]
BUILT, CLOSED = "µs an object", "µs an object, closed after it"


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    objects: int
    rounds: int


SIZES = {"tiny": Sizes(1500, 1), "quick": Sizes(20_000, 3), "full": Sizes(100_000, 7)}


def build(database: Database, count: int) -> None:
    """Make so many objects and store them, a folder a commit."""
    classes = import_module(f"benchmarks.objects.{database.toolkit}_classes")
    for first in range(0, count, FOLDER):
        items = [classes.Item(number) for number in range(first + 1, min(first + FOLDER, count))]
        database.root[first] = classes.Folder(items)
        database.commit()


class Builds(Contender):
    """Builds in an empty place, and removes it again."""

    def __init__(self, peer: str, path: str, objects: int) -> None:
        """Do nothing yet."""
        super().__init__(peer, path)
        self._objects = objects

    def round(self) -> dict[str, float]:
        """Build once, and close, which brings to the disk what a commit may leave for later."""
        database = open_database(self.peer, self.path)
        taken = seconds(lambda: build(database, self._objects))
        closing = seconds(database.close)
        self.remove()
        return {BUILT: taken / self._objects * 1e6, CLOSED: (taken + closing) / self._objects * 1e6}


def building(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare how long new objects take, from their construction to the last commit."""
    found = contest(Builds, PEERS, directory, [sizes.objects], sizes.rounds)
    result = Result(
        "build",
        f"{sizes.objects:,} small objects made and stored through a connection into an empty store, a commit every "
        f"{FOLDER:,}. Making and pickling them is included; opening is not, and closing where that is said.",
    )
    rows(result, PEERS, found)
    result.figure("FileStorage / ours", against(found, BUILT, FILE, OURS), least=1.1)
    for peer in (FILE_SYNCED, FILE2, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE):
        result.figure(f"{peer.name} / ours", against(found, BUILT, peer, OURS))
    result.figure("FileStorage / ours, not synced", against(found, BUILT, FILE, OURS_UNSYNCED))
    result.figure("closed after it, FileStorage / ours", against(found, CLOSED, FILE, OURS))
    return [result]
