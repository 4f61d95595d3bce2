"""Opening a large store in a fresh process, after it was closed and after a process that committed was killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from random import Random
from shutil import copyfile
from tempfile import TemporaryDirectory

from benchmarks.method.contest import PEAK, Contender, Found, against, contest, rows
from benchmarks.method.measure import Result, progress
from benchmarks.method.usage import forget_highest, memory
from benchmarks.peers.contract import Store
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
    open_store,
)
from benchmarks.work.stores import apart, filled, forked, items, some, verify

# What only prepares or verifies is imported where it is used, after the memory was measured.

CLOSED = [OURS, FILE, FILE_PACKED, FILE2, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE, BARE, LMDB, SQLITE3, SHELVE]
KILLED = [peer for peer in CLOSED if peer != FILE_PACKED]
MAY_BREAK = (SHELVE.name,)
"""Who promises nothing of what is there after a kill. Each is one file."""
REPAIRING = {FILE.name: "file_repaired_store", FILE2.name: "file2_repaired_store"}
"""Who may refuse to open after a kill without `repair=True`, and what opens it so."""
TRIED = (*MAY_BREAK, *REPAIRING)

GOAL_AT = 1_000_000
"""Objects for which there is a goal: what a FileStorage takes grows with them."""
OPENED, LOADED, MORE = "ms to open", "ms to the first load", "MB more by opening"
LOST, FAILED = "records lost", "refused to open"
COMPARED = 1000
"""Records that are compared with what was stored."""
PATIENCE = 60
"""Seconds to find out whether something broken can be used."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    objects: int
    commits: int
    """Acknowledged before a process is killed."""
    rounds: int
    few: bool = False
    """Whether only some peers take part, and the first round counts."""


SIZES = {"tiny": Sizes(5000, 5, 1, few=True), "quick": Sizes(30_000, 200, 2), "full": Sizes(1_000_000, 1000, 3)}


class Opens(Contender):
    """Opens a store that was closed, and loads a record. Of use for one round."""

    def __init__(self, peer: str, path: str, objects: int) -> None:
        """Leave the store, and have all imported that opening it needs, by opening an empty one beside it."""
        super().__init__(peer, path)
        self._objects = objects
        filled(peer, self.path, objects)
        self._prepare()
        with TemporaryDirectory(dir=self.path.parent) as beside:
            open_store(peer, Path(beside, "store")).close()

    def _prepare(self) -> None:
        """Do what has to happen before the store is opened."""

    def round(self) -> dict[str, float]:
        """Open it, load a record in its middle, compare some others, and close it."""
        forget_highest()
        before = memory()[0]
        oid = (self._objects // 2 + 1).to_bytes(8, "big")
        started = time.perf_counter()
        store = self._open()
        opened = time.perf_counter()
        store.load(oid)
        loaded = time.perf_counter()
        self._peak = memory()[1]
        found = self._verified(store)
        store.close()
        return {
            OPENED: (opened - started) * 1e3,
            LOADED: (loaded - started) * 1e3,
            MORE: self._peak - before,
            **found,
        }

    def _open(self) -> Store:
        return open_store(self.peer, self.path)

    def _verified(self, store: Store) -> dict[str, float]:
        """Raise where not everything is there; return more columns."""
        verify(store, self.peer, items(self._objects, COMPARED))
        return {}

    def peak(self) -> float:
        """Return the highest memory until the record was loaded, in MB."""
        return self._peak


def changes(objects: int, first: int) -> Iterator[tuple[int, int]]:
    """Yield what is committed until the end: (number of an item, its new version), the versions from `first` on."""
    from benchmarks.objects.records import is_item

    chosen = Random(first)
    for version in count(first):
        number = chosen.randrange(objects)
        while not is_item(number):
            number = chosen.randrange(objects)
        yield number, version


class Lost(Exception):
    """Raised where what a peer promised to keep is not there."""


class OpensAfterKill(Opens):
    """Opens a store after a process was killed that committed. Of use for one round."""

    def __init__(self, peer: str, path: str, objects: int, commits: int) -> None:
        """Leave the store as that process left it."""
        self._commits = commits
        self._first = time.time_ns() // 1000  # versions that no round before had
        self._acknowledged = 0
        super().__init__(peer, path, objects)

    def _prepare(self) -> None:
        if self.peer in MAY_BREAK:
            copyfile(self.path, self._whole())
        reading, writing = os.pipe()
        pid = forked(lambda: self._commit_on(reading, writing))
        os.close(writing)
        while self._acknowledged < self._commits and (more := os.read(reading, self._commits)):
            self._acknowledged += len(more)
        os.kill(pid, signal.SIGKILL)
        while more := os.read(reading, self._commits):
            self._acknowledged += len(more)
        os.close(reading)
        os.waitpid(pid, 0)
        if self._acknowledged < self._commits:
            raise RuntimeError(f"{self.peer}: the process that commits ended by itself: see above")

    def _commit_on(self, reading: int, writing: int) -> None:
        """Commit one record after another, and acknowledge each by a byte, until killed."""
        from benchmarks.objects.records import record
        from berkeleydb_storage.format import pack_uint64

        os.close(reading)
        store = open_store(self.peer, self.path)
        for number, version in changes(self._objects, self._first):
            store.commit([(pack_uint64(number), record(number, version))])
            os.write(writing, b".")

    def round(self) -> dict[str, float]:
        """Open it, if it can be opened; what may be broken is as before for the next round."""
        self._failed = self.peer in TRIED and not self._usable()
        if self._failed and self.peer not in REPAIRING:
            self._peak = memory()[1]
            found = {FAILED: 1.0}
        else:
            found = super().round()
        if self.peer in MAY_BREAK:
            self._whole().replace(self.path)
        return found

    def _whole(self) -> Path:
        return self.path.with_name("whole")

    def _usable(self) -> bool:
        """Tell whether it can be opened, found out by another process: it may crash, or never end."""
        try:
            apart(self._look)
        except RuntimeError:
            return False
        return True

    def _look(self) -> None:
        signal.alarm(PATIENCE)
        try:
            store = open_store(self.peer, self.path)
            self._lost(store)
            store.close()
        except Exception as error:
            progress(f"{self.peer} cannot be opened: {error!r:.200}")
            os._exit(1)

    def _open(self) -> Store:
        if not self._failed:
            return super()._open()
        from benchmarks.peers import durus

        store: Store = getattr(durus, REPAIRING[self.peer])(self.path)
        return store

    def _verified(self, store: Store) -> dict[str, float]:
        lost = self._lost(store)
        if lost and self.peer not in MAY_BREAK:
            raise Lost(f"{self.peer} lost {lost} records")
        return {LOST: float(lost), FAILED: float(self._failed)}

    def _lost(self, store: Store) -> int:
        """Return how many records are not there: of those that were committed and acknowledged, and of some others."""
        committed = changes(self._objects, self._first)
        allowed = {number: {version} for number, version in islice(committed, self._acknowledged)}
        number, version = next(committed)
        allowed.get(number, set()).add(version)  # was not acknowledged, but may be there
        others = [number for number in items(self._objects, COMPARED) if number not in allowed]
        kept = [holds(store, number, versions) for number, versions in allowed.items()]
        return (kept + [holds(store, number) for number in others]).count(False)


def holds(store: Store, number: int, versions: Iterable[int] = ()) -> bool:
    """Tell whether a store has an item: one of these versions of it; any, where none is given."""
    from benchmarks.objects.records import record
    from berkeleydb_storage.format import pack_uint64

    try:
        found = store.load(pack_uint64(number))
    except Exception:  # whatever it says of what is broken
        return False
    return (
        any(found == record(number, version) for version in versions) if versions else found[:28] == record(number)[:28]
    )


def open(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare the time to open and the memory that it takes, after a close and after a kill."""
    place = directory / "stores"
    place.mkdir()
    return [_closed(place, sizes), _killed(place, sizes)]


def _closed(directory: Path, sizes: Sizes) -> Result:
    peers = some(CLOSED, sizes.few)
    found = contest(Opens, peers, directory, [sizes.objects], sizes.rounds, warm=not sizes.few, fresh=True)
    result = Result("open, closed", f"{_what(sizes)} The store was closed.")
    rows(result, peers, found)
    goal = {"least": 20.0} if sizes.objects >= GOAL_AT else {}
    result.figure("time, FileStorage / ours", against(found, LOADED, FILE, OURS), **goal)
    result.figure("memory that opening takes, FileStorage / ours", against(found, MORE, FILE, OURS))
    result.figure("memory of the whole process, FileStorage / ours", against(found, PEAK, FILE, OURS))
    for peer in peers:
        if peer not in (OURS, FILE):
            result.figure(f"time, {peer.name} / ours", against(found, LOADED, peer, OURS))
    return result


def _killed(directory: Path, sizes: Sizes) -> Result:
    peers = some(KILLED, sizes.few)
    arguments = [sizes.objects, sizes.commits]
    found = contest(OpensAfterKill, peers, directory, arguments, sizes.rounds, warm=not sizes.few, fresh=True)
    result = Result(
        "open, killed",
        f"{_what(sizes)} A process had opened the store, and was killed (SIGKILL) in the middle of commits of one "
        f"record, when {sizes.commits:,} were acknowledged. Verified: these are there.",
    )
    rows(result, peers, found)
    for peer in peers[1:]:
        if peer.name in found and len(found[peer.name].get(LOADED, [])) == sizes.rounds:
            result.figure(f"time, {peer.name} / ours", against(found, LOADED, peer, OURS))
    _tell_broken(result, found)
    return result


def _tell_broken(result: Result, found: Found) -> None:
    """Say who could not be opened, and who lost something that he had not promised to keep."""
    for name, columns in found.items():
        failed, lost = sum(columns[FAILED]), sum(columns.get(LOST, []))
        rounds = len(columns[FAILED])
        if failed and name in REPAIRING:
            result.notes.append(
                f"{name}: in {failed:.0f} of {rounds} rounds it was killed within a commit, and could only be opened "
                "with repair=True, which has to be asked for"
            )
        elif failed or lost:
            result.notes.append(
                f"{name}: could not be opened in {failed:.0f} of {rounds} rounds; else, {lost:,.0f} records were lost"
            )


def _what(sizes: Sizes) -> str:
    return (
        f"A store of {sizes.objects:,} records is opened in a fresh process that has imported what it needs, and one "
        "record is loaded; its files are in the system's cache. Memory: the most until then, of the whole process, "
        "and more than before."
    )
