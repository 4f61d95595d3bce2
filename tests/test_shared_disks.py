"""A shared storage whose disk fails, or is full: who commits is told, and somebody opens it again."""

import errno
import os
import time

import pytest
from conftest import check_directory
from durus.connection import Connection
from shared_child import Crew
from test_disk_full import disk
from test_failing_disk import failing

from berkeleydb_storage import (
    BerkeleyDBStorage,
    BerkeleyDBStorageError,
    CommitInDoubt,
    DiskFullError,
    SharedStorage,
    environment,
)

__all__ = ["disk", "failing"]


@pytest.fixture
def crew(directory):
    crew = Crew(directory)
    yield crew
    crew.finish()


@pytest.fixture
def small_logs(monkeypatch):
    """A log file is smaller than the disk."""
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", 1 << 18)
    monkeypatch.setattr(environment, "LOG_BUFFER", 1 << 15)


def add(storage, key, size=1):
    connection = Connection(storage)
    connection.get_root()[key] = os.urandom(size)
    connection.commit()


def keys(storage):
    storage.sync()
    return set(Connection(storage).get_root().keys())


def test_the_disk_of_the_owner_fails_in_its_commit(directory, failing):
    """It is told that the commit is in doubt; then this process opens it again."""
    with SharedStorage(directory) as storage:
        add(storage, "before")
        failing.part = "log."
        with pytest.raises(CommitInDoubt):
            add(storage, "doubtful")
        failing.part = None
        add(storage, "after")
        assert {"before", "after"} <= keys(storage)
        assert storage.information()["storage"]["recovered"]
    check_directory(directory)


def test_the_disk_of_the_owner_fails_in_a_commit_of_another(directory, failing, crew):
    """Which is told as well, and takes over: its disk works."""
    with SharedStorage(directory) as storage:
        add(storage, "before")
        child = crew.child()
        child.ask("open", path=directory)
        failing.part = "log."
        with pytest.raises(CommitInDoubt):
            child.ask("add", key="doubtful")
        child.ask("add", key="after")
        assert crew.owner() is child
        assert {"before", "after"} <= keys(storage)
    child.end()
    check_directory(directory)


def test_a_disk_that_goes_on_failing(directory, failing):
    """Every attempt says so, at once; nothing hangs, and nothing that was acknowledged is lost."""
    with SharedStorage(directory) as storage:
        add(storage, "before")
        failing.part = str(directory)
        started = time.monotonic()
        with pytest.raises(CommitInDoubt):
            add(storage, "doubtful")
        for _ in range(3):
            with pytest.raises(BerkeleyDBStorageError):
                add(storage, "refused")
        assert time.monotonic() - started < 10
        failing.part = None
        add(storage, "after")
        assert {"before", "after"} <= keys(storage) <= {"before", "after", "doubtful"}
    check_directory(directory)


def test_no_room(disk, crew, small_logs):
    """Commits are refused, those of clients too; everybody goes on when there is room again."""
    path = disk.path / "storage"
    path.mkdir()
    with SharedStorage(path) as storage:
        add(storage, "before")
        child = crew.child()
        child.ask("small_logs")
        child.ask("open", path=path)
        disk.fill()
        with pytest.raises(DiskFullError):
            add(storage, "refused", size=1 << 19)
        with pytest.raises(DiskFullError):
            child.ask("add", key="refused", size=1 << 19)
        disk.clear()
        child.ask("add", key="child")
        storage.sync()
        add(storage, "after")
        assert keys(storage) == {"before", "child", "after"}
    child.end()
    check_directory(path)


def test_no_room_to_take_over(disk, crew, small_logs):
    """The next owner says so, and succeeds when there is room."""
    path = disk.path / "storage"
    path.mkdir()
    child = crew.child()
    child.ask("small_logs")
    child.ask("open", path=path)
    with SharedStorage(path) as storage:
        child.ask("add", key="before")
        disk.fill()
        child.kill()
        with pytest.raises((DiskFullError, BerkeleyDBStorageError)) as caught:
            add(storage, "refused")
        assert getattr(caught.value, "errno", None) in (None, errno.ENOSPC)
        disk.clear()
        add(storage, "after")
        assert keys(storage) == {"before", "after"}
    with BerkeleyDBStorage(path) as storage:
        assert storage.get_size() == 1
    check_directory(path)
