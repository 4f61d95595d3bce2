"""Where each transaction ends in the log, compared with the journal and with what a storage held after each of them."""

import os
import random
import shutil
from hashlib import sha256
from itertools import pairwise

import pytest
from graphs import EVER, commit, copied, journal, number, quiet, record, rows, scratch_directory

from berkeleydb_storage import (
    BerkeleyDBStorage,
    CheckpointNever,
    DanglingReferenceError,
    GarbageManual,
    commits,
    environment,
    failpoints,
)
from berkeleydb_storage.change import Change
from berkeleydb_storage.directory import DESCRIPTION
from berkeleydb_storage.environment import OBJECTS, TABLES
from berkeleydb_storage.files import TABLE_SUFFIX, Position, log_name, log_numbers
from berkeleydb_storage.journal import Journal
from berkeleydb_storage.recovery import roll_forward

STEPS, SLOW_STEPS = 60, 300
RESTORES, SLOW_RESTORES = 8, 60
CACHE = 1 << 20
KEY = "a password, long enough"
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
        point = self.random.choice([None, "commit.written", "collect.written"])
        found = []

        def copy(name):
            if name == "checkpoint.logs-noted":
                self.keep(os.link)
            if name == point and not found:
                if self.random.random() < 0.7:
                    self.storage._engine.environment.flush()
                found.append(copied(self.path, self.place / f"storage{self.crashes}"))

        failpoints.hook = copy
        self.random.choice([self.commit, self.commit_much, self.collect])()
        if not found:
            found.append(copied(self.path, self.place / f"storage{self.crashes}"))
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
        assert log_numbers(target)[-1] == end.log and (target / log_name(end.log)).stat().st_size == end.offset
        keys = {"key": self.key} if self.key else {}
        roll_forward(target, CACHE, **keys)
        with BerkeleyDBStorage(target, **keys, **OPTIONS) as storage:
            found = storage._engine.journal
            assert (found.tid, found.state.time, digest(storage)) == (tid, *self.model[tid])
            assert not storage.check().faults
            commit(storage, record(0))
        shutil.rmtree(target)


OPTIONS = {"checkpoint": CheckpointNever(), "garbage_collection": GarbageManual()}


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

