"""Interruptions, forks and handlers at the worst moment: each of these once lost data, or hung."""

import gc
import os
import signal
import threading
import time

import pytest
from durus.connection import Connection
from durus.error import WriteConflictError
from durus.serialize import pack_record

from berkeleydb_storage import (
    BerkeleyDBStorage,
    BerkeleyDBStorageError,
    CheckpointThread,
    CommitRefused,
    DiskFullError,
    GarbageManual,
    GarbageThread,
    MigrationError,
    OptionError,
    StorageClosed,
    failpoints,
)
from berkeleydb_storage.environment import end_of_log
from berkeleydb_storage.format import pack_uint64 as oid
from berkeleydb_storage.format import unpack_uint64
from berkeleydb_storage.garbage.deletion import FAN
from berkeleydb_storage.refcounts import ReferenceCounts
from berkeleydb_storage.room import Room


def record(number, *refs, data=b"data"):
    return pack_record(oid(number), data, b"".join(map(oid, refs)))


def commit(session, *records, handle=None):
    session.begin()
    for each in records:
        session.store(each[:8], each)
    session.end(handle)


@pytest.fixture
def storage(tmp_path):
    with BerkeleyDBStorage(tmp_path, garbage_collection=GarbageManual()) as storage:
        for _ in range(10):
            storage.new_oid()
        yield storage


@pytest.fixture
def at(monkeypatch):
    """Return a function that has something done, once, when a failpoint is reached."""

    def arrange(point, action):
        def hook(name):
            if name == point:
                monkeypatch.setattr(failpoints, "hook", None)
                action()

        monkeypatch.setattr(failpoints, "hook", hook)

    return arrange


def interrupt():
    raise KeyboardInterrupt


def test_a_forked_child_does_not_keep_the_directory_locked(tmp_path):
    storage = BerkeleyDBStorage(tmp_path)
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        storage.close()
        BerkeleyDBStorage(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_child_outlives_a_killed_parent(tmp_path):
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        storage = BerkeleyDBStorage(tmp_path)
        if not os.fork():
            os.write(writing, b"%d" % os.getpid())
        signal.pause()
        os._exit(len(str(storage)))
    child = int(os.read(reading, 20))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    try:
        BerkeleyDBStorage(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_a_storage_that_its_own_worker_collects_as_garbage_is_closed(tmp_path, at):
    storage = BerkeleyDBStorage(tmp_path, garbage_collection=GarbageThread(grace=0, interval=0.01))
    connection = Connection(storage)
    (worker,) = (thread for thread in threading.enumerate() if thread.name.endswith("garbage"))
    circle = [connection]
    circle.append(circle)
    released, collected = threading.Event(), threading.Event()

    def collect():
        assert threading.current_thread() is worker
        released.wait()
        gc.collect()
        collected.set()

    session, garbage = storage.session(), storage.new_oid()
    at("collect.begun", collect)
    gc.disable()
    try:
        commit(session, pack_record(garbage, b"data", b""))
        del storage, session, connection, circle
        released.set()
        assert collected.wait(10)
    finally:
        gc.enable()
    worker.join(10)
    assert not worker.is_alive()
    for thread in threading.enumerate():
        if thread.name == "berkeleydb_storage close":
            thread.join(10)
    BerkeleyDBStorage(tmp_path).close()


def test_a_refusal_keeps_no_frames(storage):
    storage.close()

    def depth():
        with pytest.raises(StorageClosed) as caught:
            storage.load(oid(0))
        return len(caught.traceback)

    assert depth() == depth() == depth()


def test_an_update_that_came_after_the_handler_was_told_is_not_overwritten(storage):
    """The handler of a Durus server never objects: it told its client before, and waited for the records since."""
    commit(storage, record(0), record(1))
    other = storage.session()
    commit(other, record(0, data=b"theirs"))
    told = []
    with pytest.raises(WriteConflictError):
        commit(storage, record(0, data=b"ours"), handle=told.extend)
    assert told == [oid(0)]
    assert storage.load(oid(0)) == record(0, data=b"theirs")
    commit(other, record(1, data=b"theirs"))
    commit(storage, record(0, data=b"ours"), handle=told.extend)
    assert told == [oid(0), oid(1)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, AssertionError])
def test_what_a_failing_handler_was_told_is_told_again(storage, error):
    commit(storage, record(0))
    other = storage.session()
    commit(storage, record(0, data=b"new"))

    def fail(_oids):
        raise error

    with pytest.raises(error):
        commit(other, record(1), handle=fail)
    assert other.sync() == [oid(0)]
    assert other.sync() == []


class Interrupted:
    """A listener in whose call the user presses Ctrl-C."""

    def invalidate(self, oids):
        raise KeyboardInterrupt


def test_a_commit_interrupted_while_others_are_told(storage):
    commit(storage, record(0))
    interrupted = Interrupted()
    storage._engine.listen(interrupted)
    late = storage.session()
    with pytest.raises(KeyboardInterrupt):
        commit(storage, record(0, 1), record(1))
    listeners = storage._engine.transactions.listeners
    listeners._known = [known for known in listeners._known if known() is not interrupted]
    assert not storage._engine.lock.locked()
    commit(storage, record(0, 1, 2), record(1, 2), record(2))
    assert storage.get_size() == 3
    assert storage.check().sound
    assert oid(0) in late.sync()


def test_closing_in_a_signal_handler_within_a_commit(tmp_path, at):
    storage = BerkeleyDBStorage(tmp_path)
    storage.new_oid()
    at("commit.flushed", storage.close)
    commit(storage, record(0))
    with BerkeleyDBStorage(tmp_path) as again:
        assert again.load(oid(0)) == record(0)
        assert not again.statistics().recovered


@pytest.mark.parametrize("point", ["checkpoint.begun", "checkpoint.logs-noted", "close.checkpointed"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError])
def test_an_interrupted_close_frees_the_directory(storage, tmp_path, at, point, error):
    commit(storage, record(0))

    def fail():
        raise error

    at(point, fail)
    with pytest.raises(error):
        storage.close()
    with BerkeleyDBStorage(tmp_path) as again:
        assert again.load(oid(0)) == record(0)
        assert again.statistics().recovered


def test_a_migration_interrupted_at_its_beginning_leaves_a_storage_that_keeps_commits(storage, tmp_path, at):
    at("migrate.begun", interrupt)
    with pytest.raises(KeyboardInterrupt):
        storage.migrate([(oid(0), record(0))])
    storage.new_oid()
    commit(storage, record(0))
    storage.close()
    with BerkeleyDBStorage(tmp_path) as again:
        assert again.load(oid(0)) == record(0)


def test_a_migration_that_cannot_be_undone_refuses_every_use(storage, tmp_path, monkeypatch):
    """What was stored between that and the next open would be gone."""

    def full(room, size):
        raise DiskFullError("full")

    def source():
        for number in range(3000):
            yield oid(number), record(number)
        monkeypatch.setattr(Room, "need", full)

    with pytest.raises(DiskFullError, match="full"):
        storage.migrate(source())
    monkeypatch.undo()
    for use in (lambda: storage.load(oid(0)), lambda: commit(storage, record(0))):
        with pytest.raises(MigrationError, match="open it again"):
            use()
    storage.close()
    with BerkeleyDBStorage(tmp_path) as again:
        assert again.get_size() == 0
        assert again.check().sound


def test_a_source_that_commits_or_migrates_is_refused(storage):
    def source():
        yield oid(0), record(0)
        with pytest.raises(CommitRefused, match="busy with a migration"):
            commit(storage, record(0, data=b"other"))
        with pytest.raises(CommitRefused, match="busy with a migration"):
            storage.migrate([])

    assert storage.migrate(source()) == 1
    assert storage.load(oid(0)) == record(0)


@pytest.mark.parametrize("size", [0, -1])
def test_batches_have_a_size(storage, size):
    for start in (None, oid(0)):
        with pytest.raises(ValueError, match="at least 1"):
            storage.gen_oid_record(start, batch_size=size)


def test_a_checkpoint_that_is_under_way_is_not_waited_for(storage):
    checkpointer = storage._running.checkpointer
    before, started = checkpointer.completed, time.monotonic()
    with checkpointer._running:
        checkpointer.turn()
    assert checkpointer.completed == before
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("seconds", ["1", -1, 0, float("nan"), float("inf")])
@pytest.mark.parametrize("option", ["checkpoint", "garbage_collection"])
def test_an_interval_that_is_no_time_is_refused(tmp_path, option, seconds):
    policy = {"checkpoint": CheckpointThread, "garbage_collection": GarbageThread}[option]()
    policy.interval = seconds
    with pytest.raises(OptionError, match=f"interval of {option}"):
        BerkeleyDBStorage(tmp_path, **{option: policy})
    assert list(tmp_path.iterdir()) == []


def test_the_last_oids_are_handed_out_and_then_none(tmp_path):
    last = (1 << 64) - 2
    with BerkeleyDBStorage(tmp_path) as storage:
        storage.migrate(
            [(oid(0), pack_record(oid(0), b"", oid(last - 1))), (oid(last - 1), record(last - 1, data=b""))]
        )
        assert storage.new_oid() == oid(last)
        with pytest.raises(BerkeleyDBStorageError, match="all of its oids"):
            storage.new_oid()
        assert storage.check().sound


def test_no_temporary_directory_is_an_error_that_says_so(tmp_path, monkeypatch):
    BerkeleyDBStorage(tmp_path).close()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(BerkeleyDBStorageError, match="TMPDIR"):
        end_of_log(tmp_path / "log.0000000001")


@pytest.mark.parametrize("children", [FAN, FAN + 1, 20 * FAN + 7])
def test_no_step_lets_go_of_more_references_than_the_limit(storage, children, monkeypatch):
    """A record with very many references is collected in short steps, between which the storage is consistent."""
    dropped = []
    drop = ReferenceCounts.drop_reference
    monkeypatch.setattr(ReferenceCounts, "drop_reference", lambda *a, **k: dropped.append(1) or drop(*a, **k))
    fan, oids = unpack_uint64(storage.new_oid()), [unpack_uint64(storage.new_oid()) for _ in range(children)]
    commit(storage, record(0, fan, oids[0]), record(fan, *oids), *(record(number) for number in oids))
    commit(storage, record(0, oids[0]))
    for _ in storage.get_packer():
        assert len(dropped) <= FAN
        dropped.clear()
        assert storage.check().sound
    assert storage.get_size() == 2
    assert storage.load(oid(oids[0])) == record(oids[0])
