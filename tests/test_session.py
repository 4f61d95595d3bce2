"""What one user of the engine sees: pending commits, invalidations, and the errors that Durus depends on."""

import gc
import threading
import weakref

import pytest
from durus.error import ConflictError, DurusKeyError, ReadConflictError
from durus.persistent_dict import PersistentDict
from graphs import (
    assert_books,
    commit,
    hand_out,
    journal,
    number,
    oid,
    oids,
    quiet,
    record,
    rows,
    scratch_storage,
    stored,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage import DanglingReferenceError
from berkeleydb_storage.environment import TABLES

EXAMPLES = 150
OBJECTS = 6


@pytest.fixture
def storage():
    with scratch_storage(20) as opened:
        commit(opened, record(0, 1, 2), record(1), record(2))
        yield opened
        assert_books(opened)


@pytest.fixture
def other(storage):
    return storage.session()


def run(*calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_loading(storage, other):
    assert storage.load(oid(1)) == other.load(oid(1)) == record(1)


def test_a_missing_object_is_durus_key_error(storage):
    with pytest.raises(DurusKeyError) as caught:
        storage.load(oid(7))
    assert caught.value.oids == [oid(7)]
    assert str(caught.value) == "7"


@pytest.mark.parametrize("key", [b"", b"1234567", b"123456789"])
@pytest.mark.parametrize("stale", [False, True])
def test_what_is_no_oid_is_a_value_error(storage, other, key, stale):
    """Also while there are invalidations to compare it with."""
    if stale:
        commit(other, record(1, data=b"new"))
    with pytest.raises(ValueError, match=f"8 bytes, not {len(key)}"):
        storage.load(key)


def test_what_is_pending_is_not_there(storage, other):
    storage.begin()
    storage.store(oid(1), record(1, data=b"pending"))
    assert storage.load(oid(1)) == other.load(oid(1)) == record(1)
    storage.end()
    assert storage.load(oid(1)) == record(1, data=b"pending")


def test_beginning_drops_what_was_pending(storage):
    storage.begin()
    storage.store(oid(1), record(1, data=b"dropped"))
    storage.begin()
    storage.store(oid(2), record(2, data=b"stored"))
    storage.end()
    assert storage.load(oid(1)) == record(1)
    assert storage.load(oid(2)) == record(2, data=b"stored")


def test_closing_a_session_drops_what_was_pending(storage, other):
    other.begin()
    other.store(oid(1), record(1, data=b"dropped"))
    other.close()
    other.end()
    assert storage.load(oid(1)) == record(1)


def test_a_commit_without_records_stores_nothing(storage):
    before = {name: rows(storage, name) for name in TABLES}
    storage.begin()
    storage.end()
    storage.end()
    assert {name: rows(storage, name) for name in TABLES} == before


def test_the_last_record_of_an_object_counts(storage):
    storage.begin()
    storage.store(oid(1), record(1, 2, data=b"first"))
    storage.store(oid(1), record(1, data=b"second"))
    storage.end()
    assert storage.load(oid(1)) == record(1, data=b"second")


def test_each_thread_has_a_pending_commit_of_its_own(storage):
    storage.begin()
    storage.store(oid(1), record(1, data=b"mine"))
    run(lambda: commit(storage, record(2, data=b"theirs")))
    assert storage.load(oid(1)) == record(1)
    storage.end()
    assert storage.load(oid(1)) == record(1, data=b"mine")
    assert storage.load(oid(2)) == record(2, data=b"theirs")


def test_a_record_may_be_any_bytes(storage):
    for kind in (bytearray, memoryview):
        commit_as(storage, kind(record(1, 2, data=b"x")))
        assert storage.load(oid(1)) == record(1, 2, data=b"x")
        commit(storage, record(1))


def commit_as(storage, packed):
    storage.begin()
    storage.store(oid(1), packed)
    storage.end()


@pytest.mark.parametrize(
    ("key", "packed", "complaint"),
    [
        (oid(30), record(30), "object 30 is a surprise: this storage never handed out its oid"),
        (oid(2**63), record(2**63), "is a surprise"),
        (oid(1), record(2), "the record stored as object 1 is one of object 2"),
        (oid(1), b"", "the record of object 1 has 0 bytes"),
        (oid(1), record(1)[:-1], "has 11 bytes"),
        (oid(1), record(1) + b"x", "do not end in whole references"),
        (b"1", record(1), "an oid has 8 bytes, not 1"),
    ],
)
def test_what_cannot_be_stored_ends_the_commit(storage, key, packed, complaint):
    storage.begin()
    storage.store(oid(2), record(2, data=b"before"))
    with pytest.raises(ValueError, match=complaint):
        storage.store(key, packed)
    storage.end()
    assert storage.load(oid(2)) == record(2)
    commit(storage, record(2, data=b"goes on"))
    assert storage.load(oid(2)) == record(2, data=b"goes on")


def test_others_hear_of_a_commit_and_its_session_does_not(storage, other):
    commit(storage, record(0, 1, 2, data=b"new"), record(1, data=b"new"))
    assert storage.sync() == []
    assert other.sync() == oids(0, 1)
    assert other.sync() == []


def test_new_objects_are_among_what_others_hear(storage, other):
    commit(storage, record(0, 1, 2, 3), record(3))
    assert other.sync() == oids(0, 3)


def test_a_session_does_not_hear_of_what_was_before(storage):
    commit(storage, record(1, data=b"new"))
    assert storage.session().sync() == []


def test_what_changed_is_not_loaded_before_it_is_synced(storage, other):
    commit(storage, record(1, data=b"new"))
    with pytest.raises(ReadConflictError) as caught:
        other.load(oid(1))
    assert caught.value.oids == [oid(1)]
    assert other.load(oid(2)) == record(2)
    assert storage.load(oid(1)) == record(1, data=b"new")
    other.sync()
    assert other.load(oid(1)) == record(1, data=b"new")


def test_what_was_collected_is_not_loaded_before_it_is_synced(storage, other):
    commit(storage, record(0, 2))
    storage.sync()
    other.sync()
    storage.pack()
    for session in (storage, other):
        with pytest.raises(ReadConflictError):
            session.load(oid(1))
        assert session.sync() == oids(1)
        with pytest.raises(DurusKeyError):
            session.load(oid(1))


def test_invalidations_are_handled_before_anything_is_stored(storage, other):
    commit(storage, record(1, data=b"new"))
    heard = []

    def handle(invalid):
        heard.append(invalid)
        assert stored(storage) == {0: [1, 2], 1: [], 2: []}

    commit(other, record(0, 1), handle_invalidations=handle)
    assert heard == [oids(1)]
    assert stored(storage) == {0: [1], 1: [], 2: []}


def test_a_conflict_ends_the_commit(storage, other):
    commit(storage, record(1, data=b"first"))

    def handle(invalid):
        raise ConflictError(invalid)

    with pytest.raises(ConflictError) as caught:
        commit(other, record(1, data=b"second"), handle_invalidations=handle)
    assert caught.value.oids == oids(1)
    other.end()
    assert storage.load(oid(1)) == record(1, data=b"first")


def test_a_commit_of_nothing_hears_of_invalidations_too(storage, other):
    commit(storage, record(1, data=b"new"))
    heard = []
    commit(other, handle_invalidations=heard.extend)
    assert heard == oids(1)
    assert other.sync() == []


def test_without_a_handler_invalidations_wait(storage, other):
    commit(storage, record(1, data=b"new"))
    commit(other, record(2, data=b"new"))
    assert other.sync() == oids(1)


def test_no_handler_is_called_where_there_is_nothing(storage):
    commit(storage, record(1), handle_invalidations=pytest.fail)


def test_changes_that_come_while_others_are_handled_are_handled_too(storage, other):
    """Nothing gets between the last look at the invalidations and the commit."""
    commit(storage, record(1, data=b"new"))
    heard = []

    def handle(invalid):
        heard.append(invalid)
        if len(heard) < 3:
            commit(storage, record(2, data=b"%d" % len(heard)))

    commit(other, record(0, 1), handle_invalidations=handle)
    assert heard == [oids(1), oids(2), oids(2)]


def test_what_the_refused_commit_was_invalidated_by_was_told(storage, other):
    commit(storage, record(1, data=b"new"))
    heard = []
    with pytest.raises(DanglingReferenceError):
        commit(other, record(0, 9), handle_invalidations=heard.extend)
    assert heard == oids(1)
    assert other.sync() == []


def test_a_session_that_is_gone_hears_nothing(storage):
    gone = weakref.ref(storage.session())
    gc.collect()
    assert gone() is None
    commit(storage, record(1, data=b"new"))


def test_a_session_keeps_the_storage_open(tmp_path):
    storage = quiet(tmp_path)
    hand_out(storage, 2)
    commit(storage, record(0))
    session = storage.session()
    here = weakref.ref(storage)
    del storage
    gc.collect()
    assert session.load(oid(0)) == record(0)
    here().close()


def test_bulk_loading(storage):
    assert list(storage.bulk_load(oids(2, 1, 2))) == [record(2), record(1), record(2)]
    loading = storage.bulk_load(oids(1, 9))
    assert next(loading) == record(1)
    with pytest.raises(DurusKeyError):
        next(loading)


def test_the_size_is_the_number_of_objects(storage, other):
    assert storage.get_size() == other.get_size() == 3
    commit(storage, record(0, 1, 2, 3), record(3))
    assert storage.get_size() == other.get_size() == 4
    commit(storage, record(0))
    assert storage.get_size() == 4
    storage.pack()
    assert storage.get_size() == 1


@pytest.fixture(params=["btree", "hash"])
def many(request):
    with scratch_storage(100, type=request.param) as opened:
        chain = [record(key, key + 1) for key in range(10, 49)]
        commit(opened, record(0, 10), *chain, record(49, 10, 49), record(60, 61), record(61))
        yield opened


@pytest.mark.parametrize("batch_size", [1, 2, 7, 43, 1000])
def test_all_records_each_once(many, batch_size):
    found = list(many.gen_oid_record(batch_size=batch_size))
    assert [number(key) for key, _ in found] == [0, *range(10, 50), 60, 61]
    assert all(packed == many.load(key) for key, packed in found)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_all_records_that_can_be_reached(many, batch_size):
    found = list(many.gen_oid_record(oid(0), batch_size=batch_size))
    assert [number(key) for key, _ in found] == [0, *range(10, 50)]
    assert [number(key) for key, _ in many.gen_oid_record(oid(60), batch_size)] == [60, 61]
    assert all(packed == many.load(key) for key, packed in found)


def test_records_from_what_is_not_there(many):
    with pytest.raises(DurusKeyError):
        list(many.gen_oid_record(oid(1)))


def test_records_while_others_write(many):
    """What is there all the time is met once; what comes or goes meanwhile, at most once."""
    other = many.session()
    found = []
    for key, _ in many.gen_oid_record(batch_size=3):
        found.append(number(key))
        if key == oid(10):
            commit(other, record(0, 10, 55, 5), record(55), record(5))
            many.pack()
    assert len(found) == len(set(found))
    assert set(found) - {55, 5, 60, 61} == {0, *range(10, 50)}
    assert 60 not in found


def test_an_application_through_a_connection(open_storage):
    """Two connections, one storage: they find their conflicts as two clients of a server do."""
    from durus.connection import Connection

    storage = open_storage()
    one, other = Connection(storage), Connection(storage.session())
    one.get_root()["shared"] = PersistentDict(a=1)
    one.commit()
    other.abort()
    other.get_root()["shared"]["a"] = 2
    one.get_root()["shared"]["a"] = 3
    one.commit()
    with pytest.raises(ConflictError):
        other.commit()
    other.abort()
    assert other.get_root()["shared"]["a"] == 3


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, OBJECTS - 1)) | st.just("sync")), max_size=25))
def test_each_session_hears_of_exactly_what_others_changed(program):
    with scratch_storage(OBJECTS) as storage:
        sessions = [storage, storage.session(), storage.session()]
        everything = [record(0, *range(1, OBJECTS)), *map(record, range(1, OBJECTS))]
        commit(storage, *everything)
        news = [set(), set(range(OBJECTS)), set(range(OBJECTS))]
        for who, what in program:
            if what == "sync":
                assert sessions[who].sync() == oids(*sorted(news[who]))
                news[who] = set()
            else:
                commit(sessions[who], *(everything[key] for key in what))
                for each in {0, 1, 2} - {who}:
                    news[each] |= what
            for key in range(OBJECTS):
                for session, unseen in zip(sessions, news, strict=True):
                    if key in unseen:
                        with pytest.raises(ReadConflictError):
                            session.load(oid(key))
                    else:
                        assert session.load(oid(key)) == everything[key]
        assert len(journal(storage)) == 2 + sum(1 for _, what in program if what and what != "sync")
