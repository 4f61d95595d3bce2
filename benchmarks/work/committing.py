"""Commits of one record or object, and of a thousand: how long each takes, and how often it syncs."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any, TypeVar

from benchmarks.method.contest import Contender, Found, against, contest, rows
from benchmarks.method.measure import Result, Series
from benchmarks.objects.records import FOLDER, batches, record
from benchmarks.peers.contract import Database, Record, Store
from benchmarks.peers.registry import (
    BARE,
    BARE_UNSYNCED,
    FILE,
    FILE2,
    FILE_SYNCED,
    LMDB,
    OURS,
    OURS_BUFFERED,
    OURS_UNSYNCED,
    RELSTORAGE,
    RELSTORAGE_NORMAL,
    SQLITE3,
    SQLITE3_NORMAL,
    SQLITE_STORAGE,
    SYNCS,
    ZODB_FILE,
    Peer,
    open_database,
    open_store,
)
from benchmarks.work.building import build
from benchmarks.work.loading import unloaded, visits
from benchmarks.work.stores import items, some
from berkeleydb_storage.format import pack_uint64

SYNC = Peer("sync alone", f"{SYNCS}: what is written, at least 1 KiB, is appended to a file; the least that it takes")
SYNCED = [OURS, FILE_SYNCED, FILE2, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE, BARE, LMDB, SQLITE3, SYNC]
UNSYNCED = [OURS_UNSYNCED, OURS_BUFFERED, FILE, RELSTORAGE_NORMAL, BARE_UNSYNCED, SQLITE3_NORMAL]
OBJECTS = [OURS, FILE_SYNCED, FILE2, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE, OURS_UNSYNCED, FILE, RELSTORAGE_NORMAL]

STORED = 10_000
"""Objects that are there, and of which some are chosen at random for each commit."""
MEDIAN, P99, ONE = "µs a commit, median", "µs a commit, p99", "commits/s"
MANY = "µs an object, 1,000 a commit"

T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """How much is done a round."""

    synced: int
    """Commits of one record or object that are synced."""
    unsynced: int
    large: int
    """Commits of a thousand."""
    rounds: int
    few: bool = False
    """Whether only some peers take part, and the first round counts."""


SIZES = {
    "tiny": Sizes(5, 5, 1, 1, few=True),
    "quick": Sizes(200, 1000, 1, 5),
    "full": Sizes(1000, 10_000, 5, 11),
}


class SyncAlone:
    """A store that keeps nothing: its commits append to a file and wait for the disk."""

    def __init__(self, path: Path) -> None:
        """Create the file."""
        self._file = path.open("wb", buffering=0)
        self._sync = getattr(os, "fdatasync", os.fsync)

    def fill(self, batches: Iterable[Sequence[Record]]) -> None:
        """Leave it empty."""

    def commit(self, changes: Sequence[Record]) -> None:
        """Append, and wait for the disk."""
        self._file.write(b"".join([data for _, data in changes]).ljust(1024, b"."))
        self._sync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def durations(work: Callable[[T], object], given: Iterable[T]) -> list[float]:
    """Return the microseconds that each piece of a work takes. Python's own collector rests meanwhile."""
    clock = time.perf_counter
    gc.collect()
    gc.disable()
    try:
        stamps = [clock()]
        for each in given:
            work(each)
            stamps.append(clock())
    finally:
        gc.enable()
    return [(after - before) * 1e6 for before, after in pairwise(stamps)]


def described(one: Sequence[float], many: Sequence[float]) -> dict[str, float]:
    """Return the columns of commits of one and of a thousand, which took so many microseconds."""
    return {
        MEDIAN: median(one),
        P99: quantiles(one, n=100, method="inclusive")[98],
        ONE: len(one) / sum(one) * 1e6,
        MANY: sum(many) / len(many) / FOLDER,
    }


class Commits(Contender):
    """Commits new versions of records."""

    def __init__(self, peer: str, path: str, single: int, large: int) -> None:
        """Fill a store."""
        super().__init__(peer, path)
        self._single, self._large = single, large
        self._store: Any = SyncAlone(self.path) if peer == SYNC.name else open_store(peer, self.path)
        self._store.fill(batches(STORED))
        self._items = items(STORED, STORED)
        self._versions = count(1)
        self._random = Random(2)

    def round(self) -> dict[str, float]:
        """Commit one record after another, and some commits of a thousand."""
        one = [self._change(1) for _ in range(self._single)]
        many = [self._change(FOLDER) for _ in range(self._large)]
        found = described(durations(self._store.commit, one), durations(self._store.commit, many))
        if self.peer != SYNC.name:
            must_hold(self._store, self.peer, [each for changes in (*one, *many) for each in changes])
        return found

    def _change(self, number: int) -> list[Record]:
        chosen = self._random.sample(self._items, number)
        return [(pack_uint64(each), record(each, next(self._versions))) for each in chosen]

    def commits_a_round(self) -> int:
        """Return how many there are."""
        return self._single + self._large

    def close(self) -> None:
        """Close the store."""
        self._store.close()


def must_hold(store: Store, peer: str, committed: Iterable[Record]) -> None:
    """Have what was committed loaded.

    Raises:
        AssertionError: of a record, the last version is not there.
    """
    for oid, data in dict(committed).items():
        if store.load(oid) != data:
            raise AssertionError(f"{peer} does not give back what was committed of {oid.hex()}")


class ObjectCommits(Contender):
    """Commits changes of objects."""

    def __init__(self, peer: str, path: str, single: int, large: int) -> None:
        """Build a database."""
        super().__init__(peer, path)
        self._single, self._large = single, large
        self._database = open_database(peer, self.path)
        build(self._database, STORED)
        self._prices = map(float, count(1))
        self._random = Random(2)

    def round(self) -> dict[str, float]:
        """Change and commit one object after another, and a thousand some times."""
        found = unloaded(self._database)
        one = [self._change(found, 1) for _ in range(self._single)]
        many = [self._change(found, FOLDER) for _ in range(self._large)]
        changed = [each for change in (*one, *many) for each in change]
        visits([(number, item) for number, item, _ in changed])  # to load them
        taken = durations(self._commit, one), durations(self._commit, many)
        must_cost(self._database, self.peer, {number: price for number, _, price in changed})
        return described(*taken)

    def _change(self, found: list[tuple[int, Any]], number: int) -> list[tuple[int, Any, float]]:
        return [(n, item, next(self._prices)) for n, item in self._random.sample(found, number)]

    def _commit(self, change: list[tuple[int, Any, float]]) -> None:
        for _, item, price in change:
            item.price = price
        self._database.commit()

    def commits_a_round(self) -> int:
        """Return how many there are."""
        return self._single + self._large

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def must_cost(database: Database, peer: str, prices: dict[int, float]) -> None:
    """Have these items loaded anew.

    Raises:
        AssertionError: of one, the price is another one.
    """
    database.forget()
    for number, item in unloaded(database):
        if number in prices and item.price != prices[number]:
            raise AssertionError(f"{peer} has a price of {item.price} for object {number}, not {prices[number]}")


def commit(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare commits that are on the disk when they return, and those that are not; of records, and of objects."""
    places = [directory / name for name in ("synced", "not synced", "objects")]
    for place in places:
        place.mkdir()
    return [_synced(places[0], sizes), _unsynced(places[1], sizes), _objects(places[2], sizes)]


def _contest(kind: type[Contender], peers: Sequence[Peer], directory: Path, single: int, sizes: Sizes) -> Found:
    given = [single, sizes.large]
    return contest(kind, peers, directory, given, sizes.rounds, warm=not sizes.few, syncs=True)


def _synced(directory: Path, sizes: Sizes) -> Result:
    peers = some(SYNCED, sizes.few)
    found = _contest(Commits, peers, directory, sizes.synced, sizes)
    result = Result("commit, synced", _what(sizes.synced, sizes))
    rows(result, peers, found)
    for column, goals in ((ONE, {FILE2: 1.2, ZODB_FILE: 1.5, RELSTORAGE: 1.5}), (MANY, {})):
        _figures(result, found, column, OURS, [peer for peer in peers if peer not in (BARE, SYNC)], goals)
    result.figure("ours / bare Berkeley DB", _times(found, ONE, OURS, BARE), most=1.4)
    result.figure("ours / sync alone", _times(found, ONE, OURS, SYNC))
    result.figure(f"{FOLDER:,} a commit: ours / bare Berkeley DB", _times(found, MANY, OURS, BARE))
    return result


def _unsynced(directory: Path, sizes: Sizes) -> Result:
    peers = some(UNSYNCED, sizes.few)
    found = _contest(Commits, peers, directory, sizes.unsynced, sizes)
    result = Result("commit, not synced", _what(sizes.unsynced, sizes))
    rows(result, peers, found)
    others = [peer for peer in peers if peer not in (OURS_BUFFERED, BARE_UNSYNCED)]
    for column, goals in ((ONE, {FILE: 1.5}), (MANY, {})):
        _figures(result, found, column, OURS_UNSYNCED, others, goals)
    result.figure("FileStorage / ours, buffered", _times(found, ONE, FILE, OURS_BUFFERED), least=1.5)
    bare = "ours, not synced / bare Berkeley DB, not synced"
    result.figure(bare, _times(found, ONE, OURS_UNSYNCED, BARE_UNSYNCED))
    result.figure(f"{FOLDER:,} a commit: {bare}", _times(found, MANY, OURS_UNSYNCED, BARE_UNSYNCED))
    return result


def _objects(directory: Path, sizes: Sizes) -> Result:
    peers = some(OBJECTS, sizes.few)
    found = _contest(ObjectCommits, peers, directory, sizes.synced, sizes)
    result = Result(
        "commit, objects",
        f"Through a connection that has them in its cache: an attribute of one of {STORED:,} objects changed and "
        f"committed, {sizes.synced:,} times one after another; and {sizes.large} commits of {FOLDER:,} "
        "changed objects.",
    )
    rows(result, peers, found)
    for column in (ONE, MANY):
        for ours in (OURS, OURS_UNSYNCED):
            _figures(result, found, column, ours, [peer for peer in peers if peer.synced == ours.synced], {})
    return result


def _what(single: int, sizes: Sizes) -> str:
    return (
        f"{single:,} commits of one record one after another, a new version of {len(record(1))} bytes of one of "
        f"{STORED:,} that are there, chosen at random; and {sizes.large} commits of {FOLDER:,}. Ratios are of the time "
        "that all of them took, not of the medians."
    )


def _times(found: Found, column: str, peer: Peer, other: Peer) -> Series | None:
    """Return how many times as long a peer takes as another."""
    return against(found, column, other, peer) if column == ONE else against(found, column, peer, other)


def _figures(
    result: Result, found: Found, column: str, ours: Peer, peers: Sequence[Peer], goals: Mapping[Peer, float]
) -> None:
    """Add PEER / ours of a column for each of these peers but ours."""
    what = "" if column == ONE else f"{FOLDER:,} a commit: "
    for peer in peers:
        if peer != ours:
            goal = {"least": goals[peer]} if peer in goals else {}
            result.figure(f"{what}{peer.name} / {ours.name}", _times(found, column, peer, ours), **goal)
