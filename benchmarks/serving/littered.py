"""Objects of which a third is to become garbage at once: what is collected while clients work.

Half of those that live are items, which the clients load and change, and which refer to nothing. The others, and all
that is to be dropped, are trees whose nodes refer to their parents, so that counting references alone finds no garbage.
One object, the holder, refers to the tops of the trees to be dropped: when it is stored without references, all objects
with greater numbers are garbage. ZODB finds references in pickles only; so there each record is a pickle of that size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from durus.storage import Storage

from benchmarks.objects.graphs import Graph
from benchmarks.objects.records import DATA, FOLDER, record
from benchmarks.peers.contract import Record
from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.format import pack_oids, pack_uint64

FIRST = 7
"""Number of the first item."""
TREE = 500
"""Objects in a tree."""
DURUS, ZODB = "durus", "zodb"
"""Whose records."""
BATCH = 10_000
"""Objects in a commit that fills a storage."""


def items(live: int) -> range:
    """Return the numbers of the items, where so many objects live."""
    return range(FIRST, FIRST + live // 2)


def littered(live: int) -> tuple[Graph, int]:
    """Return about `live` objects that live, and half as many that are to be dropped; the same ones each time.

    Returns:
        They, and the number of the holder.
    """
    graph = Graph()
    numbers = [graph.add() for _ in items(live)]
    for first in range(0, len(numbers), FOLDER):
        graph.hold(numbers[first : first + FOLDER])
    _trees(graph, graph.hold([]), max(TREE, live - len(graph)))
    holder = graph.hold([])
    _trees(graph, holder, live // 2)
    return graph, holder


def _trees(graph: Graph, holder: int, count: int) -> None:
    for first in range(0, count, TREE):
        graph.tree(min(TREE, count - first), holder)


def zodb_record(number: int, version: int = 0, refs: Iterable[int] = ()) -> bytes:
    """Return the record of an object as ZODB has it: two pickles, of the class and of a tuple, the state."""
    data = (b"%016d%016d" % (number, version)).ljust(DATA - len(ZODB_CLASS), b".")
    oids = b"".join(b"C\x08" + pack_uint64(ref) + b"Q" for ref in refs)
    return b"%b\x80\x03(%bC%c%bt." % (ZODB_CLASS, oids, len(data), data)


ZODB_CLASS = b"\x80\x03cbenchmarks.objects.zodb_classes\nFolder\n."


def made(kind: str, number: int, version: int = 0, refs: Sequence[int] = ()) -> bytes:
    """Return a record of one of the kinds."""
    if kind == ZODB:
        return zodb_record(number, version, refs)
    return record(number, version, b"".join(pack_oids(refs)))


def litter_batches(kind: str, live: int) -> Iterator[list[Record]]:
    """Yield the records of all, in order, for commits."""
    graph = littered(live)[0]
    every = ((pack_uint64(number), made(kind, number, 0, refs)) for number, refs in enumerate(graph.refs))
    while batch := list(islice(every, BATCH)):
        yield batch


def litter(storage: Storage, live: int) -> None:
    """Store them all in an empty storage of Durus."""
    batches = litter_batches(DURUS, live)
    if isinstance(storage, BerkeleyDBStorage):
        storage.migrate(each for batch in batches for each in batch)
        return
    for batch in batches:
        storage.begin()
        for _, data in batch:
            storage.store(storage.new_oid(), data)
        storage.end()
