"""Where each transaction ends in the log, compared with the journal and with what a storage held after each of them."""

import os
import random
import shutil
import struct
from hashlib import sha256
from itertools import pairwise

import pytest
from graphs import EVER, commit, copied, hand_out, journal, number, quiet, record, rows, scratch_directory

from berkeleydb_storage import (
    BerkeleyDBStorage,
    BerkeleyDBStorageError,
    CheckpointNever,
    DamagedError,
    DanglingReferenceError,
    GarbageManual,
    LibraryMismatch,
    commits,
    environment,
    failpoints,
)
from berkeleydb_storage.change import Change
from berkeleydb_storage.directory import DESCRIPTION
from berkeleydb_storage.environment import OBJECTS, TABLES, log_records
from berkeleydb_storage.files import LOG_HEADER, TABLE_SUFFIX, Position, log_name, log_numbers, log_tail
from berkeleydb_storage.journal import Journal
from berkeleydb_storage.recovery import roll_forward

STEPS, SLOW_STEPS = 40, 300
RESTORES, SLOW_RESTORES = 8, 60
CACHE = 1 << 20
KEY = "a password, long enough"
OPTIONS = {"checkpoint": CheckpointNever(), "garbage_collection": GarbageManual()}
MODES = {"btree": {}, "hash": {"type": "hash"}, "durable": {"durable": True}, "encrypted": {"key": KEY}}


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    """So that there are many log files."""
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", 1 << 18)
    monkeypatch.setattr(environment, "LOG_BUFFER", 1 << 15)


@pytest.fixture
def place():
    with scratch_directory() as path:
        yield path


class Interrupted(Exception):
    """What a crash point raises."""


def digest(storage):
    """Return something that tells what all the records of a storage are."""
    found = sha256()
    for key, value in sorted(rows(storage, OBJECTS).items()):
        found.update(key + len(value).to_bytes(4, "big") + value)
    return found.digest()


class Base:
    """The tables as they were at a checkpoint, while nobody wrote."""

    def __init__(self, storage, path, target):
        target.mkdir()
        for name in (*(name + TABLE_SUFFIX for name in TABLES), DESCRIPTION, "lock"):
            shutil.copyfile(path / name, target / name)
        self.path, self.log = target, log_numbers(path)[0]
        self.tid = storage._engine.journal.tid
        self.end = Position(*storage._engine.environment.end_of_log())


class Course:
    """A storage to which anything happens; all of its log is kept, and what it held after each transaction."""

    def __init__(self, place, seed, monkeypatch, **options):
        self.random = random.Random(seed)
        self.place, self.options = place, options
        self.path, self.logs = place / "storage", place / "logs"
        self.logs.mkdir()
        self.path.mkdir()
        self.model, self.bases, self.crashes = {}, [], 0
        self.storage = self.fail_at = None
        course, advance = self, Journal.advance

        def noted(self, state, mark=None):
            advance(self, state, mark)
            course.model[self.tid] = state.time, digest(course.storage)

        monkeypatch.setattr(Journal, "advance", noted)
        monkeypatch.setattr(failpoints, "hook", self.reached)
        self.open()
        self.model[0] = self.storage._engine.journal.state.time, digest(self.storage)

    @property
    def tid(self):
        return self.storage._engine.journal.tid

    @property
    def key(self):
        return self.options.get("key")

    def reached(self, point):
        if point == "checkpoint.logs-noted":
            self.keep(os.link)
        if point == self.fail_at:
            self.fail_at = None
            raise Interrupted(point)

    def keep(self, copy):
        for log in log_numbers(self.path):
            (self.logs / log_name(log)).unlink(missing_ok=True)
            copy(self.path / log_name(log), self.logs / log_name(log))

    def open(self):
        self.storage = quiet(self.path, **self.options)
        for tid in [tid for tid in self.model if tid > self.tid]:
            assert self.crashes, "lost without a crash"
            del self.model[tid]

    def finish(self):
        self.storage.close()
        self.keep(shutil.copyfile)
        failpoints.hook = None

    def step(self):
        steps = [self.commit] * 8 + [self.commit_much, self.refuse, self.interrupt, self.unlink, self.collect]
        self.random.choice([*steps, self.pack, self.checkpoint, self.compact, self.reopen, self.crash, self.idle])()

    def new(self, count):
        return [number(self.storage.new_oid()) for _ in range(count)]

    def some(self):
        """Return some of the objects that the root refers to."""
        if 0 not in (known := {number(key) for key in rows(self.storage, OBJECTS)}):
            return []
        return sorted(self.random.sample(sorted(known - {0}), min(len(known) - 1, self.random.randrange(1, 30))))

    def commit(self):
        keys = self.new(self.random.randrange(4)) if self.tid else [key for key in self.new(5) if key]
        linked = sorted({*self.some()[:5], *keys})
        size = self.random.choice([0, 10, 500, 5000, 20_000])
        changed = [record(key, data=self.random.randbytes(size)) for key in keys]
        commit(self.storage, record(0, *linked, data=self.random.randbytes(8)), *changed)

    def commit_much(self):
        """Change so many objects that the journal's row takes a page of its own, or several, or lists none."""
        keys = [key for key in self.new(self.random.choice([100, 120, 130, 300, 1000, 4090, 5000])) if key]
        commit(self.storage, record(0, *keys[: len(keys) // 2]), *(record(key, data=b"x") for key in keys))

    def refuse(self):
        (key,) = self.new(1)
        with pytest.raises(DanglingReferenceError):
            commit(self.storage, record(key, (1 << 64) - 1, data=b"never" * 5000))

    def interrupt(self):
        """Let a transaction fail when its row is in the journal."""
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(Change, "_commit", self.append_and_fail(Change._commit))
            with pytest.raises(Interrupted):
                self.random.choice([self.commit, self.commit_much])()

    @staticmethod
    def append_and_fail(original):
        def failing(change):
            append = change._transactions.journal.append

            def fail(*arguments):
                append(*arguments)
                raise Interrupted

            change._transactions.journal.append = fail
            try:
                original(change)
            finally:
                del change._transactions.journal.append

        return failing

    def unlink(self):
        if self.tid:
            commit(self.storage, record(0, *self.some()[:3]))

    def collect(self):
        for _ in range(self.random.randrange(1, 30)):
            self.storage._running.collector.collect(self.random.randrange(1, 200), EVER)

    def pack(self):
        self.storage.pack()

    def compact(self):
        self.pack()
        self.storage.compact(hold=1.0)

    def checkpoint(self):
        self.storage.checkpoint()
        if self.random.random() < 0.5:
            self.keep_base()

    def keep_base(self):
        self.bases.append(Base(self.storage, self.path, self.place / f"base{len(self.bases)}"))

    def idle(self):
        """Write transactions that have no row in the journal."""
        self.new(self.random.randrange(500))

    def reopen(self):
        self.storage.close()
        self.open()

    def crash(self):
        """Go on with the files as a kill leaves them, at times in the middle of a transaction that is in the log."""
        found = []

        def copy(flush):
            if not found:
                if flush:
                    self.storage._engine.environment.flush()
                found.append(copied(self.path, self.place / f"storage{self.crashes}"))

        if self.random.random() < 0.7:
            journal, flush = self.storage._engine.journal, self.random.random() < 0.8
            append = journal.append
            journal.append = lambda *arguments: (append(*arguments), copy(flush))
        self.random.choice([self.commit, self.commit_much, self.collect])()
        copy(False)
        failpoints.hook = None
        self.storage.close()
        failpoints.hook = self.reached
        self.path = found[0]
        self.crashes += 1
        self.open()

    def restore(self, tid, base):
        """Bring a base to a transaction; compare it with the model."""
        target = shutil.copytree(base.path, self.place / "restored")
        for log in log_numbers(self.logs):
            if log >= base.log:
                shutil.copyfile(self.logs / log_name(log), target / log_name(log))
        ends = [found.end for found in commits.scan(target, self.key) if found.tid == tid]
        if tid == base.tid:  # the tables have it already, and what followed it without a row in the journal
            ends = [base.end]
        (end,) = ends
        commits.cut(target, end)
        assert [found.tid for found in commits.scan(target, self.key)][-1:] in ([tid], [] if tid == base.tid else None)
        assert log_numbers(target)[-1] == end.log
        assert (target / log_name(end.log)).stat().st_size == end.offset
        keys = {"key": self.key} if self.key else {}
        roll_forward(target, CACHE, **keys)
        with BerkeleyDBStorage(target, **keys, **OPTIONS) as storage:
            found = storage._engine.journal
            assert (found.tid, found.state.time, digest(storage)) == (tid, *self.model[tid])
            assert not storage.check().faults
            commit(storage, record(0))
        shutil.rmtree(target)


def run_course(place, monkeypatch, seed, steps, restores, **options):
    course = Course(place, seed, monkeypatch, **options)
    course.storage.checkpoint()
    course.keep_base()
    for _ in range(steps):
        course.step()
    remembered = {tid: row.state.time for tid, row in journal(course.storage).items()}
    course.finish()
    monkeypatch.undo()
    found = list(commits.scan(shutil.copytree(course.logs, place / "scanned"), course.key))
    assert [one.tid for one in found] == sorted(course.model)
    assert {one.tid: one.time for one in found} == {tid: time for tid, (time, _) in course.model.items()} == remembered
    assert all(one.time < two.time and one.end < two.end for one, two in pairwise(found))
    for _ in range(restores):
        base = course.random.choice(course.bases)
        if alive := [tid for tid in course.model if tid >= base.tid]:
            course.restore(course.random.choice(alive), base)
    return course, found


@pytest.mark.parametrize("mode", MODES)
def test_whatever_happens(place, monkeypatch, mode):
    run_course(place, monkeypatch, mode, STEPS, RESTORES, **MODES[mode])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("mode", MODES)
def test_whatever_happens_at_length(place, monkeypatch, mode, seed):
    run_course(place, monkeypatch, seed, SLOW_STEPS, SLOW_RESTORES, **MODES[mode])


def scanned(path, key=None, **options):
    """Return what is told of a copy of the logs of a storage, which may be in use."""
    with scratch_directory() as scratch:
        return list(commits.scan(copied(path, scratch / "copy"), key, **options))


@pytest.fixture
def storage(place):
    """One whose log has several files."""
    (place / "storage").mkdir()
    with quiet(place / "storage") as storage:
        hand_out(storage, 300)
        commit(storage, *(record(key, data=b"x" * 300) for key in range(300)))
        for step in range(300):
            commit(storage, record(step, data=b"%d" % step * 500))
        storage._engine.environment.flush()
        yield storage


@pytest.fixture
def copy(storage, place):
    """Its files, without the zeros at the end of the log."""
    path = copied(place / "storage", place / "copy")
    commits.cut(path, Position(*storage._engine.environment.end_of_log()))
    assert len(log_numbers(path)) > 3
    return path


def test_transactions_of_transactions(storage, place):
    """The library has them, and a row counts as soon as the outermost is committed, and only then."""
    environment, journal = storage._engine.environment, storage._engine.journal
    begin, state, tid = environment._environment.txn_begin, journal.state, journal.tid

    def append(inner, outer):
        transaction = begin()
        child = begin(transaction)
        journal.append(state._replace(time=state.time + 1), [], child)
        getattr(child, inner)()
        getattr(transaction, outer)()
        environment.flush()

    with storage._engine.lock:
        for ends in (("abort", "commit"), ("commit", "abort"), ("abort", "abort")):
            append(*ends)
            assert scanned(place / "storage")[-1].tid == tid
        append("commit", "commit")
        found = scanned(place / "storage")[-1]
        assert found == (tid + 1, state.time + 1, environment.end_of_log())
        journal.reload()


def test_a_row_that_was_not_committed_before_a_crash(storage, place):
    """After it the library gives the same numbers to other transactions; those have no rows."""
    engine = storage._engine
    rows_before = scanned(place / "storage")
    with engine.lock:
        transaction = engine.environment.begin()
        engine.journal.append(engine.journal.state, [], transaction)
        engine.environment.flush()
        path = copied(place / "storage", place / "killed")
        transaction.abort()
    with quiet(path) as killed:
        engine = killed._engine
        with engine.lock:
            for _ in range(2000):
                transaction = engine.environment.begin()
                engine._meta.put(b"x", b"y", transaction)
                transaction.commit()
            engine.environment.flush()
        assert scanned(path) == rows_before
        with engine.lock:
            engine._meta.delete(b"x")


def test_bytes_are_reported(copy, monkeypatch):
    monkeypatch.setattr(commits, "REPORT_EVERY", 1 << 14)
    reported = []
    found = list(commits.scan(copy, progress=reported.append))
    size = sum((copy / log_name(number)).stat().st_size for number in log_numbers(copy))
    assert size - (1 << 15) < sum(reported) <= size
    assert len(reported) > size >> 16
    assert max(reported) < 1 << 16
    assert len(found) == 302


def test_records_from_somewhere_on(copy):
    everything = list(log_records(copy))
    for index in (0, 1, len(everything) // 2, len(everything) - 1):
        assert list(log_records(copy, start=everything[index][0])) == everything[index:]


def test_no_log(tmp_path):
    assert list(commits.scan(tmp_path)) == list(log_records(tmp_path)) == list(tmp_path.iterdir()) == []


def log_at(path, index):
    return path / log_name(log_numbers(path)[index])


def change(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def length(path):
    """Return where the length of a record in the middle of a log file is."""
    middle = [where for where, _ in log_records(path.parent) if log_name(where[0]) == path.name]
    return middle[len(middle) // 2][1] + 4


DAMAGES = {
    "gone": (lambda log: log.unlink(), "is missing"),
    "cut off": (lambda log: os.truncate(log, length(log) + 30), "short read|is damaged"),
    "empty": (lambda log: os.truncate(log, 0), "is missing"),
    "without records": (lambda log: os.truncate(log, 28), "is missing"),
    "a byte": (lambda log: change(log, length(log) + 16, b"\xff\xff"), "is damaged"),
    "no length": (lambda log: change(log, length(log), bytes(4)), "is damaged at offset"),
    "an impossible length": (lambda log: change(log, 4, b"\xff\xff\xff\x7f"), "is damaged at its beginning"),
    "no log": (lambda log: change(log, LOG_HEADER.size, bytes(4)), "is damaged at its beginning"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_found(copy, what):
    damage, message = DAMAGES[what]
    damage(log_at(copy, 1))
    with pytest.raises(BerkeleyDBStorageError, match=message) as caught:
        list(commits.scan(copy))
    assert isinstance(caught.value, DamagedError) or "short read" in message


def test_another_version(copy):
    change(log_at(copy, 1), LOG_HEADER.size + 4, struct.pack("=I", 18))
    with pytest.raises(LibraryMismatch, match="has version 18, not 19"):
        list(commits.scan(copy))


@pytest.mark.parametrize("data", [b"", bytes(10_000)])
def test_a_file_that_was_just_begun(copy, data):
    found = list(commits.scan(copy))
    (copy / log_name(log_numbers(copy)[-1] + 1)).write_bytes(data)
    assert list(commits.scan(copy)) == found


def test_the_last_record_is_not_whole(copy):
    found = list(commits.scan(copy))
    log = log_at(copy, -1)
    os.truncate(log, log.stat().st_size - 1)
    assert list(commits.scan(copy)) == found[:-1]


def test_a_commit_ends_where_the_next_record_begins(storage, place):
    """Or at the end of its file, where that is in the next one."""
    at_the_end = ()
    for _ in range(10):
        for key in range(60):
            commit(storage, record(key, data=b"x" * 3500))
        storage._engine.environment.flush()
        copy = copied(place / "storage", place / "copy")
        commits.cut(copy, Position(*storage._engine.environment.end_of_log()))
        starts = [where for where, _ in log_records(copy)]
        ends = [found.end for found in commits.scan(copy)]
        at_the_end = [end for end in ends[:-1] if end not in starts]
        for end in at_the_end:
            assert min(where for where in starts if where > end) == (end.log + 1, 28)
            assert not log_tail(copy / log_name(end.log), end.offset).size
        assert ends[-1] == storage._engine.environment.end_of_log()
        if at_the_end:
            break
        shutil.rmtree(copy)
    assert at_the_end
    commits.cut(copy, at_the_end[0])
    assert log_numbers(copy)[-1] == at_the_end[0].log
    assert [found.end for found in commits.scan(copy)] == ends[: ends.index(at_the_end[0]) + 1]


@pytest.mark.parametrize("close", [False, True])
def test_a_log_without_its_beginning(storage, place, close):
    """The number of the journal is told by the next checkpoint, or when it is closed."""
    path = place / "storage"
    before, first = scanned(path), log_numbers(path)[-1]
    expected = [found for found in before if found.end.log == first]
    assert len(expected) > 10
    if close:
        storage.close()
    else:
        storage.checkpoint()
    assert log_numbers(path) == [first]
    assert scanned(path) == expected


@pytest.mark.parametrize("offset", [1, 1 << 30])
def test_there_is_nothing_to_cut(copy, offset):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    last = log_numbers(copy)[-1]
    where = Position(last, (copy / log_name(last)).stat().st_size + offset)
    for position in (where, Position(last + 1, 28)):
        with pytest.raises(DamagedError, match="does not reach to offset"):
            commits.cut(copy, position)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_each_end_of_a_small_log(copy):
    """Cut from the end to the beginning: what is left is what came before."""
    for found in reversed(list(commits.scan(copy))):
        commits.cut(copy, found.end)
        *_, last = commits.scan(copy)
        assert last == found
