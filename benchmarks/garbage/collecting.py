"""The collection of garbage: what it reads for each record that it deletes, what others notice, what it costs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pyroaring import BitMap64

from benchmarks.garbage.counting import counting
from benchmarks.garbage.foreground import at_rest, latencies
from benchmarks.garbage.packing import packs
from benchmarks.method.measure import Result, progress, seconds
from benchmarks.objects.graphs import ROOT, Graph
from berkeleydb_storage import BerkeleyDBStorage, GarbageManual, GarbageNumbers, garbage_collection_interface
from berkeleydb_storage.format import unpack_uint64

TREE = 1000
"""Objects in a tree that lives."""
HELD = 1000
"""Objects that one holder refers to."""
EVERYTHING = 1 << 62

Dropped = tuple[int, list[int]]
"""Who refers to them, and what it is to drop."""


@dataclass(frozen=True)
class Sizes:
    """How much is collected."""

    live: tuple[int, ...]
    """Objects that stay, beside the subtrees that are dropped; the last is what the goal is for."""
    subtrees: int
    linked: int
    rings: int
    singles: int
    falls: int
    """How often the count of an object that lives falls."""
    packed: int
    """Objects that live in a full pack; half as many are garbage."""
    packs: int
    """Rounds of it."""
    garbage: int
    """Objects to be collected while others use the storage, and while nobody does."""
    window: float
    """Seconds of use with, and without that."""
    windows: int
    """Of each kind."""
    commits: int
    """Commits a round, with and without counting references."""
    rounds: int
    """Of those commits."""


SIZES = {
    "quick": Sizes((10_000, 50_000), 200, 20_000, 2000, 20_000, 2000, 50_000, 1, 50_000, 1.0, 2, 5, 5),
    "full": Sizes(
        (10_000, 100_000, 1_000_000), 1000, 100_000, 10_000, 100_000, 10_000, 1_000_000, 3, 500_000, 2.0, 8, 20, 7
    ),
    "tiny": Sizes((300, 1000), 6, 100, 10, 100, 20, 200, 1, 200, 0.02, 2, 1, 2),
}


class OnDemand(garbage_collection_interface):
    """Collects inline, after the commits that are asked to."""

    grace = 0.0
    wanted = 0

    def amount(self, numbers: GarbageNumbers) -> int:
        """Return how much is wanted now."""
        return self.wanted


class Subject:
    """A storage with a graph, whose garbage is collected when that is asked for."""

    def __init__(self, path: Path, graph: Graph) -> None:
        """Store the graph."""
        self.graph = graph
        self._bell = graph.hold([])
        self._policy = OnDemand()
        with BerkeleyDBStorage(path, garbage_collection=GarbageManual(), durable=False) as storage:
            storage.migrate(graph.records())
        self.storage = BerkeleyDBStorage(path, garbage_collection=self._policy, durable=False)
        self._rung = 0

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Let the collector do all that it finds to do, after each commit."""
        self._policy.wanted = EVERYTHING
        try:
            yield
        finally:
            self._policy.wanted = 0

    def collect(self) -> None:
        """Let it go on, after commits that concern nobody, until nothing is left for it."""
        before = None
        with self.collecting():
            while before != (before := self.storage.statistics().collected):
                self._rung += 1
                self.graph.store(self.storage, self._bell, version=self._rung)

    def must_be(self, expected: BitMap64) -> None:
        """Make sure that these objects are stored, no others, and that the books are right."""
        stored = BitMap64(unpack_uint64(oid) for oid, _ in self.storage.gen_oid_record())
        if stored != expected:
            raise AssertionError(
                f"{len(expected - stored)} objects too many were deleted, {len(stored - expected)} left"
            )
        if faults := self.storage.check().faults:
            raise AssertionError(f"{len(faults)} faults: {faults[0]}")


@contextmanager
def _subject(directory: Path, graph: Graph) -> Iterator[Subject]:
    with TemporaryDirectory(dir=directory) as path:
        subject = Subject(Path(path), graph)
        with subject.storage:
            yield subject


def collect(directory: Path, sizes: Sizes) -> list[Result]:
    """Do all of it."""
    return [
        *reads(directory, sizes),
        *packs(directory / "packs", sizes.packed, sizes.packed // 2, sizes.packs),
        *at_rest(directory, sizes.garbage),
        *latencies(directory, sizes.garbage, sizes.window, sizes.windows),
        *counting(directory / "counting", sizes.commits, sizes.rounds),
    ]


def reads(directory: Path, sizes: Sizes) -> list[Result]:
    """Count what is read to delete, and for nothing."""
    return [_deleting(directory, sizes), _living(directory, sizes)]


def _deleting(directory: Path, sizes: Sizes) -> Result:
    result = Result(
        "collect, reads",
        "Dropped by commits, then collected in one thread that nobody disturbs, without a full pack and without grace: "
        "records read for each record deleted, as the engine counts them, of which the search for cycles; deleted "
        "records a second. At the end all that was dropped is gone, and nothing else: verified. Once each.",
    )
    ratios = []
    for live in sizes.live:
        name = f"{sizes.subtrees:,} subtrees of 2 to 500 of {live:,} that live"
        ratios.append(_dropped(directory, result, name, "parent pointers, popular objects", _subtrees(live, sizes)))
    least = sizes.live[0]
    others: list[tuple[str, str, Callable[[Graph], list[Dropped]]]] = [
        (f"a list of {sizes.linked:,}", "doubly linked", lambda graph: [_held(graph, graph.linked(sizes.linked)[:1])]),
        (f"{sizes.rings:,} rings of 2 to 50", "popular objects", lambda graph: _rings(graph, sizes.rings)),
        (f"{sizes.singles:,} objects", "nothing but that", lambda graph: _singles(graph, sizes.singles)),
    ]
    for name, about, build in others:
        _dropped(directory, result, name, about, _beside(least, build))
    result.figure(f"reads per deleted record, subtrees of {sizes.live[-1]:,}", ratios[-1:], most=4.0)
    result.figure(f"the same, of {sizes.live[-1]:,} / of {sizes.live[0]:,}", [ratios[-1] / ratios[0]])
    return result


def _dropped(directory: Path, result: Result, name: str, about: str, made: tuple[Graph, list[Dropped]]) -> float:
    """Drop, collect, verify, and add a row; return the reads per deleted record."""
    progress(f"collect: {name}")
    graph, dropped = made
    with _subject(directory, graph) as subject:
        expected = BitMap64(range(len(graph)))
        for holder, numbers in dropped:
            graph.drop(subject.storage, holder, *numbers)
        expected &= _reached(graph)
        taken = seconds(subject.collect)
        subject.must_be(expected)
        deleted, _, read = subject.storage.statistics().collected
    result.row(
        name,
        about,
        deleted=[deleted],
        reads_per_deleted=[read / deleted],
        **{"of which searches": [read / deleted - 1]},
        seconds=[taken],
        **{"deleted/s": [deleted / taken]},
    )
    return read / deleted


def _reached(graph: Graph) -> BitMap64:
    found, waiting = BitMap64([ROOT]), [ROOT]
    while waiting:
        for ref in graph.refs[waiting.pop()]:
            if ref not in found:
                found.add(ref)
                waiting.append(ref)
    return found


def _subtrees(live: int, sizes: Sizes) -> tuple[Graph, list[Dropped]]:
    """Make trees that live, and subtrees of their nodes: some came with the tree, some later, some grew."""
    graph, dropped = Graph(), []
    number = max(2, live // TREE)
    size, third = live // number, sizes.subtrees // 3
    nodes: list[int] = []
    for n in range(number // 2):
        top = graph.tree(size, ROOT)
        nodes += range(top, top + size)
        for _ in range(third * n // (number // 2), third * (n + 1) // (number // 2)):
            dropped.append(_grafted(graph, graph.random.randrange(top, top + size)))
    first = len(graph)
    graph.grown([ROOT] * (number - number // 2), [size] * (number - number // 2))
    nodes += range(first, len(graph))
    dropped += [_grafted(graph, graph.random.choice(nodes)) for _ in range(third)]
    holders = graph.random.choices(nodes, k=sizes.subtrees - 2 * third)
    tops = graph.grown(holders, [graph.random.randint(2, 500) for _ in holders])
    return graph, dropped + [(holder, [top]) for holder, top in zip(holders, tops, strict=True)]


def _grafted(graph: Graph, holder: int) -> Dropped:
    return holder, [graph.tree(graph.random.randint(2, 500), holder)]


def _beside(live: int, build: Callable[[Graph], list[Dropped]]) -> tuple[Graph, list[Dropped]]:
    """Make something that is dropped, and others that live."""
    graph = Graph()
    graph.tree(live // 2, ROOT)
    dropped = build(graph)
    graph.tree(live // 2, ROOT)
    return graph, dropped


def _held(graph: Graph, numbers: list[int]) -> Dropped:
    """Let one object refer to these, until it drops them."""
    return graph.hold(numbers), numbers


def _rings(graph: Graph, number: int) -> list[Dropped]:
    tops = [graph.ring(graph.random.randint(2, 50)) for _ in range(number)]
    return [_held(graph, tops[n : n + HELD]) for n in range(0, number, HELD)]


def _singles(graph: Graph, number: int) -> list[Dropped]:
    numbers = [graph.add() for _ in range(number)]
    return [_held(graph, numbers[n : n + HELD]) for n in range(0, number, HELD)]


def _living(directory: Path, sizes: Sizes) -> Result:
    graph = Graph()
    half = sizes.live[len(sizes.live) // 2] // 2
    top = graph.tree(half, ROOT)
    linked = graph.linked(sizes.linked)
    graph.hold(linked[:1])
    holder = graph.hold([])
    nodes = range(top + half // 4, top + half)
    candidates = {
        "a popular object": graph.popular[0],
        "an inner node of a tree": next(node for node in nodes if len(graph.refs[node]) > 3),
        "a leaf of a tree": next(node for node in nodes if len(graph.refs[node]) == 1),
        f"in the middle of a list of {len(linked):,}": linked[len(linked) // 2],
    }
    result = Result(
        "collect, alive",
        f"Each of these, among {len(graph):,} objects that live, gains a referrer and loses it again, "
        f"{sizes.falls:,} times, and the collector does all that it finds to do after each of these commits. Records "
        "read to find out that it lives, in all, and microseconds for a commit and what follows it.",
    )
    most = 0
    with _subject(directory, graph) as subject:
        for name, candidate in candidates.items():
            progress(f"collect: the count of {name} falls {sizes.falls:,} times")
            read, taken = _fall(subject, holder, candidate, sizes.falls)
            most = max(most, read)
            result.row(name, "alive", records_read=[read], µs_a_commit=[taken * 1e6])
        subject.must_be(BitMap64(range(len(graph))))
    result.figure("records read in all, at most", [most], most=300)
    return result


def _fall(subject: Subject, holder: int, candidate: int, times: int) -> tuple[int, float]:
    """Let the count of an object rise and fall; return the records read, and the seconds of a commit."""
    before = subject.storage.statistics().collected.read
    with subject.collecting():
        started = time.perf_counter()
        for n in range(times):
            subject.graph.refs[holder] = [candidate]
            subject.graph.store(subject.storage, holder, version=2 * n)
            subject.graph.refs[holder] = []
            subject.graph.store(subject.storage, holder, version=2 * n + 1)
        taken = time.perf_counter() - started
    return subject.storage.statistics().collected.read - before, taken / times / 2
