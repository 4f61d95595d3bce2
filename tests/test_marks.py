"""What became of a commit, by its mark; and the identity, with which a tid stands for one state of a storage."""

import json
import os
import signal
import subprocess
import sys
from math import ceil

import pytest
from faults import build, plant
from graphs import commit, hand_out, journal, meta, oid, quiet, record, rows, scratch_directory, scratch_storage, table
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage import (
    CommitInDoubt,
    DamagedError,
    DanglingReferenceError,
    MigrationError,
    ReadOnlyError,
    StorageClosed,
)
from berkeleydb_storage.environment import JOURNAL, META, end_of_log
from berkeleydb_storage.files import LOG_HEADER, PAGE_SIZE, log_name, log_numbers
from berkeleydb_storage.format import META_IDENTITY, META_NEXT_OID, pack_uint64
from berkeleydb_storage.journal import FATE_STEP, NOT_APPLIED, UNTOLD, Fate

EXAMPLES = 80
KILLED = -signal.SIGKILL


def mark(number):
    return b"%016d" % number


def store(storage, key=0, *, data=b"", by=None, refs=()):
    """Commit one record, with a mark if there is one."""
    row = record(key, *refs, data=data)
    storage._engine.commit({oid(key): (row, tuple(map(oid, refs)))}, len(row), mark=by)
    return storage._engine.journal.tid


def identity(storage):
    return storage._engine.identity


@pytest.fixture
def storage():
    with scratch_storage(20) as opened:
        yield opened


def test_the_three_answers(storage):
    fate = storage._engine.fate
    before = storage._engine.journal.tid
    store(storage)
    tid = store(storage, by=mark(1))
    store(storage)
    assert (Fate(True, None), Fate(False, None)) == (NOT_APPLIED, UNTOLD)
    assert fate(mark(1), before) == fate(mark(1), tid - 1) == Fate(True, tid)
    assert fate(mark(1), tid) == fate(mark(1), tid + 1) == NOT_APPLIED
    assert fate(mark(2), before) == NOT_APPLIED
    assert fate(mark(1), tid + 2) == fate(mark(1), -1) == UNTOLD


@pytest.mark.parametrize("asked", [False, True])
def test_a_commit_after_the_first_question_is_known_too(storage, asked):
    if asked:
        assert storage._engine.fate(mark(1), 0) == NOT_APPLIED
    tids = [store(storage, by=mark(number)) for number in range(5)]
    assert [storage._engine.fate(mark(number), 0).tid for number in range(5)] == tids


def test_a_mark_goes_with_any_kind_of_commit(storage, monkeypatch):
    """With new objects, with what changes counts, with more objects than are listed; also in slices."""
    engine = storage._engine
    records = [record(0, 1, 2), record(1), record(2)]
    pending = {row[:8]: (row, (oid(1), oid(2)) if row[:8] == oid(0) else ()) for row in records}
    engine.commit(pending, 100, mark=mark(1))
    with engine.lock:
        for _ in engine.applying({oid(0): (record(0, 1), (oid(1),))}, 100, mark=mark(2)):
            pass
    monkeypatch.setattr("berkeleydb_storage.format.MAX_LISTED", 2)
    engine.commit(pending, 100, mark=mark(3))
    noted = {tid: (row.mark, row.oids if row.oids is None else len(row.oids)) for tid, row in journal(storage).items()}
    assert noted == {0: (None, 0), 1: (mark(1), 3), 2: (mark(2), 1), 3: (mark(3), None)}
    assert [engine.fate(mark(number), 0).tid for number in (1, 2, 3)] == [1, 2, 3]
    assert [row.mark for row in engine.journal.since(0)] == [mark(1), mark(2), mark(3)]
    assert storage.check().faults == []


def test_what_has_no_mark_is_as_it_was_in_format_2(storage):
    store(storage)
    newest = rows(storage, JOURNAL)[pack_uint64(1)]
    assert len(newest) == 33 + 8
    assert newest[32] == 0


@pytest.mark.parametrize("malformed", [b"", bytes(15), bytes(17), "x" * 16, 7])
def test_malformed_marks(storage, malformed):
    with pytest.raises(ValueError, match="the mark of a commit has 16 bytes"):
        store(storage, by=malformed)
    with pytest.raises(ValueError, match="the mark of a commit has 16 bytes"), storage._engine.lock:
        next(storage._engine.applying({oid(0): (record(0), ())}, 100, mark=malformed), None)
    with pytest.raises(ValueError, match="the mark of a commit has 16 bytes"):
        storage._engine.fate(malformed, 0)
    assert storage._engine.journal.tid == 0
    assert storage.get_size() == 0


def test_what_was_refused_was_not_applied(storage):
    store(storage)
    storage._engine.fate(mark(1), 0)
    with pytest.raises(DanglingReferenceError):
        store(storage, refs=(7,), by=mark(1))
    assert storage._engine.commit({}, 0, mark=mark(1))
    assert not storage._engine.commit({oid(0): (record(0), ())}, 100, unless=lambda: True, mark=mark(1))
    assert storage._engine.fate(mark(1), 0) == NOT_APPLIED
    assert storage._engine.fate(mark(1), 0) == Fate(True, None)
    assert store(storage, by=mark(1)) == storage._engine.fate(mark(1), 0).tid


@pytest.mark.parametrize("asked", [False, True])
def test_a_commit_that_is_applied_and_fails_after_that_is_known(storage, asked):
    class Deaf:
        def invalidate(self, oids):
            raise OSError("not now")

    if asked:
        storage._engine.fate(mark(1), 0)
    listener = Deaf()
    storage._engine.listen(listener)
    with pytest.raises((CommitInDoubt, OSError)):
        store(storage, by=mark(1))
    del listener
    assert storage._engine.fate(mark(1), 0) == Fate(True, 1)
    assert storage._engine.fate(mark(2), 0) == NOT_APPLIED


def test_after_it_was_closed(storage):
    store(storage, by=mark(1))
    storage.close()
    with pytest.raises(StorageClosed):
        storage._engine.fate(mark(1), 0)


def test_the_horizon(storage, monkeypatch):
    monkeypatch.setattr("berkeleydb_storage.journal.HORIZON", 5)
    for number in range(1, 13):
        assert store(storage, by=mark(number)) == number
        if number == 3:
            assert storage._engine.fate(mark(3), 0) == Fate(True, 3)
    fate = storage._engine.fate
    assert [fate(mark(number), 0) for number in (7, 8, 12)] == [UNTOLD, Fate(True, 8), Fate(True, 12)]
    assert fate(mark(13), 6) == UNTOLD
    assert fate(mark(13), 7) == NOT_APPLIED
    assert list(storage._engine.journal._marks.values()) == [8, 9, 10, 11, 12]


def test_what_was_read_leaves_the_horizon_like_what_was_noted(storage, monkeypatch):
    """The oldest first, whatever came into the index first."""
    monkeypatch.setattr("berkeleydb_storage.journal.HORIZON", 5)
    for number in range(1, 6):
        store(storage, by=mark(number))
    assert storage._engine.fate(mark(0), 0) == NOT_APPLIED
    left = storage._engine.journal._marks
    for tid in range(6, 11):
        assert list(left.values()) == list(range(max(1, tid - 5), 6))
        store(storage)
    assert list(left.values()) == []
    assert storage._engine.fate(mark(5), 4) == UNTOLD


@pytest.mark.parametrize("asked", [False, True])
def test_of_several_transactions_with_a_mark_the_newest_counts(storage, monkeypatch, asked):
    monkeypatch.setattr("berkeleydb_storage.journal.HORIZON", 5)
    fate = storage._engine.fate
    if asked:
        fate(mark(0), 0)
    for number in (1, 2, 1, 3):
        store(storage, by=mark(number))
    for _ in range(2):
        assert [fate(mark(1), since) for since in range(5)] == [Fate(True, 3)] * 3 + [NOT_APPLIED] * 2
        assert fate(mark(0), 0) == NOT_APPLIED
    assert list(storage._engine.journal._marks.values()) == [2, 3, 4]
    for _ in range(3):
        store(storage)
    assert list(storage._engine.journal._marks.values()) == [3, 4]


def test_the_index_is_read_in_small_steps_and_once(storage):
    """The mutex is free between any two of them."""
    count = 2 * FATE_STEP + 7
    for number in range(1, count + 1):
        store(storage, by=mark(number))
    history = storage._engine.journal
    answers = []
    while (answer := history.fate(mark(0), 1)) is None:
        answers.append(len(history._marks))
    assert answer == NOT_APPLIED
    assert len(answers) == ceil((count - 1) / FATE_STEP)
    assert answers == [FATE_STEP, 2 * FATE_STEP, count - 1]
    assert history.fate(mark(0), 1) == NOT_APPLIED
    assert history.fate(mark(2), 1) == Fate(True, 2)
    assert history.fate(mark(1), 0) is None
    assert history.fate(mark(1), 0) == Fate(True, 1)


def test_a_refusal_does_not_make_it_read_again(storage):
    """Otherwise a client whose commits are refused could keep everybody waiting."""
    for number in range(FATE_STEP + 1):
        store(storage, by=mark(number))
    history = storage._engine.journal
    assert storage._engine.fate(mark(-1), 0) == NOT_APPLIED
    with pytest.raises(DanglingReferenceError):
        store(storage, refs=(7,))
    assert history.fate(mark(-1), 0) == NOT_APPLIED
    assert history.fate(mark(0), 0) == Fate(True, 1)


def test_the_newest_ones_are_looked_at_first(storage):
    for number in range(3 * FATE_STEP):
        store(storage, by=mark(number))
    history = storage._engine.journal
    assert history.fate(mark(3 * FATE_STEP - 2), 0) is None
    assert history.fate(mark(3 * FATE_STEP - 2), 0).tid == history.tid - 1


DAMAGE = {
    "missing": lambda row: None,
    "short": lambda row: b"short",
    "half a mark": lambda row: row[:41],
    "unknown flags": lambda row: row[:32] + b"\xff" + row[33:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_rows_that_cannot_be_read_are_not_known(storage, damage):
    """But what is newer is; and a check finds them, and a repair forgets what was before."""
    for number in range(1, 10):
        store(storage, by=mark(number))
    plant(storage, (JOURNAL, pack_uint64(4), DAMAGE[damage](rows(storage, JOURNAL)[pack_uint64(4)])))
    fate = storage._engine.fate
    for _ in range(2):
        assert [fate(mark(number), 0) for number in (3, 4, 5)] == [UNTOLD, UNTOLD, Fate(True, 5)]
        assert [fate(mark(0), since) for since in (3, 4, 5)] == [UNTOLD, NOT_APPLIED, NOT_APPLIED]
        assert store(storage) == storage._engine.journal.tid
    assert [fault.kind for fault in storage.check(repair=True).faults] == ["journal"]
    assert fate(mark(5), 4) == Fate(True, 5)
    assert fate(mark(0), 3) == UNTOLD
    assert storage.check().faults == []


class Model:
    """What the answers are, from all transactions that there ever were."""

    def __init__(self):
        self.marks = {0: None}

    def fate(self, sought, since, horizon):
        newest = max(self.marks)
        if not 0 <= since <= newest:
            return UNTOLD
        known = [tid for tid, noted in self.marks.items() if noted == sought and tid > newest - horizon]
        if known:
            return Fate(True, max(known)) if max(known) > since else NOT_APPLIED
        return NOT_APPLIED if since >= newest - horizon else UNTOLD


steps = st.lists(
    st.tuples(st.just("commit"), st.none() | st.integers(0, 6))
    | st.tuples(st.just("ask"), st.integers(0, 7), st.integers(-1, 30))
    | st.tuples(st.sampled_from(["reopen", "reload", "refuse"])),
    max_size=40,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(steps, st.integers(1, 4))
def test_answers_are_those_of_a_model(program, step):
    """Also where a mark is given to several transactions, which no client should."""
    with scratch_directory() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr("berkeleydb_storage.journal.HORIZON", 5)
        patch.setattr("berkeleydb_storage.journal.FATE_STEP", step)
        model, storage = Model(), quiet(path)
        try:
            for what, *values in program:
                if what == "commit":
                    sought = None if values[0] is None else mark(values[0])
                    model.marks[store(storage, by=sought)] = sought
                elif what == "ask":
                    assert storage._engine.fate(mark(values[0]), values[1]) == model.fate(mark(values[0]), values[1], 5)
                elif what == "reload":
                    storage._engine.adopt()
                elif what == "refuse":
                    with pytest.raises(DanglingReferenceError):
                        store(storage, refs=(1,), by=mark(0))
                else:
                    storage.close()
                    storage = quiet(path)
            assert len(storage._engine.journal._marks or ()) <= 5
        finally:
            storage.close()


CHILD = """
import os, sys
sys.path[:0] = {path!r}
import test_marks
test_marks.child(*sys.argv[1:])
"""


def run_child(path, point, count, mode="durable"):
    """Commit with marks in another process until it dies; return its status, and its lines."""
    script = CHILD.format(path=sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), point, str(count), mode],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, [line.split() for line in done.stdout.splitlines()]


MODES = {
    "durable": {"durable": True},
    "async": {"durable": False, "async_log_write": True},
    "buffered": {"durable": False, "async_log_write": False},
}


def child(path, point, count, mode):
    """Commit, and tell "begun" and "applied" with number, identity and tid; die when a point is reached so often."""
    from berkeleydb_storage import failpoints

    left = [int(count)]

    def hook(name):
        left[0] -= name == point
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(*words):
        os.write(1, (" ".join(map(str, words)) + "\n").encode())

    failpoints.hook = hook
    with quiet(path, **MODES[mode]) as storage:
        if point == "renewed":
            storage._engine.renew_identity()
        tell("open", 0, identity(storage).hex(), storage._engine.journal.tid)
        failpoints.reached("opened")
        failpoints.reached("renewed")
        for turn in range(int(count) + 5):
            number = storage._engine.journal.tid * 1000 + os.getpid() % 1000
            tell("begun", number, identity(storage).hex(), storage._engine.journal.tid)
            tid = store(storage, data=b"%d" % number, by=mark(number))
            tell("applied", number, identity(storage).hex(), tid)
            failpoints.reached(f"told {turn}")


@pytest.mark.parametrize("point", ["commit.begun", "commit.written", "commit.committed", "commit.flushed", "told 4"])
def test_the_fate_of_a_commit_that_was_killed(tmp_path, point):
    """It was applied if and only if its record is there; what was acknowledged was; and the identity is the same."""
    with quiet(tmp_path, durable=True) as storage:
        store(storage)
        before = identity(storage)
    status, lines = run_child(tmp_path, point, 1 if point.startswith("told") else 5)
    assert status == KILLED
    _, number, _, since = [line for line in lines if line[0] == "begun"][-1]
    with quiet(tmp_path, durable=True) as storage:
        assert storage.statistics().recovered
        assert identity(storage) == before
        for _, told, name, tid in [line for line in lines if line[0] == "applied"]:
            assert name == before.hex()
            assert storage._engine.fate(mark(int(told)), int(tid) - 1) == Fate(True, int(tid))
        fate = storage._engine.fate(mark(int(number)), int(since))
        is_there = storage.load(oid(0)) == record(0, data=number.encode())
        assert fate == (Fate(True, int(since) + 1) if is_there else NOT_APPLIED)
        assert is_there or point in ("commit.begun", "commit.written", "commit.committed")
        assert not is_there or point not in ("commit.begun", "commit.written")
        assert storage.check().faults == []


@pytest.mark.parametrize("mode", MODES)
def test_an_identity_and_a_tid_are_one_commit(tmp_path, mode):
    """Whatever a client was told of, over many kills; the tids of what a kill lost are given to others."""
    told, again = {}, 0
    with quiet(tmp_path, durable=True) as storage:
        store(storage)
    for _ in range(6):
        status, lines = run_child(tmp_path, "told 4", 1, mode)
        assert status == KILLED
        for what, number, name, tid in lines:
            if what == "applied":
                again += any(key[1] == tid for key in told)
                assert told.setdefault((name, tid), number) == number
    assert len({name for name, _ in told}) == (1 if mode == "durable" else 6)
    assert (again > 0) == (mode == "buffered")


def killed(path, mode, point="told 3"):
    """Let an owner be killed; return what identity it had. Before it, another one stored something and closed it."""
    if not (path / "storage.json").exists():
        with quiet(path) as storage:
            store(storage)
    status, lines = run_child(path, point, 1, mode)
    assert status == KILLED
    return bytes.fromhex(lines[0][2]) if lines else None


def reopened(path, mode="durable"):
    with quiet(path, **MODES[mode]) as storage:
        assert storage.check().faults == []
        return identity(storage)


def durable_noted(path):
    return json.loads((path / "storage.json").read_text())["durable"]


@pytest.mark.parametrize("then", MODES)
@pytest.mark.parametrize("mode", MODES)
def test_who_was_killed_decides_and_not_who_recovers(tmp_path, mode, then):
    before = killed(tmp_path, mode)
    assert durable_noted(tmp_path) == (mode == "durable")
    after = reopened(tmp_path, then)
    assert (after == before) == (mode == "durable")
    assert reopened(tmp_path, mode) == after, "and it was closed after that"
    assert killed(tmp_path, then) == after
    assert (reopened(tmp_path, then) == after) == (then == "durable")


@pytest.mark.parametrize("mode", MODES)
def test_killed_while_it_recovers(tmp_path, mode):
    before = killed(tmp_path, mode)
    for point in ("recover.begin", "recover.done", "recover.done"):
        assert killed(tmp_path, "durable", point) is None
    after = reopened(tmp_path)
    assert (after == before) == (mode == "durable")
    assert reopened(tmp_path) == after


def test_killed_right_after_it_was_renewed(tmp_path):
    """It is on the disk before anybody is told, and before storage.json says that nothing was lost."""
    first = killed(tmp_path, "buffered")
    second = killed(tmp_path, "durable", "opened")
    assert second != first
    assert durable_noted(tmp_path)
    assert reopened(tmp_path) == second
    third = killed(tmp_path, "durable", "renewed")
    assert third not in (first, second)
    assert reopened(tmp_path) == third


def test_readers_of_what_was_killed_see_the_identity_that_it_had(tmp_path):
    """Nobody stores anything in their copy, so that a tid is that of the same transaction as before."""
    before = killed(tmp_path, "buffered")
    with quiet(tmp_path, read_only=True) as storage:
        assert identity(storage) == before
    assert reopened(tmp_path) != before


def damage_the_log(path):
    """Change a byte in a record in the middle of the log, which has more behind it."""
    log = path / log_name(log_numbers(path)[-1])
    contents, end, starts = bytearray(log.read_bytes()), end_of_log(log), [0]
    while starts[-1] < end:
        starts.append(starts[-1] + LOG_HEADER.unpack_from(contents, starts[-1])[1])
    contents[starts[-10] + LOG_HEADER.size + 5] ^= 0x10
    log.write_bytes(contents)
    return log


@pytest.mark.parametrize("point", [None, "recover.done"])
def test_a_damaged_log(tmp_path, point):
    """Acknowledged commits are lost with its end; also if it is killed between the cut and the new identity."""
    before = killed(tmp_path, "durable")
    damage_the_log(tmp_path)
    if point is not None:
        assert killed(tmp_path, "durable", point) is None
        assert not durable_noted(tmp_path)
    after = reopened(tmp_path)
    assert after != before
    assert durable_noted(tmp_path)
    assert killed(tmp_path, "durable") == after
    assert reopened(tmp_path) == after


def test_a_damaged_log_that_is_put_back(tmp_path):
    """The recovery fails because a table is damaged, too, and leaves everything as it was."""
    killed(tmp_path, "durable")
    damage_the_log(tmp_path)
    with (tmp_path / "objects.db").open("r+b") as file:
        file.seek(PAGE_SIZE + 100)
        file.write(b"\xa5" * 50)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(DamagedError):
        quiet(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert durable_noted(tmp_path)


def test_an_identity_is_kept(tmp_path):
    """By commits, packs, checks, checkpoints, reopening, asking for a recovery, readers; and no two are the same."""
    with scratch_storage() as other, quiet(tmp_path) as storage:
        first = identity(storage)
        assert (len(first), type(first)) == (16, bytes)
        assert first != identity(other)
        assert meta(storage, META_IDENTITY) == first
    with quiet(tmp_path) as storage:
        build(storage)
        storage.pack()
        storage.checkpoint()
        storage.compact()
        storage.check(repair=True)
        assert identity(storage) == first
    for options in ({}, {"do_recover": True}, {"read_only": True}, {"durable": True}, {"repair": True}):
        with quiet(tmp_path, **options) as storage:
            assert identity(storage) == meta(storage, META_IDENTITY) == first


def test_oids_that_begin_anew(tmp_path):
    """Somebody may have those that an earlier opening handed out."""
    with quiet(tmp_path) as storage:
        first = identity(storage)
        hand_out(storage, 5)
    with quiet(tmp_path) as storage:
        second = identity(storage)
        assert meta(storage, META_IDENTITY) == second != first
    with quiet(tmp_path) as storage:
        assert identity(storage) == second
        assert storage.new_oid() == oid(0)
        store(storage)
    with quiet(tmp_path) as storage:
        assert storage.new_oid() == oid(1)
        assert identity(storage) == second


def test_oids_that_were_reserved_and_a_first_commit_that_was_lost(tmp_path):
    status, lines = run_child(tmp_path, "commit.written", 1)
    assert status == KILLED
    with quiet(tmp_path) as storage:
        assert storage.get_size() == 0
        assert identity(storage).hex() != lines[0][2]


@pytest.mark.parametrize("row", [None, b"", bytes(15), bytes(17)])
def test_a_check_finds_what_is_no_identity(tmp_path, row):
    with quiet(tmp_path) as storage:
        build(storage)
        first = identity(storage)
        plant(storage, (META, META_IDENTITY, row))
    with quiet(tmp_path) as storage:
        other = identity(storage)
        assert len(other) == 16
        assert other != first
        (fault,) = storage.check().faults
        assert (fault.kind, fault.repairable) == ("meta", True)
        assert fault.message == f"the identity of the storage is {row!r}"
    with quiet(tmp_path, read_only=True) as storage:
        assert identity(storage) not in (first, other)
        assert [fault.kind for fault in storage.check().faults] == ["meta"]
    with quiet(tmp_path) as storage:
        assert storage.check(repair=True).sound
        mended = identity(storage)
        assert mended == meta(storage, META_IDENTITY)
        assert mended not in (first, other)
        assert storage.check().faults == []
    assert reopened(tmp_path) == mended


def test_a_repair_renews_it_and_goes_on_with_the_tids(storage):
    build(storage)
    first, tid = identity(storage), storage._engine.journal.tid
    plant(storage, (JOURNAL, pack_uint64(tid), None))
    storage.check()
    assert identity(storage) == first
    storage.check(repair=True)
    assert identity(storage) == meta(storage, META_IDENTITY) != first
    assert storage._engine.journal.tid == tid + 1


def pairs(count):
    return [(oid(key), record(key, *([key + 1] if key + 1 < count else []))) for key in range(count)]


def test_a_migration_renews_it_and_goes_on_with_the_tids(storage):
    """Its oids begin where those of its source end, below some that were handed out."""
    seen, tids = [identity(storage)], [storage._engine.journal.tid]

    def note():
        seen.append(identity(storage))
        tids.append(storage._engine.journal.tid)
        assert meta(storage, META_IDENTITY) == seen[-1]

    with pytest.raises(MigrationError):
        storage.migrate([*pairs(5), (oid(7), record(7, 8))])
    note()
    assert storage.migrate([]) == 0
    note()
    assert storage.migrate(pairs(5)) == 5
    note()
    assert tids == [0, 1, 2, 3]
    assert len(set(seen)) == 4
    assert storage.new_oid() == oid(5)


@pytest.mark.parametrize("point", ["migrate.begun", "migrate.batch", "migrate.counted", "undo.begun", "migrate.done"])
def test_killed_in_a_migration(tmp_path, point):
    with quiet(tmp_path) as storage:
        first = identity(storage)
    script = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
import test_marks
from berkeleydb_storage import failpoints
failpoints.hook = lambda name: name == {point!r} and os.kill(os.getpid(), signal.SIGKILL)
records = test_marks.pairs(5)
with test_marks.quiet({str(tmp_path)!r}, durable=True) as storage:
    storage.migrate(records[:-1] if {point!r} == "undo.begun" else records)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == KILLED
    with quiet(tmp_path) as storage:
        assert identity(storage) == meta(storage, META_IDENTITY) != first
        assert storage._engine.journal.tid == 1
        assert storage.get_size() == (5 if point == "migrate.done" else 0)
        renewed = identity(storage)
    assert reopened(tmp_path) == renewed


def test_it_can_be_renewed(tmp_path):
    """For a copy that is to be written to; it is on the disk then, whatever else is not."""
    with quiet(tmp_path) as storage:
        store(storage)
        first, tid = identity(storage), storage._engine.journal.tid
        storage._engine.renew_identity()
        second = identity(storage)
        assert meta(storage, META_IDENTITY) == second != first
        assert storage._engine.journal.tid == tid
        assert storage.check().faults == []
    with quiet(tmp_path, read_only=True) as storage:
        assert identity(storage) == second
        with pytest.raises(ReadOnlyError):
            storage._engine.renew_identity()
    assert reopened(tmp_path) == second


def test_a_missing_row_of_oids_is_taken_for_oids_that_begin_anew(tmp_path):
    with quiet(tmp_path) as storage:
        first = identity(storage)
        table(storage, META).delete(META_NEXT_OID)
    with quiet(tmp_path) as storage:
        assert identity(storage) != first


def test_an_unmarked_commit_and_a_marked_one_find_their_conflicts(storage):
    """A mark changes nothing else."""
    session = storage.session()
    store(storage, by=mark(1))
    assert session.sync() == [oid(0)]
    commit(storage, record(0))
    assert session.sync() == [oid(0)]
