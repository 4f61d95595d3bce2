"""`migrate`: everything arrives, counted as if it had been committed; or nothing does."""

import random
import threading
import tracemalloc

import durusfiles
import pytest
from durus.connection import Connection
from durus.file_storage import FileStorage
from graphs import assert_books, commit, oid, queue, quiet, record, rows, scratch_storage, stored, table
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage import (
    CommitRefused,
    GarbageThread,
    MigrationError,
    ReadOnlyError,
    StorageClosed,
    StorageNotEmpty,
    migration,
)
from berkeleydb_storage.environment import OBJECTS, REFCOUNTS
from berkeleydb_storage.tally import Tally, digest_of_all, record_digest

EXAMPLES = 60
GRAPH = {0: [1, 2], 1: [2, 2], 2: [0], 3: [2], 4: [5], 5: [4], 6: [6]}
"""With a parent pointer, a reference that comes twice, garbage (3, 6) and a cycle of garbage (4, 5)."""


def pairs(graph, data=b"data"):
    return [(oid(key), record(key, *refs, data=data)) for key, refs in graph.items()]


def assert_empty(storage):
    """Nothing is left, and it works: another migration succeeds."""
    assert storage.get_size() == 0
    assert rows(storage, OBJECTS) == {}
    assert_books(storage)
    assert storage.migrate(pairs(GRAPH)) == len(GRAPH)
    assert_books(storage)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """So that a handful of objects are several transactions."""
    monkeypatch.setattr(migration, "BATCH", 3)


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_everything_arrives(open_storage, type):
    storage = open_storage(type=type)
    assert storage.migrate(pairs(GRAPH)) == len(GRAPH)
    assert dict(storage.gen_oid_record()) == dict(pairs(GRAPH))
    assert_books(storage)
    assert sorted(queue(storage)) == [3, 6]
    assert storage.statistics().garbage == 2


def test_a_policy_learns_that_cycles_of_the_source_are_not_known(tmp_path):
    """They are no suspects: only a full pack finds them. It is due until one was complete, also after reopening."""
    due = GarbageThread(grace=0.0, interval=3600.0, pack_interval=0.0)
    with quiet(tmp_path) as storage:
        storage.migrate(pairs(GRAPH))
        assert not due.pack(storage._running.collector.numbers()._replace(unsettled=0))
        assert due.pack(storage._running.collector.numbers())
    with quiet(tmp_path, garbage_collection=due) as storage:
        while storage._running.collector.turn():
            pass
        assert set(stored(storage)) == {0, 1, 2}
        assert not due.pack(storage._running.collector.numbers())
    with quiet(tmp_path) as storage:
        assert not due.pack(storage._running.collector.numbers())


def test_garbage_of_the_source_is_collected_and_nothing_else(open_storage):
    storage = open_storage()
    storage.migrate(pairs(GRAPH))
    storage.pack()
    assert set(stored(storage)) == {0, 1, 2}
    assert_books(storage)


graphs = st.dictionaries(st.integers(1, 30), st.lists(st.integers(0, 30), max_size=5), max_size=25)


@given(graphs, st.randoms(use_true_random=False))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_graph_in_any_order(graph, chance):
    graph = {0: sorted(graph), **graph}
    graph = {key: [ref for ref in refs if ref in graph] for key, refs in graph.items()}
    source = pairs(graph)
    chance.shuffle(source)
    with scratch_storage() as storage:
        assert storage.migrate(source) == len(graph)
        assert dict(storage.gen_oid_record()) == dict(source)
        assert_books(storage)
        assert not storage.check().faults


def test_a_storage_of_durus(open_storage, tmp_path):
    path = durusfiles.make(tmp_path / "file")
    source = FileStorage(str(path), readonly=True)
    storage = open_storage()
    assert storage.migrate(source.gen_oid_record()) == len(durusfiles.contents(path))
    assert dict(storage.gen_oid_record()) == durusfiles.contents(path)
    tree = Connection(storage).get_root()["tree"]
    assert list(tree.items()) == [(number, f"item {number}") for number in range(1, durusfiles.ITEMS, 2)]
    source.close()


def test_new_objects_follow_the_migrated_ones(open_storage):
    storage = open_storage()
    storage.migrate(pairs({0: [700], 700: []}))
    assert storage.new_oid() == oid(701)


def test_what_was_migrated_is_there_after_reopening(open_storage):
    storage = open_storage()
    storage.migrate(pairs(GRAPH))
    storage.close()
    again = open_storage()
    assert dict(again.gen_oid_record()) == dict(pairs(GRAPH))
    assert again.new_oid() == oid(7)


def test_the_oid_of_a_root_that_was_stored_without_asking_for_it_is_taken(open_storage):
    storage = open_storage()
    commit(storage, record(0))
    assert storage.new_oid() == oid(1)
    storage.close()
    assert open_storage().new_oid() != oid(0)


def test_nothing_to_migrate(open_storage):
    storage = open_storage()
    assert storage.migrate([]) == 0
    assert_empty(storage)


def test_progress_counts_up_to_the_number_of_objects(open_storage):
    told = []
    open_storage().migrate(pairs(GRAPH), lambda *what: told.append(what))
    steps = [3, 6, 7]
    assert told == [("loading", n) for n in steps] + [("verifying", n) for n in steps]


def test_transactions_are_bounded_in_bytes_too(open_storage, monkeypatch):
    monkeypatch.setattr(migration, "BATCH", 100)
    monkeypatch.setattr(migration, "BATCH_BYTES", 1000)
    told = []
    graph = {0: range(1, 10)} | {key: [] for key in range(1, 10)}
    open_storage().migrate(pairs(graph, bytes(400)), lambda *what: told.append(what))
    assert [number for activity, number in told if activity == "loading"] == [3, 6, 9, 10]


def bad_sources():
    root = (oid(0), record(0, 1))
    whole = [root, (oid(1), record(1))]
    many = pairs({0: range(1, 9)} | {key: [] for key in range(1, 9)})
    yield "twice, together", [*whole, (oid(1), record(1))], "object 1 comes twice"
    yield "twice, apart", [*many, (oid(2), record(2))], "object 2 comes twice"
    yield "two roots", [root, *whole], "object 0 comes twice"
    yield "no root", [(oid(1), record(1))], "the source has no root, which is object 0"
    yield "dangling", [root], r"refers to 1 objects that it does not have \(1\)"
    yield "many dangling", [(oid(0), record(0, *range(1, 15)))], r"refers to 14 objects .*\(1, 2, .*, 10 and 4 more\)"
    yield "another's record", [root, (oid(1), record(2))], "stored as object 1 is one of object 2"
    yield "cut off", [*many, (oid(9), record(9, 1)[:-1])], "record of object 9 is malformed"
    yield "no record", [root, (oid(1), b"")], "record of object 1 has 0 bytes"
    yield "short oid", [root, (b"\1", record(1))], "an oid has 8 bytes, not 1"
    yield "the last oid", [(oid(0), record(0, (1 << 64) - 1)), (b"\xff" * 8, b"\xff" * 8 + bytes(4))], "oids end at"


@pytest.mark.parametrize(("source", "what"), [pytest.param(*rest, id=name) for name, *rest in bad_sources()])
def test_a_source_that_is_inconsistent(source, what, open_storage):
    storage = open_storage()
    with pytest.raises(MigrationError, match=what):
        storage.migrate(source)
    assert_empty(storage)


def test_the_highest_oid_there_can_be(open_storage):
    storage = open_storage()
    assert storage.migrate(pairs({0: [migration.LAST_OID], migration.LAST_OID: []})) == 2
    assert storage.check().sound


@pytest.mark.parametrize("after", [0, 1, 4, 7])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, GeneratorExit])
def test_a_source_that_fails(error, after, open_storage):
    def source():
        yield from pairs(GRAPH)[:after]
        raise error("of the source")

    storage = open_storage()
    with pytest.raises(error, match="of the source"):
        storage.migrate(source())
    assert_empty(storage)


@pytest.mark.parametrize("when", ["loading", "verifying"])
def test_progress_may_interrupt(when, open_storage):
    def progress(activity, number):
        if (activity, number) == (when, 6):
            raise KeyboardInterrupt

    storage = open_storage()
    with pytest.raises(KeyboardInterrupt):
        storage.migrate(pairs(GRAPH), progress)
    assert_empty(storage)


def test_what_is_stored_differs_from_what_came(open_storage):
    """As on a disk that returns something else than was written."""
    storage = open_storage()

    def progress(activity, number):
        if number == len(GRAPH):
            storage._engine.objects.put(oid(5), record(5, 4, data=b"else"))

    with pytest.raises(MigrationError, match=r"what was stored in .* is not what came"):
        storage.migrate(pairs(GRAPH), progress)
    assert_empty(storage)


def test_a_storage_with_objects_is_refused(open_storage):
    storage = open_storage()
    commit(storage, record(0))
    with pytest.raises(StorageNotEmpty, match="has 1 objects"):
        storage.migrate(pairs(GRAPH))
    assert stored(storage) == {0: []}


def test_twice(open_storage):
    storage = open_storage()
    storage.migrate(pairs(GRAPH))
    with pytest.raises(StorageNotEmpty):
        storage.migrate(pairs(GRAPH))
    assert stored(storage).keys() == GRAPH.keys()


def test_read_only(open_storage, directory):
    open_storage().close()
    with pytest.raises(ReadOnlyError):
        open_storage(read_only=True).migrate(pairs(GRAPH))


def test_closed(open_storage):
    storage = open_storage()
    storage.close()
    with pytest.raises(StorageClosed):
        storage.migrate(pairs(GRAPH))


def test_others_are_refused_meanwhile(open_storage):
    storage = open_storage()
    outcome = []

    def commit_meanwhile():
        with pytest.raises(CommitRefused, match="is busy with a migration: nothing was stored") as caught:
            commit(storage.session(), record(0))
        outcome.append(caught.type)

    def source():
        yield from pairs(GRAPH)
        other = threading.Thread(target=commit_meanwhile)
        other.start()
        other.join()

    storage.migrate(source())
    assert outcome == [CommitRefused]
    commit(storage, record(1, 2))
    assert_books(storage)


def test_memory_does_not_grow_with_the_source(monkeypatch):
    """A bit or two for each object; that of one batch is there in either case."""
    monkeypatch.undo()

    def source(count):
        yield oid(0), record(0, 1)
        for key in range(1, count):
            yield oid(key), record(key, (key + 1) % count, (key * 7) % count, data=bytes(50))

    def peak(count):
        with scratch_storage() as storage:
            tracemalloc.start()
            try:
                storage.migrate(source(count))
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    few, many = peak(4000), peak(24_000)
    assert many < few * 1.3, (few, many)


records = st.lists(
    st.tuples(st.integers(0, 20), st.lists(st.integers(0, 20), max_size=5)), unique_by=lambda pair: pair[0], max_size=20
)


@given(st.lists(records, max_size=3))
@settings(max_examples=EXAMPLES, deadline=None)
def test_counting_by_the_batch_is_counting_one_by_one(batches):
    with scratch_storage() as one, scratch_storage() as other:
        single, batched = Tally(table(one, REFCOUNTS)), Tally(table(other, REFCOUNTS))
        seen = set()
        for batch in batches:
            items = pairs({key: refs for key, refs in batch if key not in seen})
            seen.update(key for key, _ in batch)
            for key, value in items:
                single.add(key, value)
            batched.add_all(items)
            if random.Random(len(seen)).random() < 0.5:
                single.flush()
                batched.flush()
        single.flush()
        batched.flush()
        for attribute in ("stored", "referenced", "several", "digest"):
            assert getattr(single, attribute) == getattr(batched, attribute), attribute
        for key in range(21):
            assert single.several_of(oid(key)) == batched.several_of(oid(key))


def test_a_batch_names_the_object_that_comes_twice():
    with scratch_storage() as storage:
        tally = Tally(table(storage, REFCOUNTS))
        tally.add_all(pairs({5: [], 3: []}))
        with pytest.raises(ValueError, match="object 3 comes twice"):
            tally.add_all(pairs({4: [], 3: []}))
        with pytest.raises(ValueError, match="object 8 comes twice"):
            tally.add_all([*pairs({8: [], 9: []}), *pairs({8: []})])
        with pytest.raises(ValueError, match="record of object 10 is malformed"):
            tally.add_all([(oid(10), record(10) + b"x")])


@given(st.lists(st.binary(max_size=50)))
def test_the_digest_of_many_is_the_sum(many):
    assert digest_of_all(many) == sum(map(record_digest, many))
