"""What a continuous archive costs who commits: with one in a thread, by a process beside it, and none."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from random import Random
from statistics import quantiles

from benchmarks.method.measure import Result, Series, progress, ratios, scaled
from benchmarks.objects.records import fill, record
from benchmarks.peers.durus import DurusStore, ours
from berkeleydb_storage import Archive, BerkeleyDBStorage
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.stores import open_store

NONE, THREAD, PROCESS = "no archive", "in a thread", "by a process"
ABOUT = {
    NONE: "durable commits",
    THREAD: "archive=Archive(directory), a second",
    PROCESS: "durus-bdb archive, a second, beside it",
}
GOAL = 2.0
"""Times as long may the slowest hundredth of the commits take."""
PATIENT = 120.0
OBJECTS = 10_000
"""Objects that are there, and of which one is chosen at random for each commit."""


class Contestant:
    """A storage that is committed to."""

    def __init__(self, storage: BerkeleyDBStorage) -> None:
        """Measure nothing yet."""
        self._commit = DurusStore(storage).commit
        self._random = Random(4)
        self._version = 0
        self.medians: Series = []
        self.slow: Series = []
        self.slowest: Series = []
        self.rates: Series = []
        self.behind: Series = []

    def run(self, seconds: float, behind: Callable[[], float]) -> None:
        """Commit one record after another for so long."""
        taken = []
        clock, began = time.perf_counter, time.perf_counter()
        late = 0.0
        while clock() - began < seconds:
            self._version += 1
            number = self._random.choice(range(2, 1000)) + 1000 * self._random.randrange(OBJECTS // 1000)
            changed = record(number, self._version)
            started = clock()
            self._commit([(number.to_bytes(8, "big"), changed)])
            taken.append(clock() - started)
            if len(taken) % 100 == 0:
                late = max(late, behind())
        hundredths = quantiles(taken, n=100) if len(taken) > 1 else taken * 99
        self.medians.append(hundredths[49])
        self.slow.append(hundredths[98])
        self.slowest.append(max(taken))
        self.rates.append(len(taken) / seconds)
        self.behind.append(late)


SIZES = {"tiny": (0.2, 1), "quick": (5, 3), "full": (5, 7)}
"""Seconds of each window, and rounds."""


def archive(directory: Path, sizes: tuple[float, int]) -> list[Result]:
    """Compare commits with and without an archive, which is a directory: the network of a store would wait besides."""
    seconds, rounds = sizes
    places = {name: directory / f"{name} place" for name in (THREAD, PROCESS)}
    for place in places.values():
        place.mkdir()
    with ExitStack() as stack:
        options = {NONE: {}, THREAD: {"archive": Archive(places[THREAD])}, PROCESS: {}}
        storages = {
            name: stack.enter_context(closing(ours(directory / name, **given))) for name, given in options.items()
        }
        for storage in storages.values():
            fill(storage, OBJECTS)
        stack.enter_context(_archived(directory / PROCESS, places[PROCESS]))
        _wait(lambda: storages[THREAD].statistics().archive.tid is not None)
        contestants = {name: Contestant(storage) for name, storage in storages.items()}
        behind = {THREAD: lambda: time.time() - storages[THREAD].statistics().archive.time}
        for turn in range(-1, rounds):
            for name, contestant in contestants.items():
                progress(f"archive: {name}")
                contestant.run(seconds, behind.get(name, float))
            if turn < 0:
                for each in contestants.values():
                    each.medians, each.slow, each.slowest, each.rates, each.behind = [], [], [], [], []
        figures = storages[THREAD].statistics().archive
    result = Result("archive", f"Commits of one record one after another, {seconds:g} seconds a round, each durable.")
    for name, found in contestants.items():
        result.row(
            name,
            ABOUT[name],
            µs_median=scaled(found.medians, 1e6),
            µs_99_of_100=scaled(found.slow, 1e6),
            ms_slowest=scaled(found.slowest, 1e3),
            commits_a_second=found.rates,
        )
    for name in (THREAD, PROCESS):
        slow = ratios(contestants[name].slow, contestants[NONE].slow)
        result.figure(f"{name}: 99 of 100 commits / without", slow, most=GOAL)
        result.figure(f"{name}: median / without", ratios(contestants[name].medians, contestants[NONE].medians))
    if any(contestants[THREAD].behind):
        result.figure(f"{THREAD}: seconds of commits that are not there, at most", contestants[THREAD].behind)
    result.notes.append(
        f"in a thread: {figures.shipped_bytes:,} bytes of log in {figures.pieces} pieces, everything {figures.bases} "
        f"times, {_size(places[THREAD]):,} bytes in all; by a process: {_size(places[PROCESS]):,}"
    )
    return [result]


@contextmanager
def _archived(storage: Path, place: Path) -> Iterator[None]:
    """Have a process archive a storage."""
    command = [sys.executable, "-m", "berkeleydb_storage", "archive", "--quiet", str(storage), str(place)]
    with subprocess.Popen(command) as process:
        try:
            _wait(lambda: any(base.manifest for base in Repository(open_store(place)).bases()))
            yield
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENT)


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENT
    while not until():
        if time.monotonic() > end:
            raise TimeoutError("nothing is archived")
        time.sleep(0.05)


def _size(place: Path) -> int:
    return sum(open_store(place).list().values())
