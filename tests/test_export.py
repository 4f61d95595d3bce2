"""The way home: a FileStorage that Durus opens, with the same objects, or no file at all."""

import errno
import os
import resource
import tracemalloc
from contextlib import closing

import durusfiles
import pytest
from durus.connection import Connection
from durus.file import File
from durus.file_storage import FileStorage
from durus.shelf import Shelf
from graphs import hand_out, oid, record, scratch_directory, scratch_storage
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage import BerkeleyDBStorageError
from berkeleydb_storage import export as module
from berkeleydb_storage.export import export, new_file
from berkeleydb_storage.sources import open_source

EXAMPLES = 40


def fill(storage, numbers):
    """Put objects with these oids into an empty storage, all referred to by the root."""
    numbers = sorted({0, *numbers})
    records = [(oid(n), record(n, *(numbers if n == 0 else ()), data=b"%d" % n)) for n in numbers]
    storage.migrate(records)
    return dict(records)


@pytest.mark.parametrize("type", ["btree", "hash"])
@pytest.mark.parametrize("packed", [False, True], ids=["grown", "packed"])
def test_there_and_back(packed, type, tmp_path, open_storage):
    source = durusfiles.make(tmp_path / "there", packed=packed)
    storage = open_storage(type=type)
    with open_source(source) as opened:
        storage.migrate(opened.records)
    assert export(storage, tmp_path / "back") == storage.get_size()
    assert durusfiles.contents(tmp_path / "back") == durusfiles.contents(source)
    with closing(FileStorage(str(tmp_path / "back"))) as home:
        connection = Connection(home)
        tree = connection.get_root()["tree"]
        assert list(tree) == list(range(1, durusfiles.ITEMS, 2))
        tree[0] = "again"
        connection.commit()
        home.pack()
    assert len(durusfiles.contents(tmp_path / "back")) <= len(durusfiles.contents(source))


@given(st.sets(st.integers(1, 300), max_size=30))
@settings(max_examples=EXAMPLES, deadline=None)
def test_the_file_is_byte_for_byte_what_durus_would_write(numbers):
    """Its map of offsets, with the chain of the holes, too."""
    with scratch_directory() as directory, scratch_storage() as storage:
        expected = fill(storage, numbers)
        export(storage, directory / "ours")
        with closing(File(str(directory / "theirs"))) as file:
            for _ in Shelf.generate_shelf(file, iter(sorted(expected.items()))):
                pass
        assert (directory / "ours").read_bytes() == (directory / "theirs").read_bytes()


def test_new_objects_take_the_holes(tmp_path, open_storage):
    storage = open_storage()
    fill(storage, [1, 2, 5, 6, 9])
    export(storage, tmp_path / "file")
    with closing(FileStorage(str(tmp_path / "file"))) as home:
        assert {home.new_oid() for _ in range(6)} == set(map(oid, [3, 4, 7, 8, 10, 11]))


def test_a_storage_without_objects(tmp_path, open_storage):
    assert export(open_storage(), tmp_path / "file") == 0
    FileStorage(str(tmp_path / "theirs")).close()
    assert (tmp_path / "file").read_bytes() == (tmp_path / "theirs").read_bytes()
    with closing(FileStorage(str(tmp_path / "file"))) as home:
        assert dict(Connection(home).get_root()) == {}


def test_garbage_comes_along(tmp_path, open_storage):
    storage = open_storage()
    rows = [(oid(n), record(n)) for n in range(3)]
    storage.migrate(rows)
    assert storage.statistics().garbage == 2
    export(storage, tmp_path / "file")
    assert durusfiles.contents(tmp_path / "file") == dict(rows)


def test_a_large_record(tmp_path, open_storage):
    storage = open_storage()
    row = (oid(0), record(0, data=bytes(3 << 20)))
    storage.migrate([row])
    export(storage, tmp_path / "file")
    assert durusfiles.contents(tmp_path / "file") == dict([row])


def test_a_read_only_storage(tmp_path, open_storage):
    storage = open_storage()
    expected = fill(storage, range(5))
    storage.close()
    export(open_storage(read_only=True), tmp_path / "file")
    assert durusfiles.contents(tmp_path / "file") == expected


@pytest.mark.parametrize("there", ["file", "directory", "dangling link"])
def test_what_exists_is_not_replaced(there, tmp_path, open_storage):
    path = tmp_path / "home"
    if there == "file":
        path.write_text("precious")
    elif there == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="exists, and is not replaced"):
        export(open_storage(), path)
    assert sorted(os.listdir(tmp_path)) == ["home", "storage"]
    assert there != "file" or path.read_text() == "precious"


def test_what_appears_meanwhile_is_not_replaced(tmp_path, open_storage):
    def appear(activity, number):
        (tmp_path / "file").write_text("precious")

    storage = open_storage()
    fill(storage, range(5))
    with pytest.raises(FileExistsError):
        export(storage, tmp_path / "file", appear)
    assert (tmp_path / "file").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["file", "storage"]


@pytest.mark.parametrize("when", ["exporting", "indexing", "verifying"])
def test_an_interruption_leaves_nothing(when, tmp_path, open_storage):
    def interrupt(activity, number):
        if activity == when:
            assert not (tmp_path / "file").exists()
            raise KeyboardInterrupt

    storage = open_storage()
    fill(storage, range(5))
    with pytest.raises(KeyboardInterrupt):
        export(storage, tmp_path / "file", interrupt)
    assert os.listdir(tmp_path) == ["storage"]


def test_what_a_killed_one_left_is_overwritten(tmp_path, open_storage):
    storage = open_storage()
    expected = fill(storage, range(5))
    (tmp_path / "file.new").write_bytes(b"half a file" * 1000)
    export(storage, tmp_path / "file")
    assert durusfiles.contents(tmp_path / "file") == expected
    assert sorted(os.listdir(tmp_path)) == ["file", "storage"]


def test_two_at_once(tmp_path, open_storage):
    with new_file(tmp_path / "file") as (file, temporary):
        file.write(b"mine")
        with pytest.raises(BerkeleyDBStorageError, match=r"file\.new is in use: another process is writing"):
            export(open_storage(), tmp_path / "file")
        assert temporary.exists()
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_file_is_readable_for_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        with new_file(tmp_path / "file"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def damage(path, where):
    """Change a byte of the file that is being written, as a disk that does not keep what it was given."""
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("where", [60, 30, -1, 3], ids=["record", "oid", "map", "prefix"])
def test_what_is_read_back_is_compared(where, tmp_path, open_storage, monkeypatch):
    verify = module._verify
    monkeypatch.setattr(module, "_verify", lambda path, *rest: (damage(path, where), verify(path, *rest)))
    storage = open_storage()
    fill(storage, range(5))
    with pytest.raises(BerkeleyDBStorageError, match="read back, is not what was written"):
        export(storage, tmp_path / "file")
    assert os.listdir(tmp_path) == ["storage"]


def test_no_room(tmp_path, open_storage):
    """The file may not grow beyond a limit, as on a full disk."""
    storage = open_storage()
    storage.migrate([(oid(0), record(0, data=bytes(300_000)))])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            export(storage, tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["storage"]


def test_a_directory_that_does_not_exist(tmp_path, open_storage):
    with pytest.raises(FileNotFoundError):
        export(open_storage(), tmp_path / "nowhere" / "file")


def test_progress(tmp_path, open_storage, monkeypatch):
    monkeypatch.setattr(module, "REPORT_EVERY", 2)
    monkeypatch.setattr(module, "WORDS", 4)
    storage = open_storage()
    fill(storage, range(5))
    told = []
    export(storage, tmp_path / "file", lambda *what: told.append(what))
    expected = [("exporting", 2), ("exporting", 4), ("exporting", 5), ("indexing", 0), ("indexing", 4)]
    assert told == [*expected, ("verifying", 2), ("verifying", 4), ("verifying", 5)]


def test_memory_does_not_grow_with_the_storage():
    def peak(count):
        with scratch_directory() as directory, scratch_storage() as storage:
            fill(storage, range(count))
            hand_out(storage, count)
            tracemalloc.start()
            try:
                export(storage, directory / "file")
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    few, many = peak(3000), peak(15_000)
    assert many < few * 1.3, (few, many)
