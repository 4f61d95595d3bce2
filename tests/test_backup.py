"""Backups while commits go on, killed, refused and by a policy; each is compared with what was acknowledged."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import threading
import time

import pytest
from concurrency import PATIENCE, run_threads
from conftest import let_others_in
from crash_child import policies
from crash_model import History, Writer, set_up
from crash_parent import KILLED, SETTINGS, Children
from graphs import commit, hand_out, oid, record
from test_cli import run
from test_disk_full import Disk, mounted

from berkeleydb_storage import (
    BackupError,
    BerkeleyDBStorage,
    CheckpointInline,
    CheckpointNever,
    CheckpointThread,
    CommitRefused,
    Every,
    GarbageManual,
    GarbageThread,
    OptionError,
    ReadOnlyError,
    StorageClosed,
    environment,
    failpoints,
    list_backups,
)
from berkeleydb_storage.backup import copying
from berkeleydb_storage.check import check_pages
from berkeleydb_storage.directory import DESCRIPTION, MANIFEST
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
        verify(backup.path, history)


def verify(path, history=None):
    """Fail if anything is wrong in a backup; it is not changed by that."""
    with BerkeleyDBStorage(path, read_only=True) as copy:
        assert not copy._running.opened.recovered
        if history is not None:
            history.verify(copy)
        report = copy.check()
        assert not report.faults, report.faults
    assert not check_pages(path)
    verify_manifest(path)


def verify_manifest(path):
    values = json.loads((path / MANIFEST).read_text())
    assert values["files"].keys() == {name.name for name in path.iterdir()} - {"lock", MANIFEST}
    for name, entry in values["files"].items():
        contents = (path / name).read_bytes()
        assert entry == {"bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}


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
    assert storage.statistics().checkpoints > times


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


def test_what_is_told_of_a_backup(filled, target):
    before = time.time()
    made = filled.backup(target)
    assert made.objects == 10
    assert made.tid == filled.statistics().transactions
    assert before <= made.time <= time.time()
    assert 0 < made.seconds <= time.time() - before + 0.001
    assert made.path.parent == target
    assert (
        made.bytes == sum(path.stat().st_size for path in made.path.iterdir()) - (made.path / MANIFEST).stat().st_size
    )
    assert list_backups(str(target)) == [made]
    verify(made.path)
    assert sorted(os.listdir(target)) == [".lock", made.path.name]


def test_a_page_that_is_written_between_the_two_reads(filled, target, monkeypatch):
    """The first read of each part is what a torn one might be: it is found out, page by page."""
    pread, reads = os.pread, {}

    def torn(descriptor, size, offset):
        data = pread(descriptor, size, offset)
        key = os.fstat(descriptor).st_ino, offset
        reads[key] = reads.get(key, 0) + 1
        if reads[key] == 1 and size == copying.PART and len(data) > PAGE_SIZE:
            return data[: PAGE_SIZE // 2] + b"torn" + data[PAGE_SIZE // 2 + 4 :]
        return data

    monkeypatch.setattr(os, "pread", torn)
    made = filled.backup(target)
    monkeypatch.undo()
    assert max(reads.values()) == 3
    verify(made.path)


def test_a_page_that_is_torn_after_all_is_found(filled, target, directory, monkeypatch):
    """Recovery looks at every page that was written since the checkpoint."""
    part, journal = copying.Copying._part, directory / "journal.db"

    def torn(self, source, offset):
        data = part(self, source, offset)
        if os.path.samestat(os.fstat(source), journal.stat()) and len(data) > PAGE_SIZE:
            return data[:-100] + b"torn" + data[-96:]
        return data

    def commit_after_the_checkpoint(name):
        if name == "backup.begun":
            commit(filled, record(0, *range(1, 9)))

    failpoints.hook = commit_after_the_checkpoint
    try:
        made = filled.backup(target)  # the commit was before the checkpoint
        verify(made.path)
        failpoints.hook = lambda name: commit(filled, record(0, 1)) if name == "checkpoint.logs-removed" else None
        monkeypatch.setattr(copying.Copying, "_part", torn)
        with pytest.raises(BackupError, match=r"journal\.db is damaged"):
            filled.backup(target)
    finally:
        failpoints.hook = None
    assert list_backups(target) == [made]
    commit(filled, record(0, 1, 2))


def test_logs_that_are_needed_stay_and_then_go(filled, target, directory):
    kept = []

    def progress(activity, size):
        if activity == "copying":
            commit(filled, *(record(key, data=os.urandom(20_000)) for key in range(1, 10)))
            filled.checkpoint()
            kept.append(log_numbers(directory))

    made = filled.backup(target, progress)
    assert {numbers[0] for numbers in kept} == {kept[0][0]}
    assert kept[-1][-1] > kept[0][0]
    verify(made.path)
    filled.checkpoint()
    assert log_numbers(directory)[0] > kept[0][0]


@pytest.mark.parametrize("point", POINTS[:5])
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
    assert os.listdir(target) == [".lock"]
    first = log_numbers(directory)[0]
    for _ in range(3):
        commit(filled, *(record(key, data=os.urandom(50_000)) for key in range(1, 10)))
        filled.checkpoint()
    assert log_numbers(directory)[0] > first
    verify(filled.backup(target).path)


def test_what_the_progress_raises_ends_it(filled, target):
    activities = []

    def stop(activity, size):
        activities.append(activity)
        if activity == "verifying":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled.backup(target, stop)
    assert list(dict.fromkeys(activities)) == ["copying", "recovering", "verifying"]
    assert os.listdir(target) == [".lock"]


def test_two_at_once(filled, open_storage, tmp_path, target):
    """Of one storage, and to one target."""
    (tmp_path / "other").mkdir()
    other = open_storage(tmp_path / "other")
    complaints = []

    def again(activity, size):
        for storage in (filled, other):
            with pytest.raises(BackupError) as caught:
                storage.backup(target)
            complaints.append(str(caught.value))

    filled.backup(target, again)
    assert all(("is being made" in text) and ("wait until it is done" in text) for text in complaints)
    assert len(set(complaints)) == 2
    assert len(list_backups(target)) == 1
    other.backup(target)


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
    assert "is not writable for this process" in line


def test_a_target_that_vanishes(filled, target):
    def vanish(activity, size):
        shutil.rmtree(target, ignore_errors=True)

    with pytest.raises(BackupError):
        filled.backup(target, vanish)
    assert not target.exists()
    commit(filled, record(0, 1))
    target.mkdir()
    verify(filled.backup(target).path)


@pytest.mark.parametrize("leave", [0, 4096, 40_000, 100_000])
def test_a_full_target(filled, disk, leave):
    commit(filled, *(record(key, data=os.urandom(20_000)) for key in range(1, 10)))
    disk.fill(leave)
    with pytest.raises(BackupError, match="no room for a backup"):
        filled.backup(disk.path)
    assert list_backups(disk.path) == []
    assert disk.free >= leave - 4096
    commit(filled, record(0, 1))
    disk.clear()
    verify(filled.backup(disk.path).path)


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
    with pytest.raises(ReadOnlyError, match="copy its directory"):
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
    assert os.listdir(target) == [".lock"]


def test_closed_by_its_own_progress(filled, target):
    with pytest.raises(StorageClosed):
        filled.backup(target, lambda activity, size: filled.close())
    assert os.listdir(target) == [".lock"]


def test_restored_it_has_an_identity_of_its_own(filled, target, tmp_path, open_storage):
    identity, tid = filled._engine.identity, filled.statistics().transactions
    made = filled.backup(target)
    with BerkeleyDBStorage(made.path, read_only=True) as copy:
        assert copy._engine.identity == identity
    assert list_backups(target) == [made]
    seen = {identity}
    for name in ("one", "two"):
        shutil.copytree(made.path, tmp_path / name)
        storage = open_storage(tmp_path / name)
        assert storage.statistics().transactions == tid
        assert storage.load(oid(3)) == filled.load(oid(3))
        seen.add(storage._engine.identity)
        storage.close()
        again = open_storage(tmp_path / name)
        seen.add(again._engine.identity)
        assert not any(path.startswith(MANIFEST) for path in os.listdir(tmp_path / name))
    assert len(seen) == 3


def test_killed_while_a_backup_becomes_a_storage(filled, target, tmp_path):
    """It is no backup any more, and gets its identity at the next open."""
    identity, made = filled._engine.identity, filled.backup(target)
    children = Children(tmp_path)
    assert children.run("open_and_close", made.path, fuse=("open.marked", 1), options={}) == KILLED
    children.close()
    assert list_backups(target) == []
    with BerkeleyDBStorage(made.path) as storage:
        assert storage._engine.identity != identity
        assert not storage.check().faults


@pytest.mark.parametrize("mode", ["durable", "buffered"])
@pytest.mark.parametrize("point", POINTS)
def test_killed(tmp_path, directory, target, point, mode):
    children, lines = Children(tmp_path), []
    for times in (1, 2) if mode == "durable" else (2,):
        arguments = {"options": MODES[mode], "target": str(target), "keep": 1}
        assert children.run("back_up", directory, fuse=(point, times), **arguments) == KILLED
        lines += children.reported()
        leftovers = [name for name in os.listdir(target) if name.startswith((".making", ".removing"))]
        assert bool(leftovers) == (point != "backup.renamed")
        history = History(losing=mode == "buffered")
        for line in lines:
            if not line.startswith("made"):
                history.report(line)
        with BerkeleyDBStorage(directory, **MODES[mode]) as storage:
            history.verify(storage)
            made = {line.partition(" ")[2] for line in lines if line.startswith("made")}
            there = [backup.path.name for backup in list_backups(target)]
            assert len(there) <= 2
            assert not made or max(made) <= max(there), "what was told of is there, or a newer one"
            for backup in list_backups(target):
                verify(backup.path)
            storage.backup(target)
            assert not [name for name in os.listdir(target) if name.startswith((".making", ".removing"))]
            assert not storage.check().faults
        lines = [line for line in lines if not line.startswith("made")] + [
            f"made {backup.path.name}" for backup in list_backups(target)[-1:]
        ]
    children.close()


def test_what_is_no_backup(filled, target, caplog):
    first, second = filled.backup(target), filled.backup(target)
    (target / "20261121T000000.000000Z-000000000001").mkdir()
    (target / "something else").mkdir()
    with (first.path / "objects.db").open("ab") as file:
        file.write(b"x")
    assert list_backups(target) == [second]
    assert (
        sorted(record.message.partition(" is not counted")[0] for record in caplog.records)
        == [
            str(target / "20261121T000000.000000Z-000000000001"),
            str(first.path),
        ]
        or len(caplog.records) == 2
    )
    for damage in ("", "{}", "[]", '{"format": 1}', '{"format": "x"}', '{"format": 2}'):
        (second.path / MANIFEST).write_text(damage)
        assert list_backups(target) == []


def turn(storage, seconds):
    """Let the policy take a turn, as if so many seconds had gone by since its last one."""
    backups = storage._running.backups
    if backups._due is not None:
        backups._due -= seconds
    backups.turn()


def with_policy(open_storage, target, *, seconds=1e6, keep=3):
    """A storage whose policy is never due by itself."""
    storage = open_storage(
        backup=Every(seconds=seconds, to=target, keep=keep),
        garbage_collection=GarbageManual(),
        checkpoint=CheckpointInline(),
    )
    for worker in storage._running._workers:
        worker.stop()
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
    names = []
    for number in range(5):
        commit(storage, record(0, data=b"%d" % number))
        turn(storage, 1e9)
        names.append(list_backups(target)[-1].path)
    assert len(set(names)) == 5
    assert [backup.path for backup in list_backups(target)] == [others.path, *names[-2:]]
    for path in names[-2:]:
        verify(path)


def test_every_keeps_the_last_good_one(open_storage, target):
    storage = with_policy(open_storage, target, keep=1)
    hand_out(storage, 10)
    commit(storage, record(0))
    turn(storage, 1e9)
    (good,) = list_backups(target)
    commit(storage, record(0, data=b"2"))
    good = grown_old(good)

    def fail(name):
        if name == "backup.noted":
            raise OSError(errno.ENOSPC, "No space left on device")

    failpoints.hook = fail
    try:
        with pytest.raises(BackupError, match="no room"):
            turn(storage, 1e9)
    finally:
        failpoints.hook = None
    turn(storage, 0)
    assert list_backups(target) == [good], "it is not tried again at once"
    turn(storage, 1e9)
    (newer,) = list_backups(target)
    assert newer.tid > good.tid


def grown_old(backup):
    """Let a backup have been made long ago."""
    values = json.loads((backup.path / MANIFEST).read_text())
    values["time"] -= 10**13
    (backup.path / MANIFEST).write_text(json.dumps(values))
    return list_backups(backup.path.parent)[-1]


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
    verify(list_backups(target)[-1].path)


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


def test_who_killed_the_lock(filled, target):
    """The file stays, the lock does not."""
    filled.backup(target)
    with (target / ".lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BackupError, match="another backup is being made"):
            filled.backup(target)
    filled.backup(target)


def test_permissions_are_those_of_the_storage(filled, target, directory):
    directory.chmod(0o750)
    (directory / "objects.db").chmod(0o640)
    made = filled.backup(target)
    assert made.path.stat().st_mode & 0o777 == 0o750
    assert (made.path / "objects.db").stat().st_mode & 0o777 == 0o640


def test_the_command(filled, directory, tmp_path):
    filled.close()
    out, _ = run("backup", directory, tmp_path / "new" / "backups")
    (made,) = list_backups(tmp_path / "new" / "backups")
    assert f"backed up {directory} as of " in out
    assert f"to {made.path}: 10 objects, {made.bytes:,} bytes" in out
    values = json.loads(run("backup", directory, tmp_path / "new" / "backups", "--json")[0])
    assert values.keys() == {"directory", "path", "tid", "objects", "bytes", "seconds", "time"}
    run("check", made.path)
    verify(made.path)
    assert DESCRIPTION in os.listdir(values["path"])


def test_the_command_on_a_storage_in_use(filled, directory, target):
    _, err = run("backup", directory, target, code=2)
    assert f"is in use by process {os.getpid()}" in err
    assert "backup=Every(seconds, to, keep)" in err
    assert os.listdir(target) == []
