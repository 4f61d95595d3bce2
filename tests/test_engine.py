"""The transactional core: oids, times, transactions that end well or do not, and who is told."""

import gc
import threading
import time

import pytest
from graphs import (
    assert_books,
    commit,
    counts,
    hand_out,
    journal,
    meta,
    number,
    oid,
    oids,
    quiet,
    record,
    rows,
    scratch_storage,
    stored,
)

from berkeleydb_storage import CommitRefused, StorageClosed, failpoints
from berkeleydb_storage.environment import META, TABLES
from berkeleydb_storage.format import (
    FORMAT_VERSION,
    META_FORMAT,
    META_IDENTITY,
    META_NEXT_OID,
    META_PACKED,
    ROOT_OID,
    pack_uint64,
)
from berkeleydb_storage.oids import OID_BLOCK

MINUTE = 60_000_000
"""In microseconds."""


@pytest.fixture
def storage():
    with scratch_storage() as opened:
        yield opened
        assert_books(opened)


@pytest.fixture
def engine(storage):
    return storage._engine


class Ear:
    """A listener."""

    def __init__(self):
        self.heard = []

    def invalidate(self, changed):
        self.heard += changed


def pending(*records):
    """What a commit stores: here each record refers to nothing."""
    return {one[:8]: (one, ()) for one in records}


def test_a_new_storage(engine, storage):
    assert engine.size == 0
    assert meta(storage, META_FORMAT) == pack_uint64(FORMAT_VERSION)
    assert meta(storage, META_NEXT_OID) == pack_uint64(0)
    assert meta(storage, META_PACKED) == pack_uint64(journal(storage)[0].state.time)
    assert rows(storage, META).keys() == {META_FORMAT, META_IDENTITY, META_NEXT_OID, META_PACKED}
    assert meta(storage, META_IDENTITY) == engine.identity


def test_the_first_oid_is_the_roots(engine):
    assert engine.new_oid() == ROOT_OID
    assert engine.new_oid() == oid(1)


def test_oids_are_reserved_before_they_are_handed_out(engine, storage):
    for expected in range(OID_BLOCK * 2 + 10):
        assert number(engine.new_oid()) == expected
        assert number(meta(storage, META_NEXT_OID)) > expected
    assert number(meta(storage, META_NEXT_OID)) == 3 * OID_BLOCK


def test_oids_that_are_left_over_are_given_back(tmp_path):
    with quiet(tmp_path) as storage:
        hand_out(storage, 5)
        commit(storage, record(0))
    with quiet(tmp_path) as storage:
        assert storage.new_oid() == oid(5)


def test_oids_are_handed_out_once_by_many_threads(engine):
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend([engine.new_oid() for _ in range(OID_BLOCK)])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == oids(*range(4 * OID_BLOCK))


def test_an_empty_storage_starts_with_the_root_again(tmp_path):
    """Connection asserts that the first oid is the root's."""
    with quiet(tmp_path) as storage:
        hand_out(storage, 7)
    with quiet(tmp_path) as storage:
        assert storage.new_oid() == ROOT_OID


def test_which_oids_were_handed_out(engine):
    assert engine.was_handed_out(ROOT_OID)
    assert not engine.was_handed_out(oid(1))
    engine.new_oid()
    engine.new_oid()
    assert engine.was_handed_out(oid(1))
    assert not engine.was_handed_out(oid(2))
    assert engine.next_oid == 2


def test_time_does_not_go_back(engine, storage, monkeypatch):
    hand_out(storage, 1)
    before = engine.tick()
    monkeypatch.setattr(time, "time", lambda: 1.0)
    monkeypatch.setattr(time, "time_ns", lambda: 10**9)
    assert before <= engine.time() <= engine.tick() < before + MINUTE
    commit(storage, record(0))
    commit(storage, record(0))
    times = [row.state.time for row in journal(storage).values()]
    assert times == sorted(set(times))


def test_time_does_not_go_back_across_openings(tmp_path, monkeypatch):
    with quiet(tmp_path) as storage:
        hand_out(storage, 1)
        commit(storage, record(0))
        before = storage._engine.journal.state.time
    monkeypatch.setattr(time, "time", lambda: 1.0)
    monkeypatch.setattr(time, "time_ns", lambda: 10**9)
    with quiet(tmp_path) as storage:
        assert before <= storage._engine.time() <= storage._engine.tick() < before + MINUTE


def test_a_change_that_fails_is_undone(engine, storage):
    hand_out(storage, 5)
    commit(storage, record(0, 1, 2), record(1), record(2))
    before = {name: rows(storage, name) for name in TABLES}

    def half_way():
        with engine.lock, engine.change() as change:
            change.store(oid(3), record(3), ())
            change.store(oid(0), record(0, 3), (oid(3),))
            assert change.settle() == []
            assert engine.objects[oid(3)] == record(3)
            assert engine.counts.garbage == 2
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half_way()
    assert {name: rows(storage, name) for name in TABLES} == before
    assert_books(storage)
    assert not engine.lock.locked()


def test_a_change_that_changes_nothing_is_no_transaction(engine, storage):
    with engine.lock, engine.change():
        pass
    assert list(journal(storage)) == [0]


def test_a_failure_before_it_begins_frees_the_mutex(engine, monkeypatch):
    def fail():
        raise RuntimeError("no")

    monkeypatch.setattr(engine.environment, "begin", fail)
    with pytest.raises(RuntimeError, match="no"), engine.lock, engine.change():
        pytest.fail("it began")
    assert not engine.lock.locked()


@pytest.mark.parametrize("point", ["commit.begun", "commit.written"])
def test_a_commit_that_fails_at_a_point_is_undone(storage, point, monkeypatch):
    hand_out(storage, 3)
    commit(storage, record(0, 1), record(1))
    before = {name: rows(storage, name) for name in TABLES}

    def fail(reached):
        if reached == point:
            raise InterruptedError(point)

    monkeypatch.setattr(failpoints, "hook", fail)
    with pytest.raises(InterruptedError):
        commit(storage, record(0, 2), record(2))
    monkeypatch.setattr(failpoints, "hook", None)
    assert {name: rows(storage, name) for name in TABLES} == before
    assert_books(storage)
    commit(storage, record(0, 2), record(2))
    assert stored(storage) == {0: [2], 1: [], 2: []}


def test_listeners_hear_what_is_not_their_own(engine, storage):
    hand_out(storage, 5)
    one, other = Ear(), Ear()
    engine.listen(one)
    engine.listen(other)
    engine.commit(pending(record(0), record(1)), 24, one)
    assert (one.heard, other.heard) == ([], oids(0, 1))
    engine.commit(pending(record(2)), 12)
    assert (one.heard, other.heard) == (oids(2), oids(0, 1, 2))


def test_listeners_hear_what_was_collected(engine, storage):
    hand_out(storage, 5)
    commit(storage, record(0), record(1, 2), record(2))
    ear = Ear()
    engine.listen(ear)
    storage.pack()
    assert sorted(ear.heard) == oids(1, 2)


def test_listeners_do_not_hear_what_was_refused(engine, storage):
    hand_out(storage, 5)
    ear = Ear()
    engine.listen(ear)
    with pytest.raises(CommitRefused):
        engine.commit({oid(0): (record(0, 4), (oid(4),))}, 20)
    assert ear.heard == []


def test_listeners_that_are_gone_are_forgotten(engine):
    ear = Ear()
    engine.listen(ear)
    known = len(engine.transactions.listeners)
    del ear
    gc.collect()
    engine.listen(Ear())
    assert len(engine.transactions.listeners) == known
    engine.commit(pending(record(0)), 12)


def test_a_commit_may_be_called_off_under_the_mutex(engine, storage):
    held = []

    def no():
        held.append(engine.lock.locked())
        return True

    assert engine.commit(pending(record(0)), 12, unless=no) is False
    assert held == [True]
    assert stored(storage) == {}
    assert engine.commit(pending(record(0)), 12, unless=lambda: False) is True
    assert stored(storage) == {0: []}


def test_one_thread_may_have_it_for_itself(engine, storage):
    hand_out(storage, 3)
    refused = []

    def try_it():
        try:
            commit(storage, record(0))
        except CommitRefused as error:
            refused.append(str(error))

    other = threading.Thread(target=try_it)
    with engine.transactions.exclusion.during("the census"):
        with engine.lock, engine.change():
            pass
        try_it()
        other.start()
        other.join()
    assert refused == [f"{engine.environment.path} is busy with the census: nothing was stored, try again later"] * 2
    try_it()
    assert len(refused) == 2


def test_records_are_found_in_the_order_of_their_oids(engine, storage):
    hand_out(storage, 300)
    commit(storage, record(0, *range(1, 300, 2)), *(record(key) for key in range(1, 300, 2)))
    assert [key for key, _ in engine.reader.rows(b"", 3)] == oids(0, 1, 3)
    assert [key for key, _ in engine.reader.rows(oid(4), 2)] == oids(5, 7)
    assert engine.reader.rows(oid(300), 2) == []
    assert list(engine.reader.numbers()) == [0, *range(1, 300, 2)]
    assert engine.get(oid(1)) == record(1)
    assert engine.get(oid(2)) is None
    assert engine.highest >= oid(299)


def test_meta_rows(engine):
    with engine.lock, engine.change() as change:
        engine.set_meta(b"key", b"value", change.transaction)
    assert engine.get_meta(b"key") == b"value"
    with engine.lock, engine.change() as change:
        engine.set_meta(b"key", None, change.transaction)
        engine.set_meta(b"key", None, change.transaction)
    assert engine.get_meta(b"key") is None


def test_nothing_works_after_closing():
    with scratch_storage(3) as storage:
        commit(storage, record(0))
    engine = storage._engine
    uses = [
        lambda: commit(storage, record(0)),
        lambda: storage.load(oid(0)),
        engine.make_durable,
        lambda: engine.reader.rows(b"", 1),
        lambda: engine.get(oid(0)),
        engine.reader.numbers,
        lambda: engine.change().__enter__(),
        lambda: [engine.new_oid() for _ in range(OID_BLOCK + 1)],
    ]
    for use in uses:
        with pytest.raises(StorageClosed, match="is closed"):
            use()


def test_is_new_is_never_wrong_about_what_exists(engine, storage):
    hand_out(storage, 10)
    commit(storage, record(0), record(5))
    for key in (0, 5):
        assert not engine.transactions.is_new(oid(key))
    assert engine.transactions.is_new(oid(9))


def test_unchanged_records_change_nothing_but_the_journal(engine, storage):
    hand_out(storage, 3)
    commit(storage, record(0, 1, 2), record(1, 2), record(2))
    before = counts(storage)
    commit(storage, record(0, 1, 2), record(1, 2), record(2))
    assert counts(storage) == before
    assert journal(storage)[2].oids == tuple(oids(0, 1, 2))
