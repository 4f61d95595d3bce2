"""The lock, what is known about the files before the library opens them, and what is refused."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from berkeleydb_storage.directory import CLOSED, DESCRIPTION, LOCK, OPEN, Description, Directory
from berkeleydb_storage.errors import (
    BerkeleyDBStorageError,
    DamagedError,
    NewerFormat,
    NotAStorage,
    StorageInUse,
    StorageNotFound,
)
from berkeleydb_storage.format import FORMAT_VERSION

DESCRIBED = Description(FORMAT_VERSION, "5.3.28", "btree", CLOSED, 3, 5, 4, 1000, {"objects.db": 8192}, True)

HOLDER = """
import sys
from berkeleydb_storage.directory import Directory
directory = Directory(sys.argv[1])
directory.acquire(read_only=sys.argv[2] == "reader")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """Returns a function that lets another process hold the directory; gives its pid."""
    processes = []

    def hold(how):
        command = [sys.executable, "-c", HOLDER, str(tmp_path), how]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout.readline() == b"held\n"
        return process.pid

    yield hold
    for process in processes:
        process.communicate()
        assert process.returncode == 0


def contents(path):
    return {name: (path / name).read_bytes() for name in os.listdir(path)}


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(StorageNotFound, match="nowhere does not exist: create the directory first") as caught:
        Directory(tmp_path / "nowhere")
    assert isinstance(caught.value, FileNotFoundError)


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"anything")
    with pytest.raises(NotAStorage, match=r"file is not a directory: a storage is a directory$"):
        Directory(tmp_path / "file")


@pytest.mark.parametrize("start", [b"SHELF-1\n", b"DFS20\0", b"SQLite format 3\0"])
def test_a_durus_file_is_recognised(tmp_path, start):
    (tmp_path / "file").write_bytes(start + b"and more")
    with pytest.raises(NotAStorage, match=r"this is a Durus storage file, which `durus-bdb migrate .*file DIRECTORY`"):
        Directory(tmp_path / "file")


def test_something_that_cannot_be_read_as_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotAStorage, match=r"pipe is not a directory: a storage is a directory$"):
        Directory(tmp_path / "pipe")


def test_looking_at_a_path_touches_nothing(tmp_path):
    Directory(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_path_may_be_a_string(tmp_path):
    assert Directory(str(tmp_path)).path == tmp_path


def test_the_lock_names_its_holder(tmp_path):
    one = Directory(tmp_path)
    one.acquire(read_only=False)
    assert (tmp_path / LOCK).read_bytes() == b"%d\n" % os.getpid()
    one.release()
    one.release()


def test_a_second_opening_in_this_process(tmp_path):
    one, other = Directory(tmp_path), Directory(tmp_path)
    one.acquire(read_only=False)
    with pytest.raises(StorageInUse, match=rf"in use by this process \({os.getpid()}\).*close it there") as caught:
        other.acquire(read_only=False)
    assert caught.value.pid == os.getpid()
    one.release()
    other.acquire(read_only=False)
    other.release()


def test_another_process_that_owns_it_is_named(tmp_path, held):
    pid = held("owner")
    (tmp_path / DESCRIPTION).touch()
    for read_only in (False, True):
        with pytest.raises(StorageInUse, match=f"in use by process {pid}: close it there, or share it") as caught:
            Directory(tmp_path).acquire(read_only=read_only)
        assert caught.value.pid == pid
    assert (tmp_path / LOCK).read_bytes() == b"%d\n" % pid


def test_readers_share_it_and_keep_an_owner_out(tmp_path, held):
    (tmp_path / DESCRIPTION).touch()
    (tmp_path / LOCK).touch()
    held("reader")
    reader = Directory(tmp_path)
    reader.acquire(read_only=True)
    reader.release()
    with pytest.raises(StorageInUse, match="in use by another process that reads it") as caught:
        Directory(tmp_path).acquire(read_only=False)
    assert caught.value.pid is None


def test_a_reader_that_keeps_an_owner_out_is_not_mistaken_for_the_last_owner(tmp_path, held):
    owner = Directory(tmp_path)
    owner.acquire(read_only=False)
    (tmp_path / DESCRIPTION).touch()
    owner.release()
    held("reader")
    with pytest.raises(StorageInUse, match="another process that reads it") as caught:
        Directory(tmp_path).acquire(read_only=False)
    assert caught.value.pid is None


def test_the_lock_goes_with_its_process(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "owner"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    process.kill()
    process.communicate()
    later = Directory(tmp_path)
    later.acquire(read_only=False)
    assert (tmp_path / LOCK).read_bytes() == b"%d\n" % os.getpid()
    later.release()


def test_a_failing_lock_is_not_taken_for_a_holder(tmp_path, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No locks available"):
        Directory(tmp_path).acquire(read_only=False)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_directory_that_may_not_be_written_to(tmp_path, monkeypatch, error):
    def refuse(path, flags, mode):
        raise OSError(error, os.strerror(error), path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BerkeleyDBStorageError, match=r"is not writable for this process .*open it with read_only=True"):
        Directory(tmp_path).acquire(read_only=False)


def test_other_errors_of_the_system_are_passed_on(tmp_path, monkeypatch):
    def refuse(path, flags, mode):
        raise OSError(errno.EMFILE, "Too many open files", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        Directory(tmp_path).acquire(read_only=False)


def test_reading_where_there_is_nothing(tmp_path):
    with pytest.raises(StorageNotFound, match="holds no storage yet: open it for writing once"):
        Directory(tmp_path).acquire(read_only=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["__db.001", "log.0000000001", "objects.db", "durus.db"])
def test_another_berkeley_db_environment_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    for read_only in (False, True):
        with pytest.raises(NotAStorage, match=rf"Berkeley DB environment that .* not write.*UPGRADING.*\({name}\)"):
            Directory(tmp_path).acquire(read_only=read_only)
    assert contents(tmp_path) == {name: b"precious"}


def test_other_files_are_refused(tmp_path):
    for name in "dcba":
        (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(NotAStorage, match=r"holds files of something else \(a, b, c\): a new storage needs an empty"):
        Directory(tmp_path).acquire(read_only=False)
    assert contents(tmp_path) == dict.fromkeys("abcd", b"precious")


@pytest.mark.parametrize("name", [".gitignore", ".", "lost+found"])
def test_some_files_are_in_nobodys_way(tmp_path, name):
    (tmp_path / name).mkdir(exist_ok=True)
    one = Directory(tmp_path)
    one.acquire(read_only=False)
    one.release()


def test_a_description_is_read_as_it_was_written(tmp_path):
    one = Directory(tmp_path)
    assert one.read() is None
    one.write(DESCRIBED)
    assert one.read() == DESCRIBED
    assert os.listdir(tmp_path) == [DESCRIPTION]


def test_the_description_is_this(tmp_path):
    Directory(tmp_path).write(DESCRIBED)
    assert json.loads((tmp_path / DESCRIPTION).read_text()) == {
        "format": 3,
        "library": "5.3.28",
        "type": "btree",
        "state": "closed",
        "first_log": 3,
        "last_log": 5,
        "checkpoint_log": 4,
        "checkpoint_offset": 1000,
        "sizes": {"objects.db": 8192},
        "durable": True,
    }


@pytest.mark.parametrize("version", [1, 2])
def test_that_of_an_older_format_has_no_key_that_its_release_does_not_know(tmp_path, version):
    """It opens what an upgrade left behind that did not succeed."""
    Directory(tmp_path).write(replace(DESCRIBED, format=version))
    assert "durable" not in json.loads((tmp_path / DESCRIPTION).read_text())
    assert Directory(tmp_path).read() == replace(DESCRIBED, format=version, durable=False)


def test_single_values_are_replaced(tmp_path):
    one = Directory(tmp_path)
    one.write(DESCRIBED)
    changed = one.update(state=OPEN, last_log=7)
    assert changed == replace(DESCRIBED, state=OPEN, last_log=7)
    assert one.read() == changed


def test_what_does_not_change_is_not_written(tmp_path):
    one = Directory(tmp_path)
    one.write(DESCRIBED)
    before = (tmp_path / DESCRIPTION).stat().st_ino
    assert one.update(state=CLOSED) == DESCRIBED
    assert (tmp_path / DESCRIPTION).stat().st_ino == before


def test_a_description_that_is_gone_cannot_be_changed(tmp_path):
    with pytest.raises(DamagedError, match=r"storage\.json is gone: restore it from a backup"):
        Directory(tmp_path).update(state=OPEN)


def test_a_description_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    one = Directory(tmp_path)
    one.write(DESCRIBED)

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        one.update(state=OPEN)
    assert one.read() == DESCRIBED


def test_the_new_description_and_its_name_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").readlink()), fsync(fd)))
    Directory(tmp_path).write(DESCRIBED)
    assert synced == [tmp_path / (DESCRIPTION + ".new"), tmp_path]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '"text"', "{}", '{"format": 1}', '{"format": "x"}', '{"format": null}', "\udcff"],
)
def test_a_damaged_description_is_named(tmp_path, text):
    (tmp_path / DESCRIPTION).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DamagedError, match=r"storage\.json is damaged \(.*\): restore it from a backup"):
        Directory(tmp_path).read()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "1"},
        {"format": 1.5},
        {"format": True},
        {"format": -1},
        {"library": 5},
        {"library": "five"},
        {"type": "heap"},
        {"state": "half open"},
        {"durable": 1},
        {"durable": None},
        {"first_log": "1"},
        {"last_log": None},
        {"first_log": -1},
        {"color": "blue"},
    ],
)
def test_a_description_with_impossible_values_is_damaged(tmp_path, change):
    one = Directory(tmp_path)
    one.write(DESCRIBED)
    values = json.loads((tmp_path / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(json.dumps(values | change))
    with pytest.raises(DamagedError, match=r"storage\.json is damaged"):
        one.read()


def test_a_newer_format_is_refused_whatever_else_it_says(tmp_path):
    (tmp_path / DESCRIPTION).write_text('{"format": 4, "engine": "quantum"}')
    with pytest.raises(NewerFormat, match=r"has format 4, and this version .* up to 3: install a newer durus-berkeley"):
        Directory(tmp_path).read()
    assert contents(tmp_path) == {DESCRIPTION: b'{"format": 4, "engine": "quantum"}'}
