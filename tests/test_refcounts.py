"""Counts, queue and suspects, after every transaction the same as a count of all records from scratch."""

import pytest
from graphs import (
    assert_books,
    commit,
    counts,
    hand_out,
    number,
    oid,
    oids,
    queue,
    quiet,
    record,
    rows,
    scratch_directory,
    scratch_storage,
    stored,
    suspects,
    table,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage import DamagedError, DanglingReferenceError
from berkeleydb_storage.environment import REFCOUNTS, TABLES
from berkeleydb_storage.format import pack_condemned, pack_count, pack_uint64

EXAMPLES = 500
UNIVERSE = 7
"""Objects 0 to 6: few, so that they meet in many ways."""
EVER = (1 << 63) - 1


class Graph:
    """What a storage must hold: objects with their references, and who is suspect."""

    def __init__(self):
        self.refs = {}
        self.suspects = set()

    def count(self, refs):
        found = dict.fromkeys(refs, 0)
        for key, targets in refs.items():
            for target in set(targets) - {key}:
                found[target] += 1
        return found

    def dangling(self, pending):
        known = self.refs.keys() | pending.keys()
        return {target for key, refs in pending.items() for target in refs if target != key and target not in known}

    def commit(self, pending):
        before, old, self.refs = self.count(self.refs), self.refs, self.refs | pending
        after = self.count(self.refs)
        lost = {ref for key in pending for ref in set(old.get(key, ())) - set(pending[key]) - {key}}
        moved = {key for key in lost if after[key] >= before[key]}
        linked = {key for key in before if 0 == before[key] < after[key]}
        fell = {key for key in before if 0 < after[key] < before[key]}
        self.suspects |= {key for key in (fell | moved | linked) - {0} if set(self.refs[key]) - {key}}
        # The root has one referrer more than is counted here: the outside world.

    def collected(self, left):
        assert self.reachable() <= left <= self.refs.keys()
        self.refs = {key: refs for key, refs in self.refs.items() if key in left}

    def reachable(self):
        found, todo = set(), [0] if 0 in self.refs else []
        while todo:
            key = todo.pop()
            if key not in found:
                found.add(key)
                todo += self.refs[key]
        return found


references = st.lists(st.integers(0, UNIVERSE - 1), max_size=4)
commits = st.dictionaries(st.integers(0, UNIVERSE - 1), references, min_size=1, max_size=UNIVERSE)
steps = st.one_of(commits, commits, st.integers(1, 3), st.just("reopen"))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(steps, max_size=12), st.sampled_from(["btree", "hash"]))
def test_the_books_agree_with_a_recount(program, type):
    """Commits of any references, garbage collected in steps of any size, and reopening, in any order."""
    model = Graph()
    with scratch_directory() as path:
        storage = quiet(path, type=type)
        try:
            hand_out(storage, UNIVERSE)
            for step in program:
                if step == "reopen":
                    storage.close()
                    storage = quiet(path)
                    hand_out(storage, UNIVERSE)
                elif isinstance(step, int):
                    storage._running.collector.step(step, EVER)
                    model.collected(set(stored(storage)))
                    model.suspects = suspects(storage)
                else:
                    commit_both(storage, model, step)
                assert stored(storage) == {key: sorted(set(refs) - {key}) for key, refs in model.refs.items()}
                assert_books(storage)
                assert suspects(storage) == model.suspects
                assert 0 not in queue(storage)
        finally:
            storage.close()


def commit_both(storage, model, pending):
    records = [record(key, *refs) for key, refs in pending.items()]
    dangling = model.dangling(pending)
    if not dangling:
        commit(storage, *records)
        model.commit(pending)
        return
    before = {name: rows(storage, name) for name in TABLES}
    with pytest.raises(DanglingReferenceError) as caught:
        commit(storage, *records)
    assert sorted(caught.value.oids) == sorted(oids(*dangling))
    assert {name: rows(storage, name) for name in TABLES} == before


@settings(max_examples=EXAMPLES // 5, deadline=None)
@given(st.lists(commits, min_size=1, max_size=8))
def test_packing_leaves_no_object_without_a_referrer(program):
    with scratch_storage(UNIVERSE) as storage:
        model = Graph()
        for pending in program:
            commit_both(storage, model, pending)
        storage.pack()
        model.collected(set(stored(storage)))
        assert queue(storage) == []
        assert_books(storage)


@pytest.fixture
def storage():
    with scratch_storage(20) as opened:
        yield opened
        assert_books(opened)


def test_new_objects_with_one_referrer_touch_no_other_table(storage):
    commit(storage, record(0, 1, 2), record(1, 3), record(2), record(3))
    assert counts(storage) == {}
    assert queue(storage) == []
    assert suspects(storage) == set()


def test_new_objects_without_a_referrer_wait_in_the_queue(storage):
    commit(storage, record(0))
    commit(storage, record(1), record(2, 3), record(3))
    assert counts(storage) == {1: 0, 2: 0}
    assert queue(storage) == [1, 2]


def test_the_queue_is_in_the_order_of_time(storage):
    commit(storage, record(0, 1, 2, 3), *(record(key) for key in (1, 2, 3)))
    commit(storage, record(0, 1, 3))
    commit(storage, record(0, 1))
    commit(storage, record(0))
    assert queue(storage) == [2, 3, 1]


def test_moving_between_containers_is_nothing(storage):
    commit(storage, record(0, 1, 2), record(1, 3), record(2), record(3))
    commit(storage, record(1), record(2, 3))
    assert (counts(storage), queue(storage), suspects(storage)) == ({}, [], set())
    assert stored(storage)[2] == [3]


def test_moving_one_of_several_references_is_nothing(storage):
    commit(storage, record(0, 1, 2, 3), record(1, 4), record(2, 4), record(3), record(4))
    commit(storage, record(1), record(3, 4))
    assert (counts(storage), suspects(storage)) == ({4: 2}, set())


def test_the_root_is_never_condemned(storage):
    commit(storage, record(0, 1), record(1, 0))
    assert counts(storage) == {0: 2}
    commit(storage, record(1))
    assert counts(storage) == {}
    assert suspects(storage) == set()
    commit(storage, record(0, 1, 2, 3), record(1, 0), record(2, 0), record(3, 0))
    assert counts(storage) == {0: 4}
    commit(storage, record(0))
    storage.pack()
    assert stored(storage) == {0: []}


def test_an_object_does_not_keep_itself(storage):
    commit(storage, record(0, 1), record(1, 1, 1))
    assert counts(storage) == {}
    commit(storage, record(0, 0))
    assert queue(storage) == [1]
    storage.pack()
    assert stored(storage) == {0: []}


def test_a_record_counts_once_however_often_it_refers(storage):
    commit(storage, record(0, 1, 1, 1), record(1))
    assert counts(storage) == {}
    commit(storage, record(0, 1, 1))
    assert (counts(storage), suspects(storage)) == ({}, set())
    commit(storage, record(0))
    assert queue(storage) == [1]


def test_who_loses_some_of_several_referrers_is_suspect(storage):
    commit(storage, record(0, 1, 2, 3), record(1, 4), record(2, 4), record(3, 4), record(4, 5), record(5))
    commit(storage, record(1))
    assert (counts(storage), suspects(storage)) == ({4: 2}, {4})
    commit(storage, record(2))
    assert (counts(storage), suspects(storage)) == ({}, {4})
    commit(storage, record(3))
    assert (queue(storage), suspects(storage)) == ([4], {4})
    storage.pack()
    assert suspects(storage) == set()


def test_what_refers_to_nothing_is_never_suspect(storage):
    """It is on no cycle: nothing hangs on it."""
    commit(storage, record(0, 1, 2), record(1, 3), record(2, 3), record(3, 3))
    commit(storage, record(1))
    assert (counts(storage), suspects(storage)) == ({}, set())
    commit(storage, record(2), record(1, 3))
    assert suspects(storage) == set()


def test_objects_on_a_cycle_are_suspect_when_it_comes_loose(storage):
    commit(storage, record(0, 1), record(1, 2), record(2, 1))
    commit(storage, record(0))
    assert suspects(storage) == {1}
    assert queue(storage) == []


def test_relinking_takes_out_of_the_queue(storage):
    commit(storage, record(0, 1), record(1))
    commit(storage, record(0))
    assert queue(storage) == [1]
    commit(storage, record(0, 1))
    assert (queue(storage), counts(storage)) == ([], {})
    storage.pack()
    assert stored(storage) == {0: [1], 1: []}


def test_relinking_from_several_places(storage):
    commit(storage, record(0, 1, 2), record(1), record(2))
    commit(storage, record(0, 2))
    commit(storage, record(0, 1, 2), record(2, 1))
    assert (queue(storage), counts(storage)) == ([], {1: 2})


def test_a_child_of_garbage_may_be_linked(storage):
    commit(storage, record(0, 1), record(1, 2), record(2))
    commit(storage, record(0))
    commit(storage, record(0, 2))
    assert (queue(storage), counts(storage)) == ([1], {1: 0, 2: 2})
    storage.pack()
    assert stored(storage) == {0: [2], 2: []}


def test_garbage_may_be_linked_by_garbage(storage):
    commit(storage, record(0, 1), record(1))
    commit(storage, record(0))
    commit(storage, record(2, 1))
    assert queue(storage) == [2]
    storage.pack()
    assert stored(storage) == {0: []}


def test_garbage_that_is_stored_again_stays_garbage(storage):
    commit(storage, record(0, 1), record(1))
    commit(storage, record(0))
    before = queue(storage), rows(storage, REFCOUNTS)
    commit(storage, record(1, data=b"new"))
    assert (queue(storage), rows(storage, REFCOUNTS)) == before


def test_a_collected_oid_may_be_stored_anew(storage):
    commit(storage, record(0, 1), record(1, 2), record(2))
    commit(storage, record(0))
    storage.pack()
    assert stored(storage) == {0: []}
    commit(storage, record(1, 2), record(2))
    assert (queue(storage), storage.get_size()) == ([1], 3)
    commit(storage, record(0, 1, 2))
    assert (queue(storage), counts(storage)) == ([], {2: 2})


def test_linking_what_was_collected_is_refused(storage):
    commit(storage, record(0, 1), record(1, 2), record(2))
    commit(storage, record(0))
    storage.pack()
    with pytest.raises(DanglingReferenceError, match="do not exist, or were collected: 1, 2") as caught:
        commit(storage, record(0, 1, 3), record(3, 2, 1))
    assert caught.value.oids == oids(1, 2)
    assert stored(storage) == {0: []}
    commit(storage, record(0, 1, 3), record(3, 2, 1), record(1), record(2))


def test_many_dangling_references_are_all_listed(storage):
    hand_out(storage, 60)
    with pytest.raises(DanglingReferenceError, match="1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 40 more") as caught:
        commit(storage, record(0, *range(1, 51)))
    assert caught.value.oids == oids(*range(1, 51))


def test_a_reference_that_was_never_handed_out_is_dangling_as_any_other(storage):
    with pytest.raises(DanglingReferenceError, match=str(10**15)):
        commit(storage, record(0, 10**15))


def test_no_count_gets_negative(storage):
    """It would mean that the counts are wrong already: the commit is refused before it does more harm."""
    commit(storage, record(0, 1, 2), record(1, 2), record(2))
    before = table(storage, REFCOUNTS)[oid(2)]
    table(storage, REFCOUNTS).delete(oid(2))
    with pytest.raises(DamagedError, match="object 2 is lower than its number of referrers: run `durus-bdb check --re"):
        commit(storage, record(0, 1), record(1))
    table(storage, REFCOUNTS).put(oid(2), before)
    commit(storage, record(0, 1), record(1))
    assert queue(storage) == [2]


def test_lowering_a_count_that_is_0_is_refused(storage):
    commit(storage, record(0), record(1))
    books = storage._engine.counts
    engine = storage._engine
    with pytest.raises(DamagedError, match="object 1"), engine.lock, engine.change() as change:
        books.drop_reference(oid(1), change.now, change.transaction)
    with pytest.raises(DamagedError, match="object 0"), engine.lock, engine.change() as change:
        books.drop_reference(oid(0), change.now, change.transaction)


def test_lowering_a_count(storage):
    """1 → gone: for the caller to see to. 2 → 1: a row less, and a suspect. 3 → 2: the row changes."""
    commit(storage, record(0, 1, 2, 3, 4), record(1, 2, 3), record(2, 3), record(3, 4), record(4))
    before = rows(storage, REFCOUNTS)
    try:
        with storage._engine.lock, storage._engine.change() as change:
            books = storage._engine.counts
            assert books.drop_reference(oid(1), change.now, change.transaction)
            assert not books.drop_reference(oid(2), change.now, change.transaction)
            assert not books.drop_reference(oid(3), change.now, change.transaction)
            assert counts(storage) == {3: 2, 4: 2}
            assert suspects(storage) == {2, 3}
            assert books.suspects == 2
            raise InterruptedError
    except InterruptedError:
        assert rows(storage, REFCOUNTS) == before
        assert storage._engine.counts.suspects == 0


def test_the_oldest_comes_first(storage):
    commit(storage, record(0, 1, 2), record(1), record(2))
    commit(storage, record(0, 1))
    first = storage._engine.journal.state.time
    commit(storage, record(0))
    books = storage._engine.counts
    assert books.next_condemned() == (first, oid(2))
    assert [number(key) for _, key in books.condemned(b"")] == [2, 1]
    assert [number(key) for _, key in books.condemned(pack_uint64(first + 1))] == [1]
    assert books.is_condemned(oid(2), first)
    assert not books.is_condemned(oid(2), first + 1)
    assert not books.is_condemned(oid(0), first)


def test_an_empty_queue(storage):
    assert storage._engine.counts.next_condemned() is None


def test_rows_are_those_of_the_format(storage):
    commit(storage, record(0, 1, 2), record(1, 2), record(2), record(3))
    now = storage._engine.journal.state.time
    assert rows(storage, REFCOUNTS) == {oid(2): pack_count(2), oid(3): pack_condemned(now)}
