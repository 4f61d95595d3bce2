"""Storing new versions of few objects, again and again: how much that takes on the disk, and what a pack leaves."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.method.contest import Contender, Found, against, contest, rows
from benchmarks.method.measure import Result, seconds
from benchmarks.method.usage import disk
from benchmarks.peers.registry import (
    FILE,
    FILE2,
    LMDB,
    OURS,
    RELSTORAGE,
    SQLITE3,
    SQLITE_STORAGE,
    ZODB_FILE,
    open_store,
)
from benchmarks.work.stores import filled, items, some

PEERS = [OURS, FILE, FILE2, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE, LMDB, SQLITE3]
UPDATE, CLOSED, MOST = "µs an update", "MB on disk", "most MB on disk"
LOGS = "of that MB of log"
PACK, PACKED, PACKING = "seconds of a pack", "MB on disk after it", "most MB on disk during it"
QUARTERS = ("MB on disk after 25 %", "MB on disk after 50 %", "MB on disk after 75 %")
LOOKS = 40
"""How often the files are looked at meanwhile: a multiple of 4."""
WATCH = 0.02
"""Seconds between two looks during a pack."""
SEED = 4

Versions = dict[int, int]
"""Number of an object -> its last version."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    objects: int
    updates: int
    batch: int
    """Updates a commit."""
    few: bool = False


SIZES = {
    "tiny": Sizes(1500, 8000, 100, few=True),
    "quick": Sizes(10_000, 100_000, 1000),
    "full": Sizes(10_000, 1_000_000, 1000),
}


def updates(objects: int, number: int, batch: int) -> Iterator[list[tuple[int, int]]]:
    """Yield for each commit what it stores: numbers of items, and their new versions."""
    chosen, all_items = random.Random(SEED), items(objects, objects)
    for first in range(0, number, batch):
        yield list(zip(chosen.sample(all_items, batch), range(first + 1, first + batch + 1), strict=True))


def occupied(path: Path) -> float:
    """Return the MB that a store takes on the disk."""
    found = disk(path)
    return found["data"] + found["logs"]


def logs(path: Path) -> dict[str, float]:
    """Return the MB of its log files, of who has some: they are kept up to a size, whatever the store has."""
    found = disk(path)["logs"]
    return {LOGS: found} if found else {}


class Updates(Contender):
    """Begins with a store of some objects, and stores new versions of them."""

    def __init__(self, peer: str, path: str, objects: int, number: int, batch: int) -> None:
        """Store the objects."""
        super().__init__(peer, path)
        self._objects, self._number, self._batch = objects, number, batch
        self._versions: Versions = {}
        filled(peer, self.path, objects)

    def round(self) -> dict[str, float]:
        """Update, close and pack."""
        found = self._updated()
        self.verify()
        if not is_table(self.peer):
            found |= self._packed()
            self.verify()
        return found

    def _updated(self) -> dict[str, float]:
        from benchmarks.objects.records import record
        from berkeleydb_storage.format import pack_uint64

        store = open_store(self.peer, self.path)
        taken, seen = 0.0, []
        commits = self._number // self._batch
        for n, changes in enumerate(updates(self._objects, self._number, self._batch), 1):
            made = [(pack_uint64(number), record(number, version)) for number, version in changes]
            started = time.perf_counter()
            store.commit(made)
            taken += time.perf_counter() - started
            self._versions.update(changes)
            if n * LOOKS // commits > (n - 1) * LOOKS // commits:
                seen.append(occupied(self.path))
        store.close()
        at = dict(zip(QUARTERS, (seen[len(seen) * quarter // 4 - 1] for quarter in (1, 2, 3)), strict=True))
        closed = occupied(self.path)
        found = {UPDATE: taken / self._number * 1e6, **at, MOST: max(*seen, closed), CLOSED: closed}
        return {**found, **logs(self.path)}

    def _packed(self) -> dict[str, float]:
        store: Any = open_store(self.peer, self.path)
        with watched(self.path) as seen:
            taken = seconds(lambda: (pack(store.storage), shrink(self.peer, self.path, store.storage)))
        store.close()
        return {PACK: taken, PACKING: max(seen), PACKED: occupied(self.path)}

    def verify(self) -> None:
        """Have each object loaded.

        Raises:
            AssertionError: one is not what was stored last.
        """
        from benchmarks.objects.records import record
        from berkeleydb_storage.format import pack_uint64

        with closing(open_store(self.peer, self.path)) as store:
            for number in items(self._objects, self._objects):
                version = self._versions.get(number, 0)
                if store.load(pack_uint64(number)) != record(number, version):
                    raise AssertionError(f"{self.peer} has something else than version {version} of object {number}")


@contextmanager
def watched(path: Path) -> Iterator[list[float]]:
    """Look again and again at what a store takes on the disk, from another thread; in the end that is known."""
    seen, ended = [occupied(path)], threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH):
            with suppress(FileNotFoundError):  # a file that has just been replaced
                seen.append(occupied(path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()
        seen.append(occupied(path))


def is_table(peer: str) -> bool:
    """Tell whether a peer has records that refer to nothing: it has no pack."""
    return peer in (LMDB.name, SQLITE3.name)


def pack(storage: Any) -> None:
    """Pack a storage of Durus or ZODB that has made-up records."""
    from benchmarks.growth.dropping import packer

    packer(storage)()


def shrink(peer: str, path: Path, storage: Any) -> None:
    """Give back what the files can do without after a pack, where that is another step."""
    if peer == OURS.name:
        storage.compact()
    elif peer in (SQLITE_STORAGE.name, RELSTORAGE.name):
        from benchmarks.peers.sqlite import vacuum

        vacuum(path / "main.sqlite3" if path.is_dir() else path)
    for left in path.parent.glob("*.prepack"):
        left.unlink()


def update(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare sizes after updates, and what a pack leaves of them."""
    arguments = [sizes.objects, sizes.updates, sizes.batch]
    peers = some(PEERS, sizes.few)
    found = contest(Updates, peers, directory, arguments, 1, warm=False, fresh=True)
    result = Result(
        "update",
        f"{sizes.updates:,} updates of {sizes.objects:,} records of 142 bytes, {sizes.batch:,} a commit, chosen at "
        "random. MB in allocated blocks, logs included: meanwhile, after closing, and after a pack with what else "
        "gives room back (ours: compact; sqlite3: VACUUM; Durus: its old file is removed). Once each: sizes hardly "
        "vary. What is there in the end is compared with what was stored.",
    )
    rows(result, peers, found)
    for peer in PEERS[1:]:
        result.figure(f"{CLOSED}, {peer.name} / ours", against(found, CLOSED, peer, OURS))
    _packs(result, found)
    return [result]


def _packs(result: Result, found: Found) -> None:
    packing = [peer for peer in PEERS[1:] if PACKED in found.get(peer.name, {})]
    for peer in packing:
        result.figure(f"{PACKED}, {peer.name} / ours", against(found, PACKED, peer, OURS))
    result.notes.append(
        "ours and the tables need no pack for this: nothing of an old version is left. The times are of commits of "
        "records, without connections and pickles; see the durability of each."
    )
