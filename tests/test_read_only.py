"""Reading without writing: on directories that may not be written to, of storages that were closed or killed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crash_model import History, Writer, set_up
from crash_parent import Children
from graphs import copied, record, scratch_directory
from test_opening import change_description, stamps

from berkeleydb_storage import (
    BerkeleyDBStorage,
    BerkeleyDBStorageError,
    CheckpointNever,
    GarbageManual,
    LibraryMismatch,
    ReadOnlyError,
    StorageNotFound,
    environment,
)

NOBODY = 65534
STEPS = 40
OPTIONS = {"cachesize": 1 << 20, "checkpoint": CheckpointNever(), "garbage_collection": GarbageManual()}


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", 1 << 18)
    monkeypatch.setattr(environment, "LOG_BUFFER", 1 << 15)


@pytest.fixture
def place():
    """A directory that everyone may look into."""
    with scratch_directory() as path:
        path.chmod(0o755)
        yield path
        for directory, _, _ in os.walk(path):
            Path(directory).chmod(0o755)


@pytest.fixture(params=["closed", "killed"])
def example(place, request):
    """A storage at rest that nobody may write to, and its history."""
    path, history = place / "storage", History()
    working = path if request.param == "closed" else place / "working"
    working.mkdir()
    with BerkeleyDBStorage(working, **OPTIONS) as storage:
        writer = Writer(storage, 0, set_up(storage, 1, history.report)[0], history.report)
        while writer.step < STEPS:
            writer.next()
        storage.checkpoint()
        writer.next()
        if working != path:
            copied(working, path)
    (place / "tmp").mkdir(mode=0o777)
    (place / "tmp").chmod(0o777)
    protect(path)
    return path, history


def protect(path):
    for each in (*path.iterdir(), path):
        each.chmod(0o555 if each.is_dir() else 0o444)


@pytest.fixture
def temporary(place, monkeypatch):
    """The temporary directory, of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(place / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return place / "tmp"


@pytest.fixture
def unprivileged(place, temporary):
    """A function that runs a job of `crash_child` as a user who may not write to the directory."""
    children = Children(place)
    (place / "report").touch()
    (place / "report").chmod(0o666)

    def run(function, path, **arguments):
        status = children.run(function, path, user=NOBODY if os.getuid() == 0 else None, **arguments)
        return status, [json.loads(line) for line in children.reported()]

    yield run
    children.close()


def test_a_directory_that_may_not_be_written_to(example, unprivileged, temporary):
    path, history = example
    before = stamps(path)
    status, reported = unprivileged("read", path, options={"cachesize": 1 << 20})
    assert status == 0
    assert stamps(path) == before
    assert os.listdir(temporary) == []
    refused, records = reported[:-1], dict(reported[-1])
    assert [what for what, _ in refused] == ["end", "pack", "checkpoint", "repair"]
    for _, message in refused:
        assert "read-only" in message or "read_only" in message
    with BerkeleyDBStorage(copied(path, path.with_name("copy")), **OPTIONS) as storage:
        history.verify(storage)
        assert {key.hex(): row.hex() for key, row in storage.gen_oid_record()} == records


def test_a_directory_that_may_not_be_written_to_is_not_opened_for_writing(example, unprivileged):
    path, _ = example
    before = stamps(path)
    status, ((kind, message),) = unprivileged("open_and_tell", path, options={})
    assert (status, kind) == (0, "BerkeleyDBStorageError")
    assert message.startswith(
        f"{path} is not writable for this process (Permission denied): open it with read_only=True"
    )
    assert stamps(path) == before


@pytest.mark.parametrize("name", ["objects.db", "storage.json", "lock", "."])
def test_a_file_that_may_not_be_read(example, unprivileged, name):
    path, _ = example
    (path / name).chmod(0o000 if name != "." else 0o311)
    status, ((kind, message),) = unprivileged("open_and_tell", path, options={"read_only": True})
    assert (status, kind) == (0, "BerkeleyDBStorageError"), message
    assert str(path) in message
    assert "mend its permissions" in message or "TMPDIR" in message


def test_the_one_who_may_write_does_not(example, temporary):
    """As root, or whoever owns the files: nothing is written all the same."""
    path, history = example
    for each in (path, *path.iterdir()):
        each.chmod(0o777)
    before = stamps(path)
    with BerkeleyDBStorage(path, read_only=True) as one, BerkeleyDBStorage(path, readonly=True) as two:
        for storage in (one, two):
            history.verify(storage)
            assert not storage.check().faults
            assert storage.statistics().recovered == bool(os.listdir(temporary))
            storage.new_oid()
            storage.begin()
            storage.store(record(0)[:8], record(0))
            with pytest.raises(ReadOnlyError, match="was opened read-only: nothing was stored"):
                storage.end()
            with pytest.raises(ReadOnlyError, match="was opened read-only: it cannot be packed"):
                storage.pack()
            with pytest.raises(ReadOnlyError, match="was opened read-only: there is nothing to checkpoint"):
                storage.checkpoint()
            with pytest.raises(BerkeleyDBStorageError):
                storage.migrate([])
            assert list(storage.get_packer()) == []
            history.verify(storage)
    assert stamps(path) == before
    assert os.listdir(temporary) == []


def test_an_empty_storage_refuses_a_migration(place):
    path = place / "empty"
    path.mkdir()
    BerkeleyDBStorage(path).close()
    before = stamps(path)
    with (
        BerkeleyDBStorage(path, read_only=True) as storage,
        pytest.raises(ReadOnlyError, match="was opened read-only: nothing was stored"),
    ):
        storage.migrate([(record(0)[:8], record(0))])
    assert stamps(path) == before


def test_a_copy_that_finds_no_room_is_an_error_that_says_where(example, place, temporary, monkeypatch):
    path, _ = example
    if json.loads((path / "storage.json").read_text())["state"] == "closed":
        BerkeleyDBStorage(path, read_only=True).close()
        return
    before = stamps(path)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(
        BerkeleyDBStorageError, match=r"cannot be copied into .*No space left.*: set TMPDIR to a directory"
    ):
        BerkeleyDBStorage(path, read_only=True)
    assert stamps(path) == before
    assert os.listdir(temporary) == []


def full(source, target):
    raise OSError(28, "No space left on device", str(target))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"format": 0}, BerkeleyDBStorageError, "has format 0, and this version of the package cannot upgrade it to 3"),
        ({"library": "6.2.32"}, LibraryMismatch, r"was written by Berkeley DB 6\.2\.32, and this is"),
        ({"state": "creating"}, StorageNotFound, "holds no storage yet: open it for writing once"),
    ],
)
def test_what_is_refused(example, changes, error, match):
    path, _ = example
    (path / "storage.json").chmod(0o644)
    change_description(path, **changes)
    before = stamps(path)
    with pytest.raises(error, match=match):
        BerkeleyDBStorage(path, read_only=True)
    assert stamps(path) == before


def test_a_copy_without_its_lock_is_not_said_to_be_empty(example):
    path, _ = example
    path.chmod(0o755)
    (path / "lock").unlink()
    with pytest.raises(StorageNotFound, match="has no lock file: open it for writing once"):
        BerkeleyDBStorage(path, read_only=True)


def test_a_reader_that_is_killed_leaves_the_storage_as_it_was(example, temporary):
    """Its copy stays in the temporary directory; the next reader makes one of its own."""
    path, history = example
    before = stamps(path)
    text = (
        "import os, sys; from berkeleydb_storage import BerkeleyDBStorage; "
        "BerkeleyDBStorage(sys.argv[1], read_only=True); os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.run([sys.executable, "-c", text, str(path)], env=environment, capture_output=True, check=False)
    assert killed.returncode == -9
    with BerkeleyDBStorage(path, read_only=True) as storage:
        history.verify(storage)
    assert stamps(path) == before
