"""A full disk: a small file system in memory is filled before and while the storage writes.

Every acknowledged commit is there afterwards; where the library allows it the same storage goes on, once there is room.
"""

import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from crash_model import History, Writer, read_hub, set_up
from durus.serialize import pack_record
from graphs import copied

from berkeleydb_storage import (
    BerkeleyDBStorage,
    CheckpointInline,
    CheckpointNever,
    CheckpointThread,
    CommitInDoubt,
    DiskFullError,
    GarbageInline,
    GarbageManual,
    GarbageThread,
    compaction,
    environment,
    failpoints,
)

SIZE = 12 << 20
"""Bytes of the file system."""
STEPS = 30
"""Commits before and after it is full."""
SEEDS = 25
SLOW_SEEDS = 400

POINTS = [name for name in failpoints.NAMES if name.startswith(("commit.", "collect.", "checkpoint.", "oids."))]
MODES = {
    "durable": {},
    "hash": {"type": "hash"},
    "async": {"durable": False},
    "buffered": {"durable": False, "async_log_write": False},
}


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", 1 << 18)
    monkeypatch.setattr(environment, "LOG_BUFFER", 1 << 15)
    monkeypatch.setattr("berkeleydb_storage.oids.OID_BLOCK", 16)


class Disk:
    """A file system of its own."""

    def __init__(self, path):
        self.path = path
        self.storages = []
        self._filler = path / "filler"

    @property
    def free(self):
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def fill(self, leave=0):
        """Fill it up but for so many bytes."""
        with self._filler.open("ab", buffering=0) as file:
            while (size := self.free - leave) > 0:
                try:
                    file.write(bytes(min(size, 1 << 16)))
                except OSError:
                    break

    def clear(self):
        """Make room again."""
        self._filler.unlink(missing_ok=True)


def mounted(path):
    """Mount a small file system; whether that worked, and why not."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return False, "there is no mount command"
    return done.returncode == 0, done.stderr.partition("\n")[0]


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    works, reason = mounted(path)
    if not works:
        pytest.skip(f"no file system can be mounted here ({reason}); see test_in_a_namespace")
    disk = Disk(path)
    yield disk
    disk.clear()
    for storage in disk.storages:
        storage.close()
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_in_a_namespace(tmp_path):
    """Who may not mount may do so as root of a namespace of his own, where that is allowed."""
    (tmp_path / "disk").mkdir()
    works, _ = mounted(tmp_path / "disk")
    if works:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)
        pytest.skip("this process may mount itself")
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("neither mount nor `unshare -rm` is allowed: nothing here was tested")
    command = [
        "unshare",
        "-rm",
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        __file__,
        "--basetemp",
        str(tmp_path / "inside"),
    ]
    subprocess.run(command, cwd=Path(__file__).parent.parent, check=True)


def outcome(work):
    """Do something; return what a full disk made of it."""
    try:
        work()
    except (DiskFullError, CommitInDoubt) as error:
        return error
    return None


class Case:
    """A storage on a small disk, and its history."""

    def __init__(self, disk, mode="durable", **policies):
        self.disk = disk
        self.path = disk.path / "storage"
        self.path.mkdir()
        self.options = {"cachesize": 1 << 20} | MODES[mode]
        self.policies = {"checkpoint": CheckpointNever(), "garbage_collection": GarbageManual()} | policies
        self.history = History(losing=mode == "buffered")
        self.storage = self.open()
        set_up(self.storage, 1, self.history.report)
        self.refused = set()

    def open(self, path=None):
        storage = BerkeleyDBStorage(path or self.path, **self.options, **self.policies)
        self.disk.storages.append(storage)
        return storage

    def commit(self, times=1):
        """Commit so many steps, or try to; return what was refused."""
        refused = []
        for _ in range(times):
            writer = Writer(self.storage, 0, self.history.hubs[0], self.history.report)
            error = outcome(writer.next)
            if error is not None:
                refused.append(error)
                self.is_as_told(error, writer.step)
        return refused

    def is_as_told(self, error, step):
        """What is in doubt is there for everyone; of what is refused nothing is."""
        stored, _ = read_hub(self.storage, self.history.hubs[0])
        assert stored == step + isinstance(error, CommitInDoubt)

    def goes_on(self):
        """Without being opened anew, once there is room; and all is there when it is opened the next time."""
        self.disk.clear()
        assert not self.commit(3)
        self.is_whole(self.storage)
        self.storage.close()
        self.is_whole_again()

    def is_whole(self, storage):
        self.history.verify(storage)
        assert not storage.check().faults

    def is_whole_again(self, recovered=False):
        with self.open() as storage:
            assert storage.statistics().recovered == recovered
            self.is_whole(storage)


@pytest.mark.parametrize("mode", MODES)
def test_commits_are_refused_in_time(disk, mode):
    """While there is room enough for what is needed to go on: no filler, only commits."""
    case = Case(disk, mode)
    while not (refused := case.commit()):
        pass
    assert isinstance(refused[0], DiskFullError)
    assert "bytes free, and" in str(refused[0])
    assert str(case.path) in str(refused[0])
    assert disk.free > SIZE // 20
    case.is_whole(case.storage)
    case.storage.checkpoint()
    assert not case.commit(STEPS)
    case.storage.close()
    case.is_whole_again()


@pytest.mark.parametrize("leave", [0, 5_000, 100_000])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", ["commit.begun", "commit.written", "commit.committed", "collect.begun"])
def test_the_disk_fills_up_within_a_transaction(disk, monkeypatch, point, mode, leave):
    case = Case(disk, mode, garbage_collection=GarbageInline(grace=0.0))
    case.commit(STEPS)
    monkeypatch.setattr(failpoints, "hook", lambda name: name == point and disk.fill(leave))
    refused = case.commit(STEPS)
    monkeypatch.setattr(failpoints, "hook", None)
    assert refused
    case.is_whole(case.storage)
    case.goes_on()


def test_what_is_in_doubt_becomes_durable(disk, tmp_path, monkeypatch):
    case = Case(disk)
    case.commit(STEPS)
    monkeypatch.setattr(failpoints, "hook", lambda name: name == "commit.written" and disk.fill())
    (refused,) = case.commit()
    monkeypatch.setattr(failpoints, "hook", None)
    assert isinstance(refused, CommitInDoubt)
    assert "was applied, and could not be brought to the disk: no room" in str(refused)
    case.disk.clear()
    case.commit()
    expected = case.storage.load(case.history.hubs[0].to_bytes(8, "big"))
    killed = copied(case.path, tmp_path / "killed")
    with case.open(killed) as storage:
        assert storage.load(case.history.hubs[0].to_bytes(8, "big")) == expected
    case.goes_on()


@pytest.mark.parametrize("mode", ["durable", "async"])
def test_a_kill_while_it_is_full(disk, tmp_path, monkeypatch, mode):
    case = Case(disk, mode)
    case.commit(STEPS)
    monkeypatch.setattr(failpoints, "hook", lambda name: name == "commit.written" and disk.fill())
    case.commit(STEPS)
    monkeypatch.setattr(failpoints, "hook", None)
    killed = copied(case.path, tmp_path / "killed")
    case.storage.close()
    with case.open(killed) as storage:
        case.is_whole(storage)
    case.disk.clear()
    case.is_whole_again(recovered=True)


@pytest.mark.parametrize("leave", [0, 5_000, 50_000])
def test_a_checkpoint_on_a_full_disk(disk, leave):
    case = Case(disk)
    case.commit(STEPS)
    disk.fill(leave)
    with pytest.raises(DiskFullError, match="no room on the disk of"):
        case.storage.checkpoint()
    assert case.commit()
    case.is_whole(case.storage)
    disk.clear()
    case.storage.checkpoint()
    case.goes_on()


def test_packing_on_a_full_disk(disk):
    case = Case(disk)
    case.commit(STEPS)
    garbage = case.storage.statistics().garbage
    assert garbage
    disk.fill()
    with pytest.raises(DiskFullError, match=r"no room|bytes free"):
        case.storage.pack()
    assert "stopped: " in list(case.storage.get_packer())[-1]
    assert case.storage.statistics().garbage == garbage
    disk.clear()
    case.storage.pack()
    assert case.storage.statistics().garbage == 0
    case.goes_on()


def garbage(case, objects=1500):
    """Store objects that nothing refers to, and delete them."""
    case.storage.begin()
    for _ in range(objects):
        key = case.storage.new_oid()
        case.storage.store(key, pack_record(key, b"x" * 500, b""))
    case.storage.end()
    case.storage.checkpoint()
    case.storage.pack()
    case.storage.checkpoint()


def test_compacting_on_a_full_disk(disk):
    case = Case(disk)
    case.commit(STEPS)
    garbage(case)
    disk.fill()
    with pytest.raises(DiskFullError, match=r"no room|bytes free"):
        case.storage.compact()
    disk.clear()
    assert case.storage.compact() > 500_000
    case.goes_on()


@pytest.mark.parametrize("leave", [0, 5_000, 50_000])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("times", [1, 3, 10])
def test_the_disk_fills_up_while_it_compacts(disk, monkeypatch, mode, leave, times):
    monkeypatch.setattr(compaction, "SMALL", 8)
    case = Case(disk, mode)
    case.commit(STEPS)
    garbage(case)
    left = times

    def fill(name):
        nonlocal left
        left -= name == "compact.begun"
        if name == "compact.begun" and not left:
            disk.fill(leave)

    monkeypatch.setattr(failpoints, "hook", fill)
    outcome(lambda: case.storage.compact(hold=1e-4))
    monkeypatch.setattr(failpoints, "hook", None)
    assert left <= 0
    case.is_whole(case.storage)
    disk.clear()
    case.storage.compact()
    case.goes_on()


@pytest.mark.parametrize("leave", [0, 5_000, 50_000])
@pytest.mark.parametrize("mode", ["durable", "hash", "async"])
def test_closing_and_opening_on_a_full_disk(disk, caplog, mode, leave):
    """Closing leaves it to be recovered; opening is refused until there is room; nothing is lost."""
    case = Case(disk, mode)
    case.commit(STEPS)
    disk.fill(leave)
    case.storage.close()
    assert "is left to be recovered at the next open: DiskFullError" in caplog.text
    with pytest.raises(DiskFullError, match=r"no room|cannot be recovered while its disk has only"):
        case.open()
    with pytest.raises(DiskFullError):
        case.open()
    disk.clear()
    case.is_whole_again(recovered=True)


def test_there_is_no_room_to_note_that_it_is_closed(disk, caplog, monkeypatch):
    case = Case(disk)
    case.commit(STEPS)
    monkeypatch.setattr(failpoints, "hook", lambda name: name == "close.environment" and disk.fill())
    case.storage.close()
    monkeypatch.setattr(failpoints, "hook", None)
    assert "is whole, and recovered at the next open all the same: no room on the disk" in caplog.text
    disk.clear()
    case.is_whole_again(recovered=True)


def test_what_is_lost_when_the_buffer_finds_no_room_is_told(disk, caplog):
    case = Case(disk, "buffered")
    case.commit(STEPS)
    disk.fill()
    case.storage.close()
    (told,) = [line for line in caplog.records if "is left to be recovered" in line.getMessage()]
    assert told.levelname == "ERROR"
    assert "with durable=False, commits that are not in the files yet are lost" in told.getMessage()
    disk.clear()
    case.is_whole_again(recovered=True)


def test_creating_on_a_full_disk(disk):
    path = disk.path / "storage"
    path.mkdir()
    disk.fill()
    for _ in range(2):
        with pytest.raises(DiskFullError, match="no room on the disk of"):
            BerkeleyDBStorage(path)
    for leave in (5_000, 20_000, 40_000, 80_000):
        disk.clear()
        disk.fill(leave)
        with pytest.raises(DiskFullError):
            BerkeleyDBStorage(path)
    disk.clear()
    with BerkeleyDBStorage(path) as storage:
        assert not storage.check().faults


class Busy(CheckpointThread):
    interval = 0.001

    def due(self, numbers):
        return True


def test_background_threads_survive_it_and_say_so_once(disk, caplog, monkeypatch):
    case = Case(disk, checkpoint=Busy(), garbage_collection=GarbageThread(grace=0.0, interval=0.001))
    case.commit(STEPS)
    tried = 0
    often, again = threading.Event(), threading.Event()

    def count(name):
        nonlocal tried
        tried += name == "checkpoint.begun"
        if tried > 10:
            often.set()

    disk.fill()
    monkeypatch.setattr(failpoints, "hook", count)
    case.commit(3)
    assert often.wait(20)
    disk.clear()
    monkeypatch.setattr(failpoints, "hook", lambda name: name == "checkpoint.logs-removed" and again.set())
    assert again.wait(20)
    monkeypatch.setattr(failpoints, "hook", None)
    assert not case.commit(STEPS)
    threads = {thread.name for thread in threading.enumerate()}
    assert {"berkeleydb_storage garbage", "berkeleydb_storage checkpoint"} <= threads
    assert caplog.text.count("it is tried again") == 1
    assert "no room on the disk" in caplog.text
    case.goes_on()
    assert caplog.text.count("berkeleydb_storage checkpoint works again") == 1


def at_random(disk, seed, monkeypatch):
    """Fill the disk at a random crash point, and do one thing after the other on it."""
    source = random.Random(seed)
    mode = source.choice(list(MODES))
    working = {"checkpoint": CheckpointInline(log_bytes=100_000), "garbage_collection": GarbageInline(grace=0.0)}
    case = Case(disk, mode, **source.choice(({}, working)))
    case.commit(source.randrange(60))
    point, times, leave = (
        source.choice(POINTS),
        source.randrange(1, 4),
        source.choice((0, 4096, source.randrange(300_000))),
    )

    def fill(name):
        nonlocal times
        times -= name == point
        if name == point and not times:
            disk.fill(leave)

    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "hook", fill)
        case.commit(STEPS)
    for work in (case.storage.checkpoint, case.storage.pack):
        outcome(work)
    if source.random() < 0.4:
        case.storage.close()
        outcome(lambda: case.open().close())
        disk.clear()
        case.storage = case.open()
    case.goes_on()
    assert case.history.losing or case.history.lost == 0


@pytest.mark.parametrize("seed", range(SEEDS))
def test_at_random(disk, seed, monkeypatch):
    at_random(disk, seed, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS, SLOW_SEEDS))
def test_at_random_more_often(disk, seed, monkeypatch):
    at_random(disk, seed, monkeypatch)
