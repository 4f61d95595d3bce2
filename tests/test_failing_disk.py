"""A disk that fails to keep what it was given: the library's fsync is made to fail.

After that the system has forgotten what it could not write, and the next fsync succeeds without it. So the storage must
stop: whatever it acknowledged later could be lost, and so could everything behind it in the log.
"""

import ctypes
import errno
import json
import os
from pathlib import Path

import pytest
from crash_child import go_on
from crash_model import History, Writer, set_up
from graphs import hand_out, number

from berkeleydb_storage import (
    BerkeleyDBStorage,
    CheckpointNever,
    CheckpointThread,
    CommitInDoubt,
    DamagedError,
    GarbageManual,
)

STEPS = 20
SYNC = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)


def library():
    """Return the Berkeley DB library of this process, to replace its fsync."""
    try:
        mapped = Path("/proc/self/maps").read_text().splitlines()
    except FileNotFoundError:
        pytest.skip("the library is not found without /proc")
    return ctypes.CDLL(next(line.split()[-1] for line in mapped if "/libdb" in line))


class FailingSync:
    """The fsync of files whose name has `part` in it returns `number`; that of all others works."""

    def __init__(self):
        self.part = None
        self.number = errno.EIO

    def __call__(self, descriptor):
        if self.part is not None and self.part in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            return self.number
        os.fsync(descriptor)
        return 0


@pytest.fixture
def failing():
    sync = FailingSync()
    function = SYNC(sync)
    libdb = library()
    assert libdb.db_env_set_func_fsync(function) == 0
    yield sync
    libdb.db_env_set_func_fsync(None)


class Case:
    def __init__(self, path, failing, **options):
        self.path = path
        self.failing = failing
        self.history = History()
        policies = {"checkpoint": CheckpointNever(), "garbage_collection": GarbageManual()}
        self.storage = BerkeleyDBStorage(path, **policies | options)
        self.writer = Writer(self.storage, 0, set_up(self.storage, 1, self.history.report)[0], self.history.report)
        while self.writer.step < STEPS:
            self.writer.next()

    def has_stopped(self):
        """Whatever is tried is refused, though the disk works again; and nothing that was acknowledged is lost."""
        self.failing.part = None
        hub = self.history.hubs[0].to_bytes(8, "big")
        for work in (self.writer.next, self.storage.checkpoint, self.storage.pack, self.storage.check):
            with pytest.raises(DamagedError, match=r"did not take what was written|Berkeley DB has stopped"):
                work()
        with pytest.raises(DamagedError):
            hand_out(self.storage, number(self.storage.new_oid()) + 10_000)
        self.storage.begin()
        self.storage.store(hub, hub + bytes(4))
        with pytest.raises(DamagedError):
            self.storage.end()
        self.storage.close()
        assert json.loads((self.path / "storage.json").read_text())["state"] == "open"
        with BerkeleyDBStorage(self.path) as storage:
            assert storage.statistics().recovered
            self.history.verify(storage)
            assert not storage.check().faults
            Writer(storage, 0, self.history.hubs[0], self.history.report).next()
            self.history.verify(storage)
        assert self.history.lost == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_the_log_of_a_commit(tmp_path, failing, number):
    case = Case(tmp_path, failing)
    failing.part, failing.number = "/log.", number
    with pytest.raises(
        CommitInDoubt, match=r"was applied, and could not be brought to the disk: the disk of .* did not"
    ):
        case.writer.next()
    with pytest.raises(DamagedError, match="look after the disk, then close the storage and open it again"):
        case.storage.load(bytes(8))
    case.has_stopped()


def test_the_log_of_a_reservation_of_oids(tmp_path, failing, monkeypatch):
    monkeypatch.setattr("berkeleydb_storage.oids.OID_BLOCK", 4)
    case = Case(tmp_path, failing)
    failing.part = "/log."
    with pytest.raises(DamagedError, match="did not take what was written"):
        hand_out(case.storage, 10_000)
    case.has_stopped()


@pytest.mark.parametrize("part", ["/log.", "/objects.db", "/journal.db"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_checkpoint(tmp_path, failing, part, number):
    case = Case(tmp_path, failing, durable=False)
    failing.part, failing.number = part, number
    with pytest.raises(DamagedError, match="did not take what was written"):
        case.storage.checkpoint()
    case.has_stopped()


def test_the_last_checkpoint(tmp_path, failing, caplog):
    case = Case(tmp_path, failing)
    failing.part = "/objects.db"
    case.storage.close()
    assert "is left to be recovered at the next open" in caplog.text
    assert "did not take what was written" in caplog.text
    failing.part = None
    with BerkeleyDBStorage(tmp_path) as storage:
        assert storage.statistics().recovered
        case.history.verify(storage)


def test_a_checkpoint_in_the_background(tmp_path, failing):
    class Busy(CheckpointThread):
        interval = 0.001

    case = Case(tmp_path, failing, checkpoint=Busy(log_bytes=1))
    failing.part = "/objects.db"
    with pytest.raises((DamagedError, CommitInDoubt)):
        go_on(case.writer, None)
    case.has_stopped()
