"""What is profiled, and its limits: each does one operation again and again, in a process of its own.

A contestant prepares a batch of operations, which is not measured, and then does it, in `measured`.
"""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path
from typing import Any

from berkeleydb import db
from durus.connection import Connection
from durus.storage import Storage

from benchmarks.garbage.collecting import Subject
from benchmarks.method.measure import seconds as timed
from benchmarks.objects.graphs import Graph
from benchmarks.objects.records import FOLDER, Folder, Item, fill, record, records
from benchmarks.peers.bare import Bare
from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.format import pack_uint64

Batch = Callable[[], None]

STEP = 50
"""Records that the collector deletes in a transaction at most."""
LINE = bytes(1024)
"""What is appended before a sync."""


class Contestant:
    """One way to do an operation."""

    def batch(self, number: int) -> Batch:
        """Prepare `number` operations, and return what does them."""
        raise NotImplementedError

    def measured(self, batch: Batch) -> None:
        """Do a batch; samples without this frame do not count."""
        batch()

    def round(self, number: int) -> float:
        """Do some operations; return the seconds that each took."""
        batch = self.batch(number)
        return timed(lambda: self.measured(batch)) / number

    def work(self, seconds: float, number: int) -> dict[str, float]:
        """Do batches of so many operations for some seconds; return how many, and what they took this thread.

        Seconds "taken", and "inside", which are those of them in which it worked in user mode.
        """
        done, inside, taken = 0, 0.0, 0.0
        until = time.monotonic() + seconds
        while time.monotonic() < until and (batch := self.next_batch(number)):
            before, started = _inside(), time.perf_counter()
            self.measured(batch)
            taken += time.perf_counter() - started
            inside += _inside() - before
            done += number
        return {"operations": done, "taken": taken, "inside": inside}

    def next_batch(self, number: int) -> Batch | None:
        """Return a batch as `batch` does; None where there is nothing left to do."""
        return self.batch(number)

    def close(self) -> None:
        """End."""


def _inside() -> float:
    """Return the seconds that this thread has worked in user mode; of the process, where the system knows no better."""
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_utime


# --- loads and commits of one object


class Loads(Contestant):
    """Loads objects in an order of its own."""

    def __init__(self, load: Callable[[bytes], Any], objects: int, number: int = 0) -> None:
        numbers = random.Random(number).sample(range(objects), objects)
        self._load, self._following = load, cycle(list(map(pack_uint64, numbers)))

    def batch(self, number: int) -> Batch:
        """Choose which."""
        load, oids = self._load, [next(self._following) for _ in range(number)]

        def run() -> None:
            for oid in oids:
                load(oid)

        return run


class Commits(Contestant):
    """Commits new versions of objects, one by one."""

    def __init__(self, commit: Callable[[bytes, bytes], object], objects: int, number: int = 0, of: int = 1) -> None:
        """Take the objects of the client with this number, among so many clients."""
        own = [each for each in range(number, objects, of) if each % FOLDER > 1]
        self._commit, self._versions, self._following = commit, count(1), cycle(own)

    def batch(self, number: int) -> Batch:
        """Make the records."""
        chosen = [next(self._following) for _ in range(number)]
        commit, changes = self._commit, [(pack_uint64(each), record(each, next(self._versions))) for each in chosen]

        def run() -> None:
            for oid, changed in changes:
                commit(oid, changed)

        return run


def committer(storage: Storage) -> Callable[[bytes, bytes], None]:
    """Return what commits one record to a storage."""
    begin, store, end = storage.begin, storage.store, storage.end

    def commit(oid: bytes, changed: bytes) -> None:
        begin()
        store(oid, changed)
        end()

    return commit


def _ours(path: str, objects: int, **options: Any) -> BerkeleyDBStorage:
    Path(path).mkdir()
    storage = BerkeleyDBStorage(path, **options)
    if objects:
        fill(storage, objects)
    return storage


def _bare(path: str, objects: int) -> Bare:
    bare = Bare(Path(path))
    bare.fill(records(objects))
    return bare


class OurLoads(Loads):
    """From our storage, with the default policies."""

    def __init__(self, path: str, objects: int) -> None:
        super().__init__(_ours(path, objects).load, objects)


class BareGets(Loads):
    """From a table."""

    def __init__(self, path: str, objects: int) -> None:
        super().__init__(_bare(path, objects).table.get, objects)


class BareItems(Loads):
    """The same, as the binding does it fastest."""

    def __init__(self, path: str, objects: int) -> None:
        super().__init__(_bare(path, objects).table.__getitem__, objects)


class OurCommits(Commits):
    """To our storage, with the default policies."""

    def __init__(self, path: str, objects: int, durable: bool = True) -> None:
        super().__init__(committer(_ours(path, objects, durable=durable)), objects)


class BarePuts(Commits):
    """To a table, in a transaction each."""

    def __init__(self, path: str, objects: int, durable: bool = True) -> None:
        bare = _bare(path, objects)
        super().__init__(bare.commit if durable else bare.commit_unsynced, objects)


class Syncs(Contestant):
    """Appends a little to a file, and brings it to the disk."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def batch(self, number: int) -> Batch:
        """Prepare nothing."""

        def run() -> None:
            for _ in range(number):
                self.one()

        return run

    def one(self) -> None:
        """Do it once."""
        os.write(self._file, LINE)
        (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


# --- new objects


class Built(Contestant):
    """Makes new objects and stores them through a connection, a folder a commit."""

    def __init__(self, storage: Storage) -> None:
        self._connection, self._first = Connection(storage), 0

    def batch(self, number: int) -> Batch:
        """Prepare nothing: to make them is part of it."""

        def run() -> None:
            root, end = self._connection.get_root(), self._first + number
            for first in range(self._first, end, FOLDER):
                root[first % (100 * FOLDER)] = Folder([Item(first + n) for n in range(min(FOLDER, end - first) - 1)])
                self._connection.commit()
            self._first = end

        return run


class OurBuild(Built):
    """Into our storage, with the default policies."""

    def __init__(self, path: str) -> None:
        super().__init__(_ours(path, 0))


class MadeAndPickled(Built):
    """Into nothing."""

    def __init__(self, path: str) -> None:
        super().__init__(Nowhere())


class Nowhere(Storage):  # type: ignore[misc]
    """Keeps nothing but the root: what is left is what Durus and pickle do."""

    def __init__(self) -> None:
        self._oids = count()
        self._root: bytes | None = None

    def load(self, oid: bytes) -> bytes:
        """Return the root."""
        if self._root is None:
            raise KeyError(oid)
        return self._root

    def begin(self) -> None:
        """Do nothing."""

    def store(self, oid: bytes, record: bytes) -> None:
        """Keep the root."""
        if not int.from_bytes(oid, "big"):
            self._root = record

    def end(self, handle_invalidations: object = None) -> None:
        """Do nothing."""

    def sync(self) -> list[bytes]:
        """Tell of nothing."""
        return []

    def new_oid(self) -> bytes:
        """Return the next one."""
        return pack_uint64(next(self._oids))


class BareBatches(Contestant):
    """Puts new records into a table, a thousand in a transaction, which is synced."""

    def __init__(self, path: str) -> None:
        self._bare, self._first = Bare(Path(path)), 0

    def batch(self, number: int) -> Batch:
        """Make the records."""
        first, self._first = self._first, self._first + number
        made = [(pack_uint64(first + n), record(first + n)) for n in range(number)]

        def run() -> None:
            for at in range(0, number, FOLDER):
                transaction = self._bare.environment.txn_begin()
                for oid, each in made[at : at + FOLDER]:
                    self._bare.table.put(oid, each, txn=transaction)
                transaction.commit()

        return run


# --- garbage


class OurCollection(Contestant):
    """Collects trees that were dropped, in one thread that nobody disturbs; an operation is a record deleted."""

    def __init__(self, path: str, objects: int, tree: int) -> None:
        """Make trees of `tree` objects with pointers to their parents, each below a holder of its own."""
        graph = Graph()
        self._dropped = self._trees(graph, objects // tree, tree)
        Path(path).mkdir()
        self._subject = Subject(Path(path), graph)
        self._tree = tree

    def _trees(self, graph: Graph, number: int, size: int) -> Iterator[tuple[int, int]]:
        holders = [graph.hold([]) for _ in range(number)]
        return iter([(holder, graph.tree(size, holder)) for holder in holders])

    def batch(self, number: int) -> Batch:
        """Drop some."""
        subject = self._subject
        for _ in range(number // self._tree):
            holder, top = next(self._dropped)
            subject.graph.drop(subject.storage, holder, top)
        return subject.collect

    def next_batch(self, number: int) -> Batch | None:
        """Drop some, if there are any left."""
        try:
            return self.batch(number)
        except StopIteration:
            return None


class BareDeletes(Contestant):
    """Reads records of a table and deletes them, as many in a transaction as the collector."""

    def __init__(self, path: str, objects: int) -> None:
        self._bare = _bare(path, objects)
        self._oids = iter(random.Random(1).sample(range(objects), objects))

    def batch(self, number: int) -> Batch:
        """Choose which."""
        oids = [pack_uint64(next(self._oids)) for _ in range(number)]
        table, begin = self._bare.table, self._bare.environment.txn_begin

        def run() -> None:
            for at in range(0, number, STEP):
                transaction = begin()
                for oid in oids[at : at + STEP]:
                    table.get(oid)
                    table.delete(oid, txn=transaction)
                transaction.commit(db.DB_TXN_NOSYNC)

        return run
