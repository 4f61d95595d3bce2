"""Backups: what they cost those who commit meanwhile, and how long they and restores take."""

from __future__ import annotations

import gc
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.backups.copying import copies
from benchmarks.method.measure import Result, progress, ratios, scaled
from benchmarks.method.workers import Worker
from benchmarks.objects.records import record, records
from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.backup.making import back_up
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.stores import open_store
from berkeleydb_storage.control.access import open_source

GOAL = 2.0
"""Times as long may the slowest hundredth of the commits take."""
THREADS = (1, 4)
EVERY = 1.0
"""Seconds from one incremental backup to the next."""

NONE = "no backup"
FULL, FULL_BESIDE = "full", "full, by a process"
MORE, MORE_BESIDE = "incremental", "incremental, by a process"
ABOUT = {
    NONE: "durable=True, nothing else runs",
    FULL: "backup(full=True) in a thread, again and again",
    FULL_BESIDE: "the same in another process, over the control socket",
    MORE: "backup() in a thread, one a second",
    MORE_BESIDE: "the same in another process, over the control socket",
}


@dataclass(frozen=True)
class Sizes:
    """How much is backed up."""

    objects: int
    """In the storage that is committed to."""
    window: float
    """Seconds of commits of each kind in a round."""
    windows: int
    """Rounds of that."""
    megabytes: int
    """Of records in what is copied and restored."""
    rounds: int
    """Of that."""


SIZES = {
    "quick": Sizes(objects=500_000, window=2.0, windows=5, megabytes=100, rounds=3),
    "full": Sizes(objects=2_000_000, window=5.0, windows=9, megabytes=1000, rounds=3),
    "tiny": Sizes(objects=2000, window=0.05, windows=1, megabytes=1, rounds=1),
}

Taken = list[float]
"""Seconds that each commit took."""


def backup(directory: Path, sizes: Sizes) -> list[Result]:
    """Do all of it."""
    return [*latencies(directory / "latencies", sizes), *copies(directory / "copies", sizes.megabytes, sizes.rounds)]


class Maker:
    """Makes backups of a storage that another process has open: in a process of its own."""

    def __init__(self, storage: str) -> None:
        """Ask nothing yet."""
        self._storage = storage

    def make(self, target: str, seconds: float, full: bool) -> int:
        """Make backups for so long, one at least; return their bytes."""

        def one() -> int:
            with open_source(self._storage) as source:
                return back_up(source, Repository(open_store(target)), _silent, full=full).bytes

        return _again(one, seconds, 0 if full else EVERY)

    def close(self) -> None:
        """Be done."""


def _silent(activity: str, size: int) -> None:
    """Show no progress."""


def _again(one: Callable[[], int], seconds: float, every: float) -> int:
    """Do it for so long, one a while or one right after another; return the sum."""
    started = time.perf_counter()
    size = one()
    while (passed := time.perf_counter() - started) < seconds:
        time.sleep(min(every - passed % every, seconds - passed) if every else 0)
        size += one()
    return size


class Committers:
    """Threads that commit without a rest."""

    def __init__(self, storage: BerkeleyDBStorage, objects: int) -> None:
        """Prepare; nothing is done yet."""
        self._storage = storage
        self._objects = objects
        self._ended = False

    def during(self, threads: int, work: Callable[[], int]) -> tuple[Taken, float, int]:
        """Commit while something else is done.

        Returns:
            What each commit took, how long all of it, and what the other returned. Seconds.
        """
        self._ended = False
        taken: list[Taken] = [[] for _ in range(threads)]
        running = [threading.Thread(target=self._commit, args=(n, each)) for n, each in enumerate(taken)]
        started = time.perf_counter()
        with _resting_gc():
            for thread in running:
                thread.start()
            try:
                found = work()
            finally:
                self._ended = True
                for thread in running:
                    thread.join()
        return [each for some in taken for each in some], time.perf_counter() - started, found

    def _commit(self, seed: int, taken: Taken) -> None:
        chosen, clock = random.Random(), time.perf_counter
        session = self._storage.session()
        begin, store, end = session.begin, session.store, session.end
        while not self._ended or not taken:
            number = chosen.randrange(2, 1000) + 1000 * chosen.randrange(self._objects // 1000)
            changed = record(number, chosen.randrange(1 << 40) * 8 + seed)
            then = clock()
            begin()
            store(changed[:8], changed)
            end()
            taken.append(clock() - then)


@contextmanager
def _resting_gc() -> Iterator[None]:
    """Keep Python's own collector from being measured."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def latencies(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare commits while backups are made, and while none is."""
    path, target = directory / "storage", directory / "backups"
    path.mkdir(parents=True)
    target.mkdir()
    progress(f"backup: building {sizes.objects:,} objects")
    with BerkeleyDBStorage(path, durable=False) as storage:
        storage.migrate(records(sizes.objects))
    with BerkeleyDBStorage(path) as storage, Worker(Maker, path) as other:
        windows = _Windows(storage, other, target, sizes)
        return [windows.compare(threads) for threads in THREADS]


class _Windows:
    def __init__(self, storage: BerkeleyDBStorage, other: Worker, target: Path, sizes: Sizes) -> None:
        self._storage = storage
        self._committers = Committers(storage, sizes.objects)
        self._target = target
        self._sizes = sizes
        seconds = sizes.window
        self._works: dict[str, Callable[[], int]] = {
            NONE: lambda: time.sleep(seconds) or 0,
            FULL: lambda: _again(lambda: storage.backup(target, full=True).bytes, seconds, 0),
            MORE: lambda: _again(lambda: storage.backup(target).bytes, seconds, EVERY),
            FULL_BESIDE: lambda: int(other.call("make", target, seconds, True)),
            MORE_BESIDE: lambda: int(other.call("make", target, seconds, False)),
        }

    def compare(self, threads: int) -> Result:
        found: dict[str, list[tuple[Taken, float, int]]] = {name: [] for name in self._works}
        for turn in range(self._sizes.windows):
            progress(f"backup: commits of {threads} threads, round {turn + 1}")
            for name, work in self._works.items():
                self._begin_anew()
                found[name].append(self._committers.during(threads, work))
        return _result(threads, found, self._sizes)

    def _begin_anew(self) -> None:
        """Remove the backups that there are, and make one, for others to continue."""
        shutil.rmtree(self._target)
        self._target.mkdir()
        self._storage.backup(self._target)
        os.sync()


def _result(threads: int, found: dict[str, list[tuple[Taken, float, int]]], sizes: Sizes) -> Result:
    result = Result(
        f"backup, commits of {threads} thread{'s' if threads > 1 else ''}",
        f"Commits of one record without a rest, into {sizes.objects:,} objects, for {sizes.window:g} s and until the "
        "last backup that was begun by then is complete; in turn. Microseconds; MB/s: of backups. The backups are on "
        "the same disk.",
    )
    for name, windows in found.items():
        columns: dict[str, Any] = {}
        for title, share in (("p50", 0.5), ("p99", 0.99), ("longest", 1.0)):
            columns[title] = scaled([_percentile(taken, share) for taken, _, _ in windows], 1e6)
        columns["commits/s"] = [len(taken) / seconds for taken, seconds, _ in windows]
        if name != NONE:
            columns["MB/s"] = [size / 1e6 / seconds for _, seconds, size in windows]
        result.row(name, ABOUT[name], **columns)
    alone = [_percentile(taken, 0.99) for taken, _, _ in found[NONE]]
    for name, windows in found.items():
        if name != NONE:
            meanwhile = [_percentile(taken, 0.99) for taken, _, _ in windows]
            result.figure(f"p99 of commits, {name} / {NONE}", ratios(meanwhile, alone), most=GOAL)
    return result


def _percentile(values: Taken, share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
