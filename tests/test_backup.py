"""Backups while commits go on, killed, refused and by a policy; each is compared with what was acknowledged."""

import errno
import json
import logging
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from backed import bases, contents, pieces, restored, verify
from concurrency import PATIENCE, run_threads
from conftest import let_others_in
from crash_child import policies
from crash_model import History, Writer, set_up
from crash_parent import KILLED, SETTINGS, Children
from graphs import commit, copied, hand_out, oid, record
from test_cli import run
from test_disk_full import Disk, mounted

from berkeleydb_storage import (
    BackupError,
    BerkeleyDBStorage,
    CheckpointInline,
    CheckpointNever,
    CheckpointThread,
    CommitRefused,
    DamagedError,
    Every,
    GarbageManual,
    GarbageThread,
    Keep,
    OptionError,
    ReadOnlyError,
    StorageClosed,
    environment,
    failpoints,
    list_backups,
    verify_backups,
)
from berkeleydb_storage.backup import making, source
from berkeleydb_storage.backup.catalog import MANIFEST
from berkeleydb_storage.backup.repository import Repository, digest_of
from berkeleydb_storage.backup.stores import open_store
from berkeleydb_storage.files import PAGE_SIZE, log_numbers

TIMES, SLOW_TIMES = 20, 100
"""Backups under load."""
WRITERS = 4
AT_ONCE = 10
"""Of those, while the same threads run."""
BETWEEN = 8
"""Commits from one backup to the next, at least."""
USER = 12345
"""One who may write to nothing here."""
POINTS = [name for name in failpoints.NAMES if name.startswith("backup.")]

MODES = {
    "durable": {"cachesize": 1 << 20},
    "hash": {"cachesize": 1 << 20, "type": "hash"},
    "buffered": {"cachesize": 1 << 20, "durable": False, "async_log_write": False},
}


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    """So that log files come and go during each backup."""
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", SETTINGS["environment.LOG_FILE_SIZE"])
    monkeypatch.setattr(environment, "LOG_BUFFER", SETTINGS["environment.LOG_BUFFER"])
    monkeypatch.setattr(making, "LOG_FILE_SIZE", SETTINGS["environment.LOG_FILE_SIZE"])


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "backups"
    path.mkdir()
    return path


@pytest.fixture
def filled(open_storage):
    """An open storage with a root, nine objects, and nothing that runs in the background."""
    storage = open_storage(checkpoint=CheckpointNever(), garbage_collection=GarbageManual())
    hand_out(storage, 10)
    commit(storage, record(0, *range(1, 10)), *(record(key, data=b"x" * 500) for key in range(1, 10)))
    return storage


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    works, reason = mounted(path)
    if not works:
        pytest.skip(f"no file system can be mounted here ({reason})")
    yield Disk(path)
    os.system(f"umount -l {path}")


class Often(CheckpointThread):
    """Checkpoints that take turns with the copying, and leave it some time."""

    interval = 0.02


def busy():
    return {"checkpoint": Often(log_bytes=300_000), "garbage_collection": GarbageThread(grace=0.0, interval=0.01)}


class Load:
    """Threads that commit pairs of objects, and all that they report."""

    def __init__(self, storage, *, paced):
        """Set the storage up; if they are `paced`, they commit only as often as `allow` says, else all the time."""
        self._storage = storage
        self._paced = paced
        self._permits = threading.Semaphore(0)
        self._ended = threading.Event()
        self._turned = threading.Condition()
        self.lines = []
        keys = set_up(storage, WRITERS, self.lines.append)
        self._writers = [Writer(storage.session(), index, key, self.lines.append) for index, key in enumerate(keys)]

    def work(self, writer):
        while not self._ended.is_set():
            if self._paced:
                self._permits.acquire()
            writer.next()
            with self._turned:
                self._turned.notify_all()

    def allow(self, *_):
        """Let some more commits happen, soon."""
        self._permits.release(BETWEEN)

    def wait(self):
        """Let some commits happen, now."""
        until = self.steps() + BETWEEN
        self.allow()
        with self._turned:
            assert self._turned.wait_for(lambda: self.steps() >= until, PATIENCE)

    def steps(self):
        return sum(writer.step for writer in self._writers)

    def during(self, function):
        """Do something while all of them commit."""
        self._ended.clear()

        def first():
            try:
                function()
            finally:
                self._ended.set()
                self._permits.release(WRITERS)

        run_threads(first, *(lambda writer=writer: self.work(writer) for writer in self._writers))

    def back_up(self, target):
        """Make a backup; return it, and where the report was before and after."""
        self.wait()
        acknowledged = len(self.lines)
        backup = self._storage.backup(target, self.allow)
        return backup, acknowledged, len(self.lines)

    def verify(self, backup, acknowledged, tried):
        """Compare a backup with what was acknowledged by one line of the report, and tried by another."""
        history = History()
        for number, line in enumerate(self.lines[:tried]):
            if number < acknowledged or not line.startswith("ack"):
                history.report(line)
        verify(restored(backup.where, to_commit=backup.tid), history)


def backups_under_load(storage, target, times, *, paced):
    load = Load(storage, paced=paced)
    made = []

    def work():
        made.extend(load.back_up(target) for _ in range(min(times, AT_ONCE)))

    for _ in range(max(1, times // AT_ONCE)):
        load.during(work)
    assert len(made) == times
    for numbers in made:
        load.verify(*numbers)
    backups = [backup for backup, _, _ in made]
    assert list_backups(target) == backups
    tids = [backup.tid for backup in backups]
    assert tids == sorted(set(tids))


@pytest.mark.parametrize("mode", MODES)
def test_under_load(open_storage, target, mode):
    storage = open_storage(**busy(), **MODES[mode])
    times = TIMES if mode == "durable" else TIMES // 4
    backups_under_load(storage, target, times, paced=True)
    storage.checkpoint()
    assert storage.statistics().checkpoints > 1


def test_under_load_with_inline_policies(open_storage, target):
    backups_under_load(open_storage(**policies("inline"), **MODES["durable"]), target, TIMES // 4, paced=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_often_under_load(open_storage, target, mode):
    backups_under_load(open_storage(**busy(), **MODES[mode]), target, SLOW_TIMES, paced=False)


def test_while_it_is_packed_and_compacted(open_storage, target):
    storage = open_storage(**busy(), **MODES["durable"])
    load = Load(storage, paced=True)
    made, ended = [], threading.Event()

    def shrink():
        while not ended.is_set():
            storage.pack()
            storage.compact(hold=1e-4)

    def copy():
        try:
            made.extend(load.back_up(target) for _ in range(AT_ONCE // 2))
        finally:
            ended.set()

    load.during(lambda: run_threads(copy, shrink))
    for numbers in made:
        load.verify(*numbers)


def test_what_is_told_of_a_backup(filled, target, directory):
    before = time.time()
    made = filled.backup(target)
    assert made.objects == 10
    assert made.tid == filled.statistics().transactions
    assert before <= made.time <= time.time()
    assert 0 < made.seconds <= time.time() - before + 0.001
    assert (made.where, made.kind, made.storage) == (str(target), "full", str(directory))
    assert made.identity == filled._engine.identity.hex()
    assert made.name.endswith(f"Z-{made.tid:012d}")
    (folder,) = (target / made.identity).iterdir()
    assert made.bytes == sum(path.stat().st_size for path in folder.iterdir()) - (folder / MANIFEST).stat().st_size
    assert list_backups(str(target)) == [made]
    verify(restored(target))
    assert sorted(os.listdir(target)) == [".making", made.identity]


def test_the_second_one_has_what_is_new(filled, target):
    first = filled.backup(target)
    commit(filled, record(1, data=b"1" * 1000))
    second = filled.backup(target)
    assert (second.kind, second.tid) == ("incremental", first.tid + 1)
    assert 1000 < second.bytes < 20_000 < first.bytes
    third = filled.backup(target)
    assert (third.kind, third.tid, third.bytes) == ("incremental", second.tid, 0), "nothing was new"
    assert list_backups(target) == [first, second, third]
    assert len(pieces(target)) == 1
    for backup in (first, second):
        verify(path := restored(target, to_commit=backup.tid))
        assert contents(path)[oid(1)] == record(1, data=b"x" * 500 if backup is first else b"1" * 1000)


def test_all_again_where_that_is_asked_for(filled, target):
    """The log up to there goes to the chain before: each commit in between can be restored."""
    tids = [filled.backup(target).tid]
    for number in range(3):
        commit(filled, record(1, data=b"%d" % number))
        tids.append(filled.statistics().transactions)
    made = filled.backup(target, full=True)
    assert (made.kind, made.tid) == ("full", tids[-1])
    for number, tid in enumerate(tids[1:]):
        assert contents(restored(target, to_commit=tid))[oid(1)] == record(1, data=b"%d" % number)
    commit(filled, record(1, data=b"more"))
    assert filled.backup(target).kind == "incremental"


@pytest.mark.parametrize("outgrown", ["size", "age"])
def test_all_again_where_the_chain_is_outgrown(filled, target, monkeypatch, outgrown):
    if outgrown == "size":
        monkeypatch.setattr(making, "limit", lambda base: 100_000)
    filled.backup(target)
    commit(filled, *(record(key, data=os.urandom(20_000)) for key in range(1, 10)))
    if outgrown == "age":
        monkeypatch.setattr(making, "FRESH", 1e-6)
    assert filled.backup(target).kind == "full"
    monkeypatch.undo()
    assert filled.backup(target).kind == "incremental"


def test_all_again_where_the_log_is_gone(filled, target, directory):
    """Because nothing is held any more, or what was is gone."""
    filled.backup(target)
    holds = filled._running.holds
    holds.release(f"backup to {target}")
    commit(filled, record(1, data=b"1"))
    assert filled.backup(target).kind == "full"
    commit(filled, record(1, data=b"2"))
    held = holds.held
    holder = f"backup to {target}"
    filled._running.source.held = lambda name: held(name)._replace(offset=0) if name == holder else held(name)
    filled._running.holds.release(holder)
    filled.checkpoint()
    filled._running.source.held = held
    assert filled.backup(target).kind == "full"
    verify(restored(target))


def rolled(storage):
    """Let the log go on in other files, and recovery have no need for those before."""
    for _ in range(2):
        commit(storage, *(record(key, data=os.urandom(40_000)) for key in range(1, 10)))
        storage.checkpoint()


@pytest.mark.parametrize("moment", ["looked", "copied", "added"])
def test_log_that_is_removed_meanwhile(filled, target, directory, moment, caplog):
    """Between two steps of a backup: it is made all the same, and so is the next one."""
    backups = filled._running.source

    def remove(*_):
        filled._running.holds.release(f"backup to {target}")
        rolled(filled)

    if moment == "looked":
        look, looked = backups.look, []

        def look_and_remove():
            found = look()
            if not looked:
                looked.append(rolled(filled))
            return found

        backups.look = look_and_remove
        made = filled.backup(target)
    else:
        if moment == "added":
            filled.backup(target)
            commit(filled, record(1, data=b"1"))
        point = {"copied": "backup.noted", "added": "backup.added"}[moment]
        failpoints.hook = lambda name: remove() if name == point else None
        try:
            made = filled.backup(target)
        finally:
            failpoints.hook = None
        assert "so the next backup copies everything" in caplog.text
    verify(restored(target, to_commit=made.tid))
    commit(filled, record(1, data=b"2"))
    assert filled.backup(target).kind == ("incremental" if moment == "looked" else "full")
    assert contents(restored(target)) == dict(filled.gen_oid_record())


def test_log_files_stay_until_they_are_backed_up(filled, target, directory):
    def work():
        for _ in range(3):
            commit(filled, *(record(key, data=os.urandom(30_000)) for key in range(1, 10)))
            filled.checkpoint()

    filled.backup(target)
    first = log_numbers(directory)[0]
    work()
    assert log_numbers(directory)[0] == first < log_numbers(directory)[-1]
    assert filled.backup(target).kind == "incremental"
    filled.checkpoint()
    assert log_numbers(directory)[0] > first
    assert len({piece.start.log for piece in pieces(target)}) > 2
    verify(restored(target))
    assert contents(restored(target)) == dict(filled.gen_oid_record())


def test_a_copy_of_the_storage_is_another_one(filled, target, directory, tmp_path, open_storage):
    """It has the same identity, and holds the log from the same place on: neither continues what the other made."""
    filled.backup(target)
    commit(filled, record(1, data=b"common"))
    filled.close()
    one, two = open_storage(), open_storage(copied(directory, tmp_path / "copy"))
    assert one._engine.identity == two._engine.identity
    kinds = []
    for number in range(3):
        for storage, letter in ((one, b"a"), (two, b"b")):
            for times in range(number + 1):
                commit(storage, record(1, data=letter * (700 + times)))
            kinds.append(storage.backup(target, full=number == 1).kind)
    assert kinds == ["incremental", *["full"] * 5]
    assert verify_backups(target).sound
    for storage in (one, two):
        assert contents(restored(target, of=storage.get_filename())) == dict(storage.gen_oid_record())


def test_a_page_that_is_written_between_the_two_reads(filled, target, monkeypatch):
    """The first read of each part is what a torn one might be: it is found out, page by page."""
    pread, reads = os.pread, {}

    def torn(descriptor, size, offset):
        data = pread(descriptor, size, offset)
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".db":
            key = os.fstat(descriptor).st_ino, offset
            reads[key] = reads.get(key, 0) + 1
            if reads[key] == 1 and size == source.PART and len(data) > PAGE_SIZE:
                return data[: PAGE_SIZE // 2] + b"torn" + data[PAGE_SIZE // 2 + 4 :]
        return data

    monkeypatch.setattr(os, "pread", torn)
    filled.backup(target)
    monkeypatch.undo()
    assert max(reads.values()) == 3
    verify(restored(target))


def test_a_page_that_is_torn_after_all_is_found(filled, target, directory, monkeypatch):
    part, journal = source.LocalSource._part, directory / "journal.db"

    def torn(self, file, offset):
        data = part(self, file, offset)
        if os.path.samestat(os.fstat(file), journal.stat()) and len(data) > PAGE_SIZE:
            return data[:-100] + b"torn" + data[-96:]
        return data

    filled.backup(target)
    monkeypatch.setattr(source.LocalSource, "_part", torn)
    with pytest.raises(DamagedError, match=r"journal\.db is damaged, there is no backup"):
        filled.backup(target, full=True)
    monkeypatch.undo()
    assert len(list_backups(target)) == 1
    commit(filled, record(0, 1, 2))
    filled.backup(target, full=True)
    verify(restored(target))


def test_logs_that_are_needed_stay_and_then_go(filled, target, directory):
    kept = []

    def progress(activity, size):
        if activity == "copying":
            commit(filled, *(record(key, data=os.urandom(20_000)) for key in range(1, 10)))
            filled.checkpoint()
            kept.append(log_numbers(directory))

    filled.backup(target, progress)
    assert {numbers[0] for numbers in kept} == {kept[0][0]}
    assert kept[-1][-1] > kept[0][0]
    verify(restored(target))
    filled.checkpoint()
    assert log_numbers(directory)[0] > kept[0][0]


@pytest.mark.parametrize("point", ["backup.begun", "backup.tables", "backup.copied", "store.written"])
def test_after_a_failed_backup_checkpoints_go_on(filled, target, directory, point):
    class Failure(Exception):
        pass

    def fail(name):
        if name == point:
            raise Failure

    failpoints.hook = fail
    try:
        with pytest.raises(Failure):
            filled.backup(target)
    finally:
        failpoints.hook = None
    assert list_backups(target) == []
    assert list(target.glob(".making/*")) == []
    first = log_numbers(directory)[0]
    filled.backup(target)
    for _ in range(3):
        commit(filled, *(record(key, data=os.urandom(50_000)) for key in range(1, 10)))
        filled.backup(target)
        filled.checkpoint()
    assert log_numbers(directory)[0] > first
    verify(restored(target))


def test_what_the_progress_raises_ends_it(filled, target):
    def stop(activity, size):
        assert activity == "copying"
        if size > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled.backup(target, stop)
    assert list_backups(target) == []
    assert filled.backup(target).kind == "full"


def test_what_the_progress_raises_ends_an_incremental_one(filled, target):
    """What was added is gone on with."""

    def stop(activity, size):
        assert activity == "copying the log"
        raise KeyboardInterrupt

    filled.backup(target)
    commit(filled, record(1, data=b"1"))
    with pytest.raises(KeyboardInterrupt):
        filled.backup(target, stop)
    assert len(list_backups(target)) == 1
    commit(filled, record(1, data=b"2"))
    assert filled.backup(target).kind == "incremental"
    assert contents(restored(target)) == dict(filled.gen_oid_record())


def test_two_at_once(filled, open_storage, tmp_path, target):
    """Of one storage they are refused; two storages share a place."""
    (tmp_path / "other").mkdir()
    other = open_storage(tmp_path / "other")
    hand_out(other, 2)
    commit(other, record(0, 1), record(1))
    complaints, made = [], []

    def again(activity, size):
        with pytest.raises(BackupError) as caught:
            filled.backup(target)
        complaints.append(str(caught.value))
        if not made:
            made.append(other.backup(target))

    made.append(filled.backup(target, again))
    assert all(("is being made" in text) and ("wait until it is done" in text) for text in complaints)
    assert sorted(list_backups(target), key=lambda backup: backup.objects) == made
    with pytest.raises(BackupError, match="say which, by --of"):
        restored(target)
    assert len(contents(restored(target, of=str(tmp_path / "other")))) == 2
    assert len(contents(restored(target, of=filled._engine.identity.hex()))) == 10


@pytest.mark.parametrize("where", ["", "inside", "inside/deep"])
def test_not_into_the_storage(filled, directory, where):
    (directory / "inside/deep").mkdir(parents=True)
    with pytest.raises(BackupError, match="is in a storage"):
        filled.backup(directory / where)
    shutil.rmtree(directory / "inside")


def test_not_into_another_storage(filled, tmp_path, open_storage):
    (tmp_path / "other").mkdir()
    open_storage(tmp_path / "other").close()
    with pytest.raises(BackupError, match="is in a storage"):
        filled.backup(tmp_path / "other")


def test_targets_that_are_none(filled, tmp_path):
    (tmp_path / "file").touch()
    for target in (tmp_path / "missing", tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(BackupError, match="is no directory, or is gone"):
            filled.backup(target)
        with pytest.raises(BackupError, match="is no directory, or is gone"):
            list_backups(target)
    commit(filled, record(0, 1))


@pytest.mark.skipif(os.geteuid() != 0, reason="it becomes another user")
def test_a_target_that_is_not_writable(directory, target, tmp_path):
    with BerkeleyDBStorage(directory) as storage:
        commit(storage, record(int.from_bytes(storage.new_oid(), "big")))
    (tmp_path / "report").mkdir()
    (tmp_path / "report").chmod(0o777)
    let_others_in(tmp_path)
    for path in (directory, *directory.iterdir()):
        os.chown(path, USER, USER)
    children = Children(tmp_path / "report")
    assert children.run("back_up_and_tell", directory, user=USER, target=str(target)) == 0
    (line,) = children.reported()
    children.close()
    assert "is not writable, or not readable, for this process" in line


def test_a_target_that_vanishes(filled, target):
    def vanish(activity, size):
        shutil.rmtree(target, ignore_errors=True)

    with pytest.raises(BackupError):
        filled.backup(target, vanish)
    assert not target.exists()
    commit(filled, record(0, 1))
    target.mkdir()
    filled.backup(target)
    verify(restored(target))


@pytest.mark.parametrize("leave", [0, 4096, 40_000, 100_000])
def test_a_full_target(filled, disk, leave):
    commit(filled, *(record(key, data=os.urandom(20_000)) for key in range(1, 10)))
    disk.fill(leave)
    with pytest.raises(BackupError, match="no room on the disk"):
        filled.backup(disk.path)
    assert list_backups(disk.path) == []
    assert disk.free >= leave - 4096
    commit(filled, record(0, 1))
    disk.clear()
    filled.backup(disk.path)
    verify(restored(disk.path))


def test_read_only_closed_and_busy(filled, open_storage, directory, target):
    def during():
        with pytest.raises(CommitRefused, match="busy"):
            filled.backup(target)
        yield from ()

    with filled._engine.transactions.exclusion.during("a migration"), pytest.raises(CommitRefused, match="a migration"):
        filled.backup(target)
    filled.close()
    with pytest.raises(StorageClosed):
        filled.backup(target)
    with pytest.raises(ReadOnlyError, match="open it for writing to back it up"):
        open_storage(read_only=True).backup(target)
    assert not list_backups(target)


def test_closed_meanwhile(filled, target):
    begun, closing = threading.Event(), threading.Event()

    def progress(activity, size):
        begun.set()
        assert closing.wait(PATIENCE)

    def copy():
        with pytest.raises(StorageClosed, match="there is no backup"):
            filled.backup(target, progress)

    def close():
        assert begun.wait(PATIENCE)
        stop = filled._running.backups.stop
        filled._running.backups.stop = lambda: (
            setattr(filled._running.backups, "_stopped", True),
            closing.set(),
            stop(),
        )
        filled.close()

    run_threads(copy, close)
    assert list_backups(target) == []
    assert list(target.glob(".making/*")) == []


def test_closed_by_its_own_progress(filled, target):
    with pytest.raises(StorageClosed):
        filled.backup(target, lambda activity, size: filled.close())
    assert list_backups(target) == []
    assert list(target.glob(".making/*")) == []


def test_restored_it_has_an_identity_of_its_own(filled, target, open_storage):
    identity, tid = filled._engine.identity, filled.statistics().transactions
    filled.backup(target)
    seen = {identity}
    for _ in range(2):
        path = restored(target)
        storage = open_storage(path)
        assert storage.statistics().transactions == tid
        assert storage.load(oid(3)) == filled.load(oid(3))
        seen.add(storage._engine.identity)
        storage.close()
        again = open_storage(path)
        seen.add(again._engine.identity)
    assert len(seen) == 3


def test_a_restored_storage_in_the_place_of_the_old_one(filled, target, directory, open_storage):
    """With its path, it is that which was backed up last; the old ones are there, by the identity."""
    identity = filled._engine.identity.hex()
    first = filled.backup(target)
    filled.close()
    shutil.rmtree(directory)
    restored(target, directory)
    storage = open_storage()
    commit(storage, record(1, data=b"after"))
    second = storage.backup(target)
    assert (second.kind, second.storage) == ("full", first.storage)
    assert contents(restored(target))[oid(1)] == record(1, data=b"after")
    assert contents(restored(target, of=str(directory)))[oid(1)] == record(1, data=b"after")
    assert contents(restored(target, of=identity))[oid(1)] == record(1, data=b"x" * 500)


@pytest.mark.slow  # tests/test_backup_under_load.py has kills for all days
@pytest.mark.parametrize(
    ("point", "mode"),
    [
        *((point, "durable") for point in [*POINTS, "store.written", "store.named"]),
        *((point, "buffered") for point in ("backup.copied", "backup.piece", "backup.removing")),
    ],
)
def test_killed(tmp_path, directory, target, point, mode):
    """What was told of can be restored, what is there is sound, and the next one goes on."""
    children, lines, told = Children(tmp_path), [], []
    for times in (1, 2) if point in ("backup.begun", "backup.piece") else (2,):
        arguments = {"options": MODES[mode], "target": str(target), "keep": 2}
        assert children.run("back_up", directory, fuse=(point, times), **arguments) == KILLED
        reported = children.reported()
        told = [line.partition(" ")[2] for line in reported if line.startswith("made")] or told
        lines += [line for line in reported if not line.startswith("made")]
        history = History(losing=mode == "buffered")
        for line in lines:
            history.report(line)
        with BerkeleyDBStorage(directory, **MODES[mode]) as storage:
            history.verify(storage)
            there = list_backups(target)
            assert not told or max(told) <= max(backup.name for backup in there)
            for backup in there[-2:]:
                verify(restored(target, to_commit=backup.tid, of=backup.identity))
            goes_on = mode == "durable" and point in ("backup.piece", "backup.added", "backup.removing")
            goes_on = goes_on and storage._running.holds.first() is not None  # else there was too much log
            made = storage.backup(target, keep=2)
            assert made.kind == "incremental" or not goes_on, "without a sync, it has another identity after a crash"
            assert list(target.glob(".making/*")) == []
            assert contents(restored(target, of=made.identity)) == dict(storage.gen_oid_record())
            assert not storage.check().faults
        assert verify_backups(target).sound
        told = [made.name]
    children.close()


def test_what_is_no_backup(filled, target):
    made = filled.backup(target)
    (folder,) = (target / made.identity).iterdir()
    (target / made.identity / "20261121T000000.000000Z-000000000001").mkdir()
    (target / made.identity / "20261121T000000.000000Z-000000000001" / "objects.db").touch()
    (target / "something else").mkdir()
    (target / "a file").touch()
    assert list_backups(target) == [made]
    for damage in ("", "{}", "[]", '{"format": 1}', '{"format": "x"}'):
        (folder / MANIFEST).write_text(damage)
        assert list_backups(target) == []
    assert filled.backup(target).kind == "full"


def test_a_clock_that_was_set_back(filled, target, monkeypatch):
    """By a day, while the storage was closed: the newest base is the newest all the same."""
    first = filled.backup(target)
    (folder,) = (target / first.identity).iterdir()
    later = "20991121T000000.000000Z" + first.name[-13:]
    values = json.loads((folder / MANIFEST).read_text())
    values |= {"time": 4098902400_000000}
    values["sha256"] = digest_of({name: value for name, value in values.items() if name != "sha256"})
    (folder / MANIFEST).write_text(json.dumps(values))
    folder.rename(folder.parent / later)
    assert filled.backup(target).kind == "incremental"
    commit(filled, record(1, data=b"1"))
    assert filled.backup(target, full=True).kind == "full"
    commit(filled, record(1, data=b"2"))
    assert filled.backup(target).kind == "incremental"
    assert contents(restored(target)) == dict(filled.gen_oid_record())
    assert max(bases(target), key=lambda base: base.noted.end).pieces


def turn(storage, seconds):
    """Let the policy take a turn, as if so many seconds had gone by since its last one."""
    backups = storage._running.backups
    if backups._due is not None:
        backups._due -= seconds
    backups.turn()


def with_policy(open_storage, target, *, seconds=1e6, keep=3):
    """A storage whose policy is never due by itself."""
    storage = open_storage(
        backup=Every(seconds=1e6, to=target, keep=keep),
        garbage_collection=GarbageManual(),
        checkpoint=CheckpointInline(),
    )
    for worker in storage._running._workers:
        worker.stop()
    backups = storage._running.backups
    backups.policy = replace(backups.policy, seconds=seconds)
    return storage


def test_every(open_storage, target):
    storage = with_policy(open_storage, target)
    hand_out(storage, 10)
    turn(storage, 0)
    assert len(list_backups(target)) == 1
    turn(storage, 1e9)
    assert len(list_backups(target)) == 1, "nothing was committed since"
    commit(storage, record(0))
    turn(storage, 1e9)
    assert len(list_backups(target)) == 1, "it is not due"


def test_every_makes_none_at_each_start(open_storage, target):
    for number in range(3):
        storage = with_policy(open_storage, target)
        hand_out(storage, 10)
        commit(storage, record(0, data=b"%d" % number))
        turn(storage, 0)
        turn(storage, 1e9)
        storage.close()
    assert len(list_backups(target)) == 1


def test_every_prunes(open_storage, target, tmp_path):
    (tmp_path / "other").mkdir()
    others = open_storage(tmp_path / "other").backup(target)
    storage = with_policy(open_storage, target, seconds=1e-6, keep=2)
    hand_out(storage, 10)
    made = []
    for number in range(5):
        commit(storage, record(0, data=b"%d" % number))
        turn(storage, 1e9)
        made.append(list_backups(target)[-1])
    assert len({backup.name for backup in made}) == 5
    there = [backup for backup in list_backups(target) if backup.storage == made[0].storage]
    assert there == [made[0], *made[-2:]], "the first is what the others go on from"
    assert [backup for backup in list_backups(target) if backup not in there] == [others]
    for backup in there[-2:]:
        verify(restored(target, to_commit=backup.tid, of=backup.identity))


def test_every_keeps_the_last_good_one(open_storage, target):
    storage = with_policy(open_storage, target, seconds=1e-6, keep=1)
    hand_out(storage, 10)
    commit(storage, record(0))
    turn(storage, 1e9)
    (good,) = list_backups(target)
    commit(storage, record(0, data=b"2"))

    def fail(name):
        if name == "store.written":
            raise OSError(errno.ENOSPC, "No space left on device")

    failpoints.hook = fail
    try:
        with pytest.raises(BackupError, match="no room"):
            turn(storage, 1e9)
    finally:
        failpoints.hook = None
    assert list_backups(target) == [good]
    turn(storage, 1e9)
    assert list_backups(target)[-1].tid > good.tid


def test_every_is_not_tried_again_at_once(open_storage, target, monkeypatch):
    storage = with_policy(open_storage, target, seconds=1000)
    hand_out(storage, 10)
    commit(storage, record(0))
    turn(storage, 0)
    commit(storage, record(0, data=b"2"))
    now = storage._engine.time
    monkeypatch.setattr(storage._engine, "time", lambda: now() + 2000 * 10**6)

    def fail(name):
        if name == "backup.piece":
            raise InterruptedError

    failpoints.hook = fail
    try:
        with pytest.raises(InterruptedError):
            turn(storage, 1e9)
        turn(storage, 290)
    finally:
        failpoints.hook = None
    turn(storage, 5)
    assert len(list_backups(target)) == 1
    turn(storage, 10)
    assert len(list_backups(target)) == 2


def test_every_where_the_clock_was_set_back(open_storage, target, monkeypatch):
    """Nobody knows how old the newest is: one is made now."""
    storage = with_policy(open_storage, target, seconds=3600)
    hand_out(storage, 10)
    commit(storage, record(0))
    turn(storage, 0)
    commit(storage, record(0, data=b"2"))
    now = storage._engine.time
    monkeypatch.setattr(storage._engine, "time", lambda: now() - 86400 * 10**6)
    turn(storage, 1e9)
    assert len(list_backups(target)) == 2


def test_every_in_the_background(open_storage, target, caplog):
    """It fails while the target is gone, says so once, and goes on when that is back."""
    caplog.set_level(logging.WARNING, logger="berkeleydb_storage.maintenance")
    shutil.rmtree(target)
    storage = open_storage(backup=Every(seconds=0.01, to=target))
    hand_out(storage, 10)
    commit(storage, record(0))
    until = time.monotonic() + PATIENCE
    spin(lambda: any("it is tried again" in entry.message for entry in caplog.records), until)
    target.mkdir()
    spin(lambda: target.exists() and list_backups(target), until)
    spin(lambda: any("works again" in entry.message for entry in caplog.records), until)
    storage.close()
    assert [entry.message for entry in caplog.records if "tried again" in entry.message] == [
        next(entry.message for entry in caplog.records if "tried again" in entry.message)
    ]
    verify(restored(target))


def spin(condition, until):
    """Wait for what another thread does; fail if it never does."""
    turned = threading.Event()
    while not condition():
        assert time.monotonic() < until
        turned.wait(0.005)


@pytest.mark.parametrize(
    "wrong",
    [{"seconds": 0}, {"seconds": -1}, {"seconds": float("nan")}, {"seconds": "1"}, {"keep": 0}, {"keep": 1.5}],
)
def test_policies_that_make_no_sense(wrong, target, directory):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        Every(**{"seconds": 1, "to": target, "keep": 1} | wrong)
    with pytest.raises(OptionError, match="Every"):
        BerkeleyDBStorage(directory, backup="every hour")


def test_the_path_of_a_policy_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Every(seconds=1, to="backups").to == tmp_path / "backups"


def test_permissions_are_those_of_the_place(filled, target):
    target.chmod(0o750)
    made = filled.backup(target)
    (folder,) = (target / made.identity).iterdir()
    assert folder.stat().st_mode & 0o777 == 0o750
    assert (folder / "objects.db").stat().st_mode & 0o777 == 0o640


def test_keep(filled, target):
    for number in range(4):
        commit(filled, record(1, data=b"%d" % number))
        filled.backup(target, full=True, keep=2)
    assert [backup.kind for backup in list_backups(target)] == ["full", "full"]
    filled.backup(target, full=True, keep=Keep(last=1))
    assert len(list_backups(target)) == 1
    assert verify_backups(target).sound
    for wrong in (0, -1, 1.5, "1"):
        with pytest.raises(OptionError, match="keep"):
            filled.backup(target, keep=wrong)


def test_the_command(filled, directory, tmp_path):
    filled.close()
    out, _ = run("backup", directory, tmp_path / "new" / "backups")
    (made,) = list_backups(tmp_path / "new" / "backups")
    assert f"backed up {directory} as of " in out
    assert f"transaction {made.tid}, to {made.where}: full, {made.bytes:,} bytes" in out
    values = json.loads(run("backup", directory, tmp_path / "new" / "backups", "--json", "--keep-last", "5")[0])
    assert values.keys() == {"directory", "removed", *vars(made)}
    assert (values["kind"], values["removed"]) == ("incremental", 0)
    out, _ = run("backups", tmp_path / "new" / "backups")
    assert [line.split()[3] for line in out.splitlines()] == ["kind", "full", "incremental"] or out.count("\n") == 3
    values = json.loads(run("backups", tmp_path / "new" / "backups", "--json")[0])
    assert [backup["kind"] for backup in values["backups"]] == ["full", "incremental"]
    verify(restored(made.where))


def test_the_command_on_a_storage_in_use(filled, directory, target):
    """Who has it open is asked."""
    run("backup", directory, target)
    commit(filled, record(1, data=b"1"))
    out, _ = run("backup", directory, target)
    assert "incremental" in out
    assert filled.backup(target).kind == "incremental"
    assert contents(restored(target)) == dict(filled.gen_oid_record())


def test_the_command_removes_what_is_needless(filled, target):
    for _ in range(3):
        filled.backup(target, full=True)
    out, _ = run("backups", target, "--keep-last", "1", "--json")
    assert json.loads(out)["removed"] > 10
    assert len(list_backups(target)) == 1
    _, err = run("backups", target, "--of", "x", code=2)
    assert "give one of those" in err


def test_the_repository_is_listed_while_it_is_pruned(filled, target, monkeypatch):
    """A base that is removed between the listing and the reading is not there; one that cannot be read is an error."""
    filled.backup(target)
    made = filled.backup(target, full=True)
    store = open_store(target)
    read, repository = store.read, Repository(store)

    def remove(name):
        if name.endswith(MANIFEST) and made.identity in name:
            (target / name).unlink()
            store.read = read
        return read(name)

    store.read = remove
    assert len(repository.bases()) == 1
