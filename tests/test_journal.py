"""The bounded history: which transaction changed what, and the totals after each."""

import pytest
from graphs import commit, hand_out, journal, oid, oids, quiet, record, rows, scratch_directory, scratch_storage, table
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage import DamagedError, DanglingReferenceError
from berkeleydb_storage.environment import JOURNAL
from berkeleydb_storage.format import MAX_LISTED, State, pack_journal, pack_uint64
from berkeleydb_storage.journal import HORIZON

EXAMPLES = 60


@pytest.fixture
def storage():
    with scratch_storage(20) as opened:
        yield opened


@pytest.fixture
def short_memory(monkeypatch):
    monkeypatch.setattr("berkeleydb_storage.journal.HORIZON", 5)


def history(storage):
    return storage._engine.journal


def changed_since(storage, tid):
    found = history(storage).since(tid)
    return None if found is None else [row.oids if row.oids is None else list(row.oids) for row in found]


def test_the_horizon():
    assert HORIZON == 16_384


def test_a_new_storage_has_transaction_0(storage):
    assert history(storage).tid == 0
    assert list(journal(storage)) == [0]
    assert history(storage).state[1:] == (0, 0, 0)
    assert history(storage).since(0) == []


def test_every_transaction_is_a_row(storage):
    commit(storage, record(0, 1), record(1))
    commit(storage, record(1, data=b"new"))
    commit(storage, record(0))
    assert {tid: row.oids for tid, row in journal(storage).items()} == {
        0: (),
        1: tuple(oids(0, 1)),
        2: (oid(1),),
        3: (oid(0),),
    }
    assert [row.state[1:] for row in journal(storage).values()] == [(0, 0, 0), (2, 0, 0), (2, 0, 0), (2, 1, 0)]


def test_what_was_collected_is_listed(storage):
    commit(storage, record(0, 1), record(1, 2), record(2))
    commit(storage, record(0))
    tid = history(storage).tid
    storage.pack()
    assert changed_since(storage, tid) == [oids(1, 2)]


def test_nothing_stored_is_no_transaction(storage):
    commit(storage)
    storage.new_oid()
    storage.pack()
    storage.checkpoint()
    assert list(journal(storage)) == [0]


def test_a_refused_commit_is_no_transaction(storage):
    before = rows(storage, JOURNAL), history(storage).tid, history(storage).state
    with pytest.raises(DanglingReferenceError):
        commit(storage, record(0, 7))
    assert (rows(storage, JOURNAL), history(storage).tid, history(storage).state) == before


def test_times_ascend(storage):
    for turn in range(50):
        commit(storage, record(0, data=b"%d" % turn))
    times = [row.state.time for row in journal(storage).values()]
    assert times == sorted(set(times))


def test_a_large_transaction_may_have_changed_anything(storage):
    hand_out(storage, MAX_LISTED + 2)
    many = range(1, MAX_LISTED)
    commit(storage, record(0, *many), *map(record, many))
    assert changed_since(storage, 0) == [oids(0, *many)]
    commit(storage, record(0, *many, MAX_LISTED), *map(record, (*many, MAX_LISTED)))
    assert changed_since(storage, 1) == [None]


def test_what_leaves_the_horizon_is_forgotten(storage, short_memory):
    for turn in range(12):
        commit(storage, record(0, data=b"%d" % turn))
        assert len(journal(storage)) == min(turn + 2, 5)
    assert list(journal(storage)) == [8, 9, 10, 11, 12]
    assert changed_since(storage, 7) == [oids(0)] * 5
    assert changed_since(storage, 11) == [oids(0)]
    assert changed_since(storage, 12) == []
    assert changed_since(storage, 6) is None
    assert changed_since(storage, 0) is None


def test_what_has_not_happened_yet_is_not_known(storage):
    """A client that knows a later transaction than there is comes from another storage, or from before a crash."""
    assert history(storage).since(1) is None
    assert history(storage).since(-1) is None


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.lists(st.sets(st.integers(0, 5), min_size=1), max_size=5), max_size=4), st.integers(-2, 20))
def test_since_is_all_that_happened_since_or_nothing(program, tid):
    """A few commits in each of several openings."""
    with scratch_directory() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr("berkeleydb_storage.journal.HORIZON", 5)
        happened = [oids(0, 1, 2, 3, 4, 5)]
        with quiet(path) as storage:
            hand_out(storage, 6)
            commit(storage, record(0, 1, 2, 3, 4, 5), *map(record, range(1, 6)))
        for steps in program:
            with quiet(path) as storage:
                for changed in steps:
                    turn = b"%d" % len(happened)
                    commit(storage, *(record(key, *(range(1, 6) if key == 0 else ()), data=turn) for key in changed))
                    happened.append(oids(*sorted(changed)))
                known = max(0, len(happened) - 5) <= tid <= len(happened)
                assert changed_since(storage, tid) == (happened[tid:] if known else None)


def test_it_goes_on_after_reopening(tmp_path):
    with quiet(tmp_path) as storage:
        hand_out(storage, 3)
        commit(storage, record(0, 1), record(1), record(2))
        before = history(storage).tid, history(storage).state
    with quiet(tmp_path) as storage:
        assert (history(storage).tid, history(storage).state) == before
        commit(storage, record(1))
        assert history(storage).tid == before[0] + 1


@pytest.mark.parametrize(
    ("row", "complaint"),
    [(None, "journal.db has no transaction: restore"), (b"short", "newest row of journal.db is malformed")],
)
def test_a_journal_that_cannot_be_read_is_named(tmp_path, row, complaint):
    with quiet(tmp_path) as storage:
        if row is None:
            table(storage, JOURNAL).truncate()
        else:
            table(storage, JOURNAL).put(pack_uint64(1), row)
    with pytest.raises(DamagedError, match=complaint):
        quiet(tmp_path)


def test_transactions_go_on_where_an_old_row_is_missing(storage, short_memory):
    for turn in range(6):
        commit(storage, record(0, data=b"%d" % turn))
    table(storage, JOURNAL).delete(pack_uint64(4))
    for turn in range(6):
        commit(storage, record(0, data=b"again %d" % turn))
        assert len(journal(storage)) <= 5
    assert list(journal(storage)) == [8, 9, 10, 11, 12]


def test_a_missing_row_means_that_nothing_is_known(storage):
    for turn in range(6):
        commit(storage, record(0, data=b"%d" % turn))
    table(storage, JOURNAL).delete(pack_uint64(4))
    assert changed_since(storage, 2) is None
    assert changed_since(storage, 4) == [oids(0)] * 2


def test_reloading_takes_what_is_in_the_table(storage):
    state = State(5, 4, 3, 2)
    table(storage, JOURNAL).put(pack_uint64(9), pack_journal(state, []))
    history(storage).reload()
    assert (history(storage).tid, history(storage).state) == (9, state)
