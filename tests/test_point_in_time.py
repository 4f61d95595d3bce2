"""Restores to random commits and moments, compared with what the storage held then, of which an account is kept."""

import random
import shutil
import time
from bisect import bisect_right
from datetime import datetime, timezone

import pytest
from graphs import commit, copied, journal, number, oid, record, scratch_directory

from berkeleydb_storage import (
    Archive,
    BerkeleyDBStorage,
    CheckpointNever,
    GarbageManual,
    environment,
    list_backups,
    restore,
)
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.stores import open_store
from berkeleydb_storage.format import references

STEPS, SLOW_STEPS = 70, 400
"""What happens to a storage while it is backed up."""
RESTORES, SLOW_RESTORES = 4, 50
SLOTS = 20
SIZES = (0, 10, 200, 1500, 6000)
KEY = "a password, long enough"
MODES = {
    "durable": {"durable": True},
    "hash": {"type": "hash", "durable": True},
    "buffered": {"durable": False, "async_log_write": False},
    "encrypted": {"durable": True, "key": KEY},
    "archived": {"durable": True},
}


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    """So that there are many log files."""
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", 1 << 18)
    monkeypatch.setattr(environment, "LOG_BUFFER", 1 << 15)


@pytest.fixture
def place():
    with scratch_directory() as path:
        (path / "backups").mkdir()
        (path / "storage").mkdir()
        yield path


class Life:
    """What a storage held after each transaction, for as long as it had one identity."""

    def __init__(self, identity, tid, reachable):
        self.identity = identity
        self.tids, self.states = [tid], [reachable]
        self.times = {}

    def note(self, tid, reachable):
        self.tids.append(tid)
        self.states.append(reachable)

    def state(self, tid):
        """Return what the root reached after a transaction: what it reached after the last commit up to there."""
        return self.states[bisect_right(self.tids, tid) - 1]

    def at(self, moment):
        """Return the last transaction up to a time in microseconds."""
        return max(tid for tid, when in self.times.items() if when <= moment)

    def lose(self, tid):
        """Note that a crash lost all behind this transaction."""
        keep = bisect_right(self.tids, tid)
        del self.tids[keep:], self.states[keep:]


class Course:
    """A storage that is used, backed up, closed and killed by one thread, and the account of it."""

    def __init__(self, place, seed, *, archived=False, **options):
        self.random = random.Random(seed)
        self.path, self.target = place / "storage", place / "backups"
        self.options = {"cachesize": 1 << 20, "checkpoint": CheckpointNever(), "garbage_collection": GarbageManual()}
        self.options |= options
        if archived:
            self.options["archive"] = Archive(self.target, interval=0.01)
        self.archived = archived
        self.slots, self.records = {}, {}
        self.lives, self.made = [], []
        self.open()

    @property
    def tid(self):
        return self.storage.statistics().transactions

    @property
    def life(self):
        return self.lives[-1]

    def open(self):
        self.storage = BerkeleyDBStorage(self.path, **self.options)
        identity = self.storage._engine.identity.hex()
        if not self.lives or self.life.identity != identity:
            self.lives.append(Life(identity, self.tid, self.reachable()))

    def reachable(self):
        """Return {oid: record} of all that the root reaches."""
        found, todo = {}, [oid(0)] if oid(0) in self.records else []
        while todo:
            key = todo.pop()
            if key not in found:
                found[key] = self.records[key]
                todo += references(key, found[key])
        return found

    def store(self, *records):
        """Commit records, with what the root is now."""
        root = record(0, *sorted(self.slots.values()), data=self.random.randbytes(8))
        before, tid = time.time_ns() // 1000, self.tid
        commit(self.storage, root, *records)
        assert self.tid == tid + 1
        self.records |= {one[:8]: one for one in (root, *records)}
        self.life.note(self.tid, self.reachable())
        when = self.storage._engine.journal.state.time
        assert before <= when <= time.time_ns() // 1000
        if len(self.records) > 3000:
            self.records = self.reachable()

    def new(self, count):
        found = [number(self.storage.new_oid()) for _ in range(count)]
        return [key for key in found if key]

    def step(self):
        steps = [self.commit] * 12 + [self.commit_much, self.drop, self.drop, self.pack, self.checkpoint, self.compact]
        steps += [self.reopen] + ([] if self.archived else [self.crash, *[self.back_up] * 3, self.back_up_all])
        self.random.choice(steps)()

    def commit(self):
        keys = self.new(self.random.randrange(4))
        for key in keys:
            self.slots[self.random.randrange(SLOTS)] = key
        changed = {*keys, *self.random.sample(sorted(set(self.slots.values())), min(len(set(self.slots.values())), 2))}
        self.store(*(record(key, data=self.random.randbytes(self.random.choice(SIZES))) for key in sorted(changed)))

    def commit_much(self):
        """Store more objects than a journal row of one page lists, or than are listed at all."""
        hub, *keys = self.new(self.random.choice([150, 500, 4200]))
        self.slots[0] = hub
        self.store(record(hub, *keys), *(record(key, data=b"%d" % key) for key in keys))

    def drop(self):
        for slot in self.random.sample(range(SLOTS), 4):
            self.slots.pop(slot, None)
        self.store()

    def pack(self):
        self.storage.pack()

    def checkpoint(self):
        self.storage.checkpoint()

    def compact(self):
        self.storage.compact(hold=1.0)

    def reopen(self):
        self.storage.close()
        self.open()

    def crash(self):
        """Go on with the files as they are now. What a pack did may be lost; without `durable`, what was committed."""
        killed = copied(self.path, self.path.with_name("killed"))
        self.note_times()
        self.storage.close()
        shutil.rmtree(self.path)
        killed.rename(self.path)
        with BerkeleyDBStorage(self.path, **self.options) as storage:
            found = storage.statistics().transactions
        assert found >= self.life.tids[-1] or not self.options["durable"]
        self.life.lose(found)
        self.life.times = {tid: when for tid, when in self.life.times.items() if tid <= found}
        self.records = dict(self.life.states[-1])
        root = self.records.get(oid(0))
        refs = references(oid(0), root) if root else ()
        self.slots = {slot: number(key) for slot, key in enumerate(refs)}
        self.open()

    def back_up(self, *, full=False):
        tid = self.tid
        backup = self.storage.backup(self.target, full=full)
        assert backup.tid == tid
        self.made.append(backup)

    def back_up_all(self):
        self.back_up(full=True)

    def note_times(self):
        self.life.times |= {tid: row.state.time for tid, row in journal(self.storage).items()}

    def finish(self):
        self.note_times()
        if not self.archived:
            self.back_up()
        last = self.tid
        self.storage.close()
        assert self.kept(self.life)[1] == last, "all is there in the end"

    def kept(self, life):
        """Return the first and the last transaction of a life that can be restored, and the first time; else None."""
        bases = [base for base in Repository(open_store(self.target)).bases(life.identity) if base.manifest]
        if not bases:
            return None
        first, begin = min((base.noted.tid, base.noted.time) for base in bases)
        return first, max(base.reach()[1] for base in bases), begin

    def wanted(self):
        """Return what to ask for, and of which life, and which transaction is to come of it."""
        lives = [(life, kept) for life in self.lives if (kept := self.kept(life))]
        life, (first, last, begin) = self.random.choice(lives)
        assert last in life.times, "a backup knows more than the storage"
        how = self.random.randrange(4)
        if how == 0:
            tid = self.random.randint(first, last)
            return life, tid, {"to_commit": tid}
        if how == 1:
            moment = max(begin, life.times[self.random.randint(first, last)])
        else:
            moment = self.random.randint(begin, max(begin, life.times[last] + 1000))
        tid = min(life.at(moment), last)
        if how == 2:
            return life, tid, {"to": datetime.fromtimestamp(moment / 1e6, timezone.utc)}
        return life, tid, {"to": moment / 1e6}

    def restore(self):
        """Restore to some moment, and compare."""
        life, tid, wanted = self.wanted()
        target, key = self.path.with_name("restored"), self.options.get("key")
        restored = restore(self.target, target, of=life.identity, key=key, **wanted)
        assert (restored.tid, restored.time) == (tid, life.times[tid] / 1e6), wanted
        with BerkeleyDBStorage(target, read_only=True, key=key) as storage:
            verify(storage, tid, life.state(tid))
        if self.random.random() < 0.2:
            with BerkeleyDBStorage(target, key=key) as storage:
                commit(storage, record(0))
                assert not storage.check().faults
        shutil.rmtree(target)
        return wanted


def verify(storage, tid, state):
    assert storage.statistics().transactions == tid
    for key, expected in state.items():
        assert storage.load(key) == expected
    report = storage.check()
    assert not report.faults, report.faults


def run_course(place, mode, seed, steps, restores):
    course = Course(place, seed, archived=mode == "archived", **MODES[mode])
    course.commit()
    if not course.archived:
        course.back_up()
    for _ in range(steps):
        course.step()
    course.finish()
    for _ in range(restores):
        course.restore()
    return course


@pytest.mark.parametrize("mode", MODES)
def test_as_it_was(place, mode):
    run_course(place, mode, mode, STEPS, RESTORES)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_often(place, mode, capsys):
    started, seconds = time.perf_counter(), []
    course = run_course(place, mode, f"often {mode}", SLOW_STEPS, 0)
    built = time.perf_counter() - started
    kinds = []
    for _ in range(SLOW_RESTORES):
        started = time.perf_counter()
        kinds += course.restore()
        seconds.append(time.perf_counter() - started)
    to_commits = kinds.count("to_commit")
    with capsys.disabled():
        print(
            f"\n{mode}: {len(seconds)} restores, {to_commits} to commits, {len(seconds) - to_commits} to moments, of "
            f"{sum(len(life.times) for life in course.lives)} transactions in {len(course.lives)} lives with "
            f"{len(list_backups(course.target))} backups: 0 wrong; {sum(seconds) / len(seconds):.2f} s each with the "
            f"comparison, {built:.1f} s to build"
        )
