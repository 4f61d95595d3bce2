"""Latencies of loads and commits while garbage is collected in the background, and while it is not."""

from __future__ import annotations

import gc
import random
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.method.measure import Result, progress, ratios
from benchmarks.objects.graphs import Graph
from berkeleydb_storage import BerkeleyDBStorage, GarbageManual, GarbageNumbers, GarbageThread
from berkeleydb_storage.format import pack_uint64

LIVE = 50_000
LOADS = 20
"""Loads between two commits."""
WAKES = 0.001
"""Seconds that the idle thread sleeps between two wakings; about those that the collector rests between two steps."""
SETTLE = 0.15
"""Seconds for a turn of the background thread to end."""
PACKED = 5
"""So much less garbage is there where a full pack is measured: it marks and looks first, and is to delete as well."""
WATCH = 0.05
"""Seconds between two looks at a storage that nobody uses."""
STALL = 0.02
"""Seconds that nobody is to wait."""

ALONE, IDLE, COLLECTING = "alone", "an idle thread", "collecting"


class Switched(GarbageThread):
    """The default policy, without grace; does nothing while it is off."""

    def __init__(self, *, packs: bool) -> None:
        """Begin switched off.

        Args:
            packs: whether it wants a full pack, all the time.
        """
        super().__init__(grace=0)
        self.on = False
        self._packs = packs

    def amount(self, numbers: GarbageNumbers) -> int:
        """Return what the default policy does, or nothing."""
        return super().amount(numbers) if self.on else 0

    def pack(self, numbers: GarbageNumbers) -> bool:
        """Return whether a full pack is to go on."""
        return self.on and self._packs


@dataclass
class Window:
    """What the foreground saw in a while; seconds."""

    loads: array[float] = field(default_factory=lambda: array("d"))
    commits: array[float] = field(default_factory=lambda: array("d"))
    seconds: float = 0.0
    collected: float = 0.0
    """Objects a second."""
    read: float = 0.0
    """Records a second that the collector read."""

    @property
    def longest(self) -> float:
        """Return the longest of all."""
        return max(max(self.loads), max(self.commits))


class Foreground:
    """Loads and commits, one thread without a rest."""

    def __init__(self, storage: BerkeleyDBStorage, graph: Graph, items: list[int]) -> None:
        """Prepare; nothing is done yet."""
        self._storage = storage
        chosen = random.Random(5)
        self._loads = [pack_uint64(number) for number in chosen.choices(items, k=100_000)]
        self._records = [graph.record(number, 1 + n) for n, number in enumerate(chosen.choices(items, k=10_000))]

    def run(self, seconds: float) -> Window:
        """Load and commit for a while, and record how long each takes."""
        window, storage = Window(), self._storage
        clock, load, begin, store, end = time.perf_counter, storage.load, storage.begin, storage.store, storage.end
        before, started = storage.statistics().collected, clock()
        now = started
        for n in range(1 << 62):
            first = n * LOADS % len(self._loads)
            for oid in self._loads[first : first + LOADS]:
                then = clock()
                load(oid)
                window.loads.append(clock() - then)
            record = self._records[n % len(self._records)]
            then = clock()
            begin()
            store(record[:8], record)
            end()
            now = clock()
            window.commits.append(now - then)
            if now - started > seconds:
                break
        after = storage.statistics().collected
        window.seconds = now - started
        window.collected = (after.objects - before.objects) / window.seconds
        window.read = (after.read - before.read) / window.seconds
        return window


@contextmanager
def _waking() -> Iterator[None]:
    """Let a Python thread wake up again and again that has nothing to do."""
    ended = threading.Event()

    def wake() -> None:
        while not ended.is_set():
            time.sleep(WAKES)

    thread = threading.Thread(target=wake)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _switched_on(policy: Switched) -> Iterator[None]:
    policy.on = True
    try:
        yield
    finally:
        policy.on = False
        time.sleep(SETTLE)


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


def _acyclic(graph: Graph, count: int) -> list[int]:
    return [graph.branching(500) for _ in range(-(-count // 500))]


def _rings(graph: Graph, count: int) -> list[int]:
    return [graph.ring(graph.random.randint(2, 50)) for _ in range(-(-count // 26))]


def _trees(graph: Graph, count: int) -> list[int]:
    return [graph.tree(graph.random.randint(2, 998)) for _ in range(-(-count // 500))]


KINDS: dict[str, tuple[Callable[[Graph, int], list[int]], bool]] = {
    "acyclic": (_acyclic, False),
    "rings": (_rings, False),
    "parent pointers": (_trees, False),
    "full pack": (_trees, True),
}


def latencies(directory: Path, garbage: int, seconds: float, windows: int) -> list[Result]:
    """Compare the latencies with and without the collection, for each kind of garbage."""
    found = []
    for durable in (True, False):
        for kind, (build, packs) in KINDS.items():
            progress(f"collect: latencies, {kind}, durable={durable}")
            amount = garbage // PACKED if packs else garbage
            with TemporaryDirectory(dir=directory) as path:
                measured = _measure(Path(path), build, amount, seconds, windows, packs=packs, durable=durable)
            found.append(_result(kind, measured, amount, seconds, durable=durable))
    return found


def _measure(
    path: Path,
    build: Callable[[Graph, int], list[int]],
    garbage: int,
    seconds: float,
    windows: int,
    *,
    packs: bool,
    durable: bool,
) -> dict[str, list[Window]]:
    policy = Switched(packs=packs)
    graph, items, _ = _store(path, build, garbage)
    with BerkeleyDBStorage(path, garbage_collection=policy, durable=durable) as storage:
        graph.drop(storage, *_held(graph))
        foreground = Foreground(storage, graph, items)
        del graph
        with _resting_gc():
            foreground.run(seconds)
            return _windows(foreground, policy, seconds, windows)


def _store(path: Path, build: Callable[[Graph, int], list[int]], garbage: int) -> tuple[Graph, list[int], int]:
    """Store objects that live, and some that the last of all holds.

    Returns:
        The graph, those that are used, and how many stay when the last holds nothing.
    """
    graph = Graph()
    items = [graph.add() for _ in range(min(LIVE, garbage))]
    for n in range(0, len(items), 1000):
        graph.hold(items[n : n + 1000])
    lasting = len(graph) + 1
    graph.hold(build(graph, garbage))
    with BerkeleyDBStorage(path, garbage_collection=GarbageManual(), durable=False) as filled:
        filled.migrate(graph.records())
    return graph, items, lasting


def _held(graph: Graph) -> list[int]:
    """Return the last object, and what it refers to."""
    return [len(graph) - 1, *graph.refs[-1]]


def _windows(foreground: Foreground, policy: Switched, seconds: float, windows: int) -> dict[str, list[Window]]:
    found: dict[str, list[Window]] = {ALONE: [], IDLE: [], COLLECTING: []}
    for _ in range(windows):
        found[ALONE].append(foreground.run(seconds))
        with _waking():
            found[IDLE].append(foreground.run(seconds))
        with _switched_on(policy):
            found[COLLECTING].append(foreground.run(seconds))
    return found


def _percentile(values: array[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def _result(kind: str, found: dict[str, list[Window]], garbage: int, seconds: float, *, durable: bool) -> Result:
    name = "durable" if durable else "not synced"
    result = Result(
        f"collect, latencies, {kind}, {name}",
        f"One thread without a rest: {LOADS} loads of random objects, a commit of one record, and so on; windows of "
        f"{seconds:g} s in turn. Alone; with a Python thread that wakes up every {WAKES * 1e3:g} ms and has nothing to "
        f"do; and while the default policy (but without grace) collects {garbage:,} objects. "
        "Microseconds; collected: objects a second; read: records a second that the collector read.",
    )
    for row, windows in found.items():
        columns: dict[str, Any] = {}
        for what in ("loads", "commits"):
            series = [getattr(window, what) for window in windows]
            for share in (0.5, 0.99):
                columns[f"{what} p{share * 100:g}"] = [_percentile(values, share) * 1e6 for values in series]
            columns[f"{what} longest"] = [max(max(values) for values in series) * 1e6]
        columns["collected"] = [window.collected for window in windows]
        columns["read"] = [window.read for window in windows]
        result.row(row, f"durable={durable}", **columns)
    for what in ("loads", "commits"):
        p99 = {row: [_percentile(getattr(window, what), 0.99) for window in found[row]] for row in found}
        result.figure(f"p99 of {what}, collecting / alone", ratios(p99[COLLECTING], p99[ALONE]), most=3.0)
        result.figure(f"p99 of {what}, an idle thread / alone", ratios(p99[IDLE], p99[ALONE]))
    for row, windows in found.items():
        goal: dict[str, Any] = {"most": STALL * 1e3} if row == COLLECTING else {}
        result.figure(f"longest, {row}", [max(window.longest for window in windows) * 1e3], unit="ms", **goal)
    collected = sum(window.collected * window.seconds for window in found[COLLECTING])
    result.notes.append(f"{collected:,.0f} objects of garbage were collected meanwhile")
    return result


def at_rest(directory: Path, garbage: int) -> list[Result]:
    """Measure how fast the default policy is while nobody uses the storage."""
    result = Result(
        "collect, at rest",
        f"{garbage:,} objects of garbage, collected by the default policy (but without grace) while nobody uses the "
        "storage; from the commit that drops them to the end.",
    )
    for kind, (build, packs) in KINDS.items():
        if packs:
            continue
        progress(f"collect: at rest, {kind}")
        with TemporaryDirectory(dir=directory) as path:
            graph, _, left = _store(Path(path), build, garbage)
            held = _held(graph)
            with BerkeleyDBStorage(path, garbage_collection=GarbageThread(grace=0)) as storage:
                started = time.perf_counter()
                graph.drop(storage, *held)
                taken = _until(storage, left) - started
        deleted = len(graph) - left
        result.row(kind, "durable=True", deleted=[deleted], seconds=[taken], **{"deleted/s": [deleted / taken]})
        result.figure(f"{kind}, deleted", [deleted / taken], unit="a second")
    return [result]


def _until(storage: BerkeleyDBStorage, objects: int) -> float:
    """Wait until so few objects are left; return when that was."""
    while storage.statistics().objects > objects:
        time.sleep(WATCH)
    return time.perf_counter()
