"""What the counting of references adds to a commit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count as counter
from pathlib import Path
from typing import Any

from benchmarks.method.measure import Result, in_turn, progress, ratios, scaled, seconds
from benchmarks.objects.graphs import Graph
from berkeleydb_storage import BerkeleyDBStorage, GarbageManual, session
from berkeleydb_storage.change import Change

RECORDS = 1000
"""Of a commit."""
REFERENCES = 3
"""Of an object that is updated."""
OBJECTS = 100_000
WITH, WITHOUT = "with counts", "without counts"


def _store(change: Any, oid: bytes, record: bytes, _refs: tuple[bytes, ...]) -> None:
    change.stored.append(oid)
    if change._transactions.is_new(oid):
        change.born.add(oid)
    change._gate.objects.put(oid, record, change.transaction)


@contextmanager
def without_counts() -> Iterator[None]:
    """Let commits write records and the journal, and leave out all that counting takes.

    That is: parsing the references of the records, reading what they were before and parsing that, and changing counts
    and queues. Storages are of no use afterwards.
    """
    replaced: list[tuple[Any, str, Any]] = [
        (session, "references", lambda _oid, _record: ()),
        (Change, "store", _store),
        (Change, "settle", lambda _change: []),
    ]
    kept = [(owner, name, vars(owner)[name]) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


class _Contestant:
    """A storage, and commits to it of three kinds."""

    def __init__(self, path: Path, stack: ExitStack, objects: int, durable: bool) -> None:
        path.mkdir()
        self._graph = graph = Graph()
        self._random = random.Random(7)
        self._items = [graph.add() for _ in range(objects)]
        for first in range(0, objects, RECORDS):
            graph.hold(self._items[first : first + RECORDS])
        for item in self._items:
            graph.refs[item] = self._random.sample(self._items, REFERENCES)
        self._index = graph.hold([])
        policy = GarbageManual()
        self._storage = stack.enter_context(BerkeleyDBStorage(path, garbage_collection=policy, durable=durable))
        self._storage.migrate(graph.records())
        self._versions = counter(1)

    def new(self) -> list[bytes]:
        """Return new objects with a referrer each: a folder of them, and the index of folders."""
        numbers = [int.from_bytes(self._storage.new_oid(), "big") for _ in range(RECORDS - 1)]
        graph = self._graph
        graph.refs += [[] for _ in range(numbers[-1] + 1 - len(graph.refs))]
        graph.refs[numbers[0]] = numbers[1:]
        graph.refs[self._index].append(numbers[0])
        return [graph.record(number) for number in [*numbers, self._index]]

    def updated(self) -> list[bytes]:
        """Return new versions that refer to what they did."""
        version = next(self._versions)
        return [self._graph.record(item, version) for item in self._chosen()]

    def moved(self) -> list[bytes]:
        """Return new versions that refer to another object in the place of one."""
        chosen, version = self._chosen(), next(self._versions)
        for item in chosen:
            refs = self._graph.refs[item]
            fresh = self._random.choice(self._items)
            self._graph.refs[item] = [*refs[1:], fresh if fresh not in refs else refs[0]]
        return [self._graph.record(item, version) for item in chosen]

    def _chosen(self) -> list[int]:
        return self._random.sample(self._items, RECORDS)

    def commit(self, records: list[bytes]) -> None:
        """Commit them."""
        storage = self._storage
        storage.begin()
        for record in records:
            storage.store(record[:8], record)
        storage.end()


def _commits(make: Callable[[], list[bytes]], commit: Callable[[list[bytes]], None], number: int) -> float:
    """Return the seconds of a commit."""
    made = [make() for _ in range(number)]

    def run() -> None:
        for records in made:
            commit(records)

    return seconds(run) / number


def counting(directory: Path, commits: int, rounds: int) -> list[Result]:
    """Compare commits with and without counts."""
    return [_compare(directory, commits, rounds, durable=durable) for durable in (True, False)]


def _compare(directory: Path, commits: int, rounds: int, *, durable: bool) -> Result:
    name = "durable" if durable else "not synced"
    progress(f"collect: commits with and without counts, {name}")
    result = Result(
        f"collect, counting, {name}",
        f"begin, store of {RECORDS:,} records, end. Without counts: references are not looked at, neither are old "
        "records, counts or queues; records and journal are written. Microseconds a commit.",
    )
    with ExitStack() as stack:
        path = directory / name
        path.mkdir(parents=True)
        objects = max(2 * RECORDS, min(OBJECTS, commits * rounds * RECORDS))
        counted = _Contestant(path / WITH, stack, objects, durable)
        uncounted = _Contestant(path / WITHOUT, stack, objects, durable)
        kinds = {
            "new objects with a referrer each": (counted.new, uncounted.new),
            f"updates, the same {REFERENCES} references": (counted.updated, uncounted.updated),
            f"updates, one of {REFERENCES} references another": (counted.moved, uncounted.moved),
        }
        for kind, (one, other) in kinds.items():

            def bare(make: Callable[[], list[bytes]] = other) -> float:
                with without_counts():
                    return _commits(make, uncounted.commit, commits)

            def whole(make: Callable[[], list[bytes]] = one) -> float:
                return _commits(make, counted.commit, commits)

            contestants = {WITHOUT: bare, WITH: whole}
            in_turn(contestants, 1)
            found = in_turn(contestants, rounds)
            result.row(
                kind,
                f"durable={durable}",
                without_counts=scaled(found[WITHOUT], 1e6),
                with_counts=scaled(found[WITH], 1e6),
            )
            result.figure(f"{kind}, with / without", ratios(found[WITH], found[WITHOUT]))
    return result
