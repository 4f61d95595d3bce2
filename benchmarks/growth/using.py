"""What a peer does with a store of so many objects: builds it, opens it, loads, commits."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from benchmarks.method.caches import drop
from benchmarks.method.contest import Contender
from benchmarks.method.measure import seconds
from benchmarks.method.usage import files, memory
from benchmarks.objects.records import batches, is_item, record
from benchmarks.peers.contract import Record, Store
from benchmarks.peers.registry import open_store
from berkeleydb_storage.format import pack_uint64

BUILT, SIZE = "s to build", "bytes an object"
OPENED, GROWN = "ms to open", "MB by opening"
LOADED, COMMITTED = "µs a load", "µs a commit"
OPENED_COLD, LOADED_COLD = "ms to open, cold", "µs a load, cold"
BLOCK = 512
"""Bytes that `st_blocks` counts in."""
LEAST = 0.004096
"""MB of a page: less is not seen."""
PIECE = 1 << 20
ROOT = pack_uint64(0)


def chosen(seed: int, number: int, objects: int) -> list[int]:
    """Return the numbers of objects that were chosen at random, the same for everyone; they refer to no others."""
    source = random.Random(seed)
    return [n - (not is_item(n)) for n in (source.randrange(3, objects) for _ in range(number))]


def require_object(number: int, found: bytes) -> None:
    """Make sure that this is an object's record, of whichever version.

    Raises:
        AssertionError: it is another's.
    """
    if b"%016d" % number not in found:
        raise AssertionError(f"object {number} is not what was stored, but {found!r}")


def load_all(store: Store, numbers: Sequence[int]) -> float:
    """Load objects, and return the seconds; afterwards make sure that it was they."""
    oids, load = [pack_uint64(number) for number in numbers], store.load

    def work() -> None:
        for oid in oids:
            load(oid)

    taken = seconds(work)
    for number, oid in list(zip(numbers, oids, strict=True))[:100]:
        require_object(number, load(oid))
    return taken


class Builds(Contender):
    """Stores so many objects, and leaves them there."""

    def __init__(self, peer: str, path: str, objects: int) -> None:
        """Do nothing yet."""
        super().__init__(peer, path)
        self._objects = objects

    def round(self) -> dict[str, float]:
        """Build, from the first commit until it is closed; what is stored is made meanwhile."""
        store = open_store(self.peer, self.path)

        def build() -> None:
            store.fill(batches(self._objects))
            store.close()

        taken = seconds(build)
        size = sum(file.stat().st_blocks for file in files(self.path)) * BLOCK
        return {BUILT: taken, SIZE: size / self._objects}


class Opens(Contender):
    """Opens, in a process that has opened an empty store before: so all that it takes to do that is imported."""

    def __init__(self, peer: str, path: str, objects: int, loads: int) -> None:
        """Import.

        Args:
            peer: who.
            path: where it has a store.
            objects: how many are there.
            loads: how many to load when nothing of them is in the system's cache.
        """
        super().__init__(peer, path)
        self._objects, self._loads = objects, loads
        open_store(peer, self.path.with_name("empty")).close()

    def round(self) -> dict[str, float]:
        """Open, once with and once without the system's cache; the latter only where that can be dropped."""
        opened = self._warm()
        if not drop(self.path):
            return opened
        cold = self._cold()
        _fetch(self.path)
        return opened | cold

    def _warm(self) -> dict[str, float]:
        before = memory()[0]
        store, taken = self._open()
        highest = memory()[1]
        require_object(0, store.load(ROOT))
        store.close()
        return {OPENED: taken * 1e3, GROWN: max(highest - before, LEAST)}

    def _cold(self) -> dict[str, float]:
        store, taken = self._open()
        loading = load_all(store, chosen(time.time_ns(), self._loads, self._objects))
        store.close()
        return {OPENED_COLD: taken * 1e3, LOADED_COLD: loading / self._loads * 1e6}

    def _open(self) -> tuple[Store, float]:
        """Return the store, and the seconds until it was open and had loaded the root."""
        started = time.perf_counter()
        store = open_store(self.peer, self.path)
        store.load(ROOT)
        return store, time.perf_counter() - started


def _fetch(path: Path) -> None:
    """Bring the files of a store into the system's cache."""
    for file in files(path):
        with file.open("rb", buffering=0) as opened:
            while opened.read(PIECE):
                pass


class Uses(Contender):
    """Loads random objects, and commits new versions of random objects, each in a transaction."""

    def __init__(self, peer: str, path: str, objects: int, loads: int, commits: int) -> None:
        """Open."""
        super().__init__(peer, path)
        self._store = open_store(peer, self.path)
        self._objects, self._loads, self._commits = objects, loads, commits
        self._rounds = count(1)

    def round(self) -> dict[str, float]:
        """Load, and commit: others in each round."""
        turn = next(self._rounds)
        loading = load_all(self._store, chosen(turn, self._loads, self._objects))
        changes = [(pack_uint64(n), record(n, turn)) for n in chosen(-turn, self._commits, self._objects)]
        committing = seconds(lambda: self._commit(changes))
        for oid, changed in changes:
            if self._store.load(oid) != changed:
                raise AssertionError(f"{self.peer} has not stored what was committed")
        return {LOADED: loading / self._loads * 1e6, COMMITTED: committing / self._commits * 1e6}

    def _commit(self, changes: Sequence[Record]) -> None:
        commit = self._store.commit
        for change in changes:
            commit([change])

    def commits_a_round(self) -> int:
        """Return how many."""
        return self._commits

    def close(self) -> None:
        """Close."""
        self._store.close()
