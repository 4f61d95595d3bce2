"""Small object graphs as packed records, and an account of them from scratch to compare a storage's books with."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from durus.serialize import pack_record

from berkeleydb_storage import BerkeleyDBStorage, CheckpointNever, GarbageManual
from berkeleydb_storage.environment import GARBAGE, JOURNAL, META, OBJECTS, REFCOUNTS, SUSPECTS
from berkeleydb_storage.format import references, unpack_count, unpack_garbage_key, unpack_journal, unpack_uint64
from berkeleydb_storage.garbage.deletion import STEP

MEMORY = Path("/dev/shm")
"""Where there is a file system in memory: opening a storage there takes a millisecond, a tenth of it on a disk."""


EVER = (1 << 63) - 1
"""A time in the far future."""


def oid(number):
    return number.to_bytes(8, "big")


def oids(*numbers):
    return [oid(number) for number in numbers]


def number(key):
    return int.from_bytes(key, "big")


def record(key, *refs, data=b""):
    """Return the record of object `key` (a number) with these references, exactly as given."""
    return pack_record(oid(key), data, b"".join(oids(*refs)))


def commit(session, *records, handle_invalidations=None):
    session.begin()
    for one in records:
        session.store(one[:8], one)
    session.end(handle_invalidations)


def hand_out(storage, count):
    """Let the storage hand out oids until the first `count` are."""
    while number(storage.new_oid()) < count - 1:
        pass


def copied(path, target):
    """Copy the directory of a storage, which may be in use, without its sockets; return where to."""
    return shutil.copytree(path, target, ignore=shutil.ignore_patterns("control", "socket"))


@contextmanager
def scratch_directory():
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as path:
        yield Path(path)


def quiet(path, **options):
    """Open a storage that does nothing by itself and does not sync."""
    defaults = {"durable": False, "garbage_collection": GarbageManual(), "checkpoint": CheckpointNever()}
    return BerkeleyDBStorage(path, **{"cachesize": 1 << 20, **defaults, **options})


@contextmanager
def scratch_storage(handed_out=0, **options):
    with scratch_directory() as path, quiet(path, **options) as storage:
        if handed_out:
            hand_out(storage, handed_out)
        yield storage


def table(storage, name):
    return storage._engine.environment.tables[name]


def rows(storage, name):
    """Return a table as a dict."""
    cursor = table(storage, name).cursor()
    try:
        found, row = {}, cursor.first()
        while row is not None:
            found[row[0]] = row[1]
            row = cursor.next()
        return found
    finally:
        cursor.close()


def stored(storage):
    """Return {object: its references without itself, sorted}, all as numbers."""
    return {number(key): sorted(map(number, references(key, value))) for key, value in rows(storage, OBJECTS).items()}


def counts(storage):
    """Return {object: count} of the rows of the table of counts."""
    return {number(key): unpack_count(row)[0] for key, row in rows(storage, REFCOUNTS).items()}


def queue(storage):
    """Return the objects in the garbage queue, in its order."""
    return [number(unpack_garbage_key(key)[1]) for key in rows(storage, GARBAGE)]


def suspects(storage):
    return {number(key) for key in rows(storage, SUSPECTS)}


def journal(storage):
    return {unpack_uint64(key): unpack_journal(row) for key, row in rows(storage, JOURNAL).items()}


def meta(storage, key):
    return table(storage, META).get(key)


def count_all(graph):
    """Return {object: count} of a graph, where it is not 1; the root's is one more than its referrers."""
    found = Counter(ref for refs in graph.values() for ref in refs)
    if 0 in graph:
        found[0] += 1
    return {key: found[key] for key in graph if found[key] != 1}


def doomed(storage):
    """Return the objects that are being deleted together, those that are gone already included."""
    return set(storage._engine.doomed.closed)


def assert_books(storage):
    """Compare counts, queue, suspects and totals with a recount that starts from the records alone.

    What is doomed has the counts and the queue entries that it had when it was doomed: nobody needs them any more.
    A doomed object that is not swept yet still counts as a referrer of what it refers to outside of its set.
    """
    graph, gone = stored(storage), doomed(storage)
    assert {ref for refs in graph.values() for ref in refs} <= graph.keys() | gone, "dangling references"
    assert gone.isdisjoint(ref for key, refs in graph.items() if key not in gone for ref in refs), "doomed and in use"
    right = {key: count for key, count in count_all(graph).items() if key not in gone}
    noted = counts(storage)
    assert noted.keys() <= graph.keys()
    assert {key: count for key, count in noted.items() if key not in gone} == right
    rows_of_zero = {
        (unpack_count(row)[1], key) for key, row in rows(storage, REFCOUNTS).items() if unpack_count(row)[0] == 0
    }
    assert {unpack_garbage_key(key) for key in rows(storage, GARBAGE)} == rows_of_zero
    assert {key for key, count in right.items() if count == 0} == set(queue(storage)) - gone
    assert suspects(storage) <= graph.keys()
    totals = (len(graph), len(queue(storage)), len(suspects(storage)))
    assert storage._engine.journal.newest()[1][1:] == totals
    assert storage._engine.journal.state[1:] == totals
    engine_counts = storage._engine.counts
    assert (storage.get_size(), engine_counts.garbage, engine_counts.suspects) == totals
    assert storage._engine.doomed.left >= len(gone & graph.keys())


def step(storage, limit=1, until=EVER):
    """Make a step of the collector with what has no referrer."""
    return storage._running.collector.collect(limit, until)


def drain(storage):
    """Collect all that has no referrer, and what hangs on it, but no cycles."""
    while step(storage, STEP):
        pass


def turn(storage, committed=0):
    """Let the policy decide how many to collect."""
    return storage._running.collector.turn(committed)


def collected(storage):
    return storage.statistics().collected
