"""Whatever Durus has written is recognised, and read as Durus reads it; what is cut off or damaged is refused."""

import fcntl
import os
import sqlite3
import tracemalloc
from contextlib import closing, suppress

import durusfiles
import pytest
from durus.file_storage import FileStorage
from graphs import oid, record, scratch_directory
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage import BerkeleyDBStorageError, MigrationError, StorageInUse, StorageNotFound
from berkeleydb_storage import sources as module
from berkeleydb_storage.sources import open_source
from berkeleydb_storage.window import WINDOW

EXAMPLES = 100
KINDS = sorted(durusfiles.KINDS)
FILES = ["FileStorage", "FileStorage2"]


def read(path, progress=None):
    """Return kind and records, after a look at what holds for every source."""
    with open_source(path, progress) as source:
        rows = list(source.records)
    assert [key for key, _ in rows] == sorted({key for key, _ in rows}), "each once, in the order of the oids"
    assert source.total == len(rows)
    return source.kind, dict(rows)


@pytest.mark.parametrize("packed", [False, True], ids=["grown", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_test_program(kind, packed, tmp_path):
    path = durusfiles.make(tmp_path / "file", kind, packed=packed)
    expected = durusfiles.contents(path, kind)
    assert len(expected) > durusfiles.ITEMS / 40
    assert read(path) == (kind, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_storage_without_objects(kind, tmp_path):
    durusfiles.KINDS[kind](str(tmp_path / "file")).close()
    assert read(tmp_path / "file") == (kind, {})


@pytest.mark.parametrize("kind", KINDS)
def test_commits_after_a_pack(kind, tmp_path):
    path = durusfiles.make(tmp_path / "file", kind, packed=True)
    with closing(durusfiles.KINDS[kind](str(path))) as storage:
        durusfiles.run_program(storage, 30)
    assert read(path) == (kind, durusfiles.contents(path, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_is_not_changed(kind, tmp_path):
    path = durusfiles.make(tmp_path / "file", kind)
    before, status = path.read_bytes(), path.stat()
    path.chmod(0o444)
    read(path)
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert os.listdir(tmp_path) == ["file"]


commits = st.lists(
    st.lists(st.tuples(st.integers(0, 20), st.binary(max_size=30)), max_size=6, unique_by=lambda item: item[0]),
    max_size=6,
)


@pytest.mark.parametrize("kind", KINDS)
@given(before=commits, after=commits, packed=st.booleans())
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_history(kind, before, after, packed):
    """The last record of each object counts, whether it was committed before or after a pack."""

    def batches(history):
        return [[(oid(key), record(key, data=data)) for key, data in batch] for batch in history]

    with scratch_directory() as directory:
        root = [(oid(0), record(0, data=b"root"))]
        path = durusfiles.write(directory / "file", [root, *batches(before)], kind)
        if packed:
            with closing(durusfiles.KINDS[kind](str(path))) as storage:
                durusfiles.pack(storage)
        durusfiles.write(path, batches(after), kind)
        assert read(path) == (kind, durusfiles.contents(path, kind))


@pytest.mark.parametrize("kind", FILES)
def test_records_around_the_size_of_the_window(kind, tmp_path):
    around = [factor * WINDOW + more for factor in (0, 1, 3) for more in range(-40, 41, 8)]
    rows = [(oid(0), record(0))] + [(oid(n), record(n, data=bytes(max(0, size)))) for n, size in enumerate(around, 1)]
    path = durusfiles.write(tmp_path / "file", [rows, rows[5:9]], kind)
    assert read(path) == (kind, dict(rows))


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_gets_shorter_while_it_is_read(kind, tmp_path):
    rows = [(oid(n), record(n, data=bytes(WINDOW))) for n in range(10)]
    path = durusfiles.write(tmp_path / "file", [rows], kind)
    with open_source(path) as source:
        assert next(source.records) == rows[0]
        os.truncate(path, 3 * WINDOW)
        with pytest.raises(MigrationError, match="was cut off while it was read"):
            list(source.records)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_cut_off_anywhere(kind, tmp_path):
    """It is refused where Durus refuses it, and read as Durus reads it elsewhere: at the end of a commit."""
    rows = [[(oid(0), record(0, 1))], [(oid(1), record(1, data=b"one")), (oid(2), record(2))], [(oid(1), record(1))]]
    whole = durusfiles.write(tmp_path / "whole", rows, kind).read_bytes()
    read_to_the_end = 0
    for size in range(20, len(whole)):
        path = tmp_path / f"cut-{size}"
        path.write_bytes(whole[:size])
        try:
            expected = durusfiles.contents(path, kind)
        except Exception:
            with pytest.raises(MigrationError, match=r"is cut off or damaged: .* at offset"):
                read(path)
        else:
            read_to_the_end += 1
            assert read(path) == (kind, expected)
    assert read_to_the_end == len(rows)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("size", range(20))
def test_a_file_with_hardly_a_beginning(kind, size, tmp_path):
    path = durusfiles.make(tmp_path / "file", kind, 1)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(MigrationError):
        read(path)


@pytest.mark.parametrize("kind", FILES)
@given(st.data())
@settings(max_examples=EXAMPLES * 3, deadline=None)
def test_a_file_with_damage_ends_in_a_clear_error_or_in_records(kind, data):
    with scratch_directory() as directory:
        rows = [[(oid(key), record(key, key + 1)) for key in range(5)], [(oid(3), record(3))]]
        content = bytearray(durusfiles.write(directory / "file", rows, kind).read_bytes())
        where = data.draw(st.integers(0, len(content) - 1))
        content[where] ^= data.draw(st.integers(1, 255))
        (directory / "file").write_bytes(content)
        with suppress(MigrationError):
            read(directory / "file")


def test_a_record_with_an_impossible_length_is_located(tmp_path):
    path = durusfiles.write(tmp_path / "file", [[(oid(0), record(0))]])
    content = bytearray(path.read_bytes())
    where = content.index(oid(0) + record(0)) - 8
    content[where : where + 8] = (7).to_bytes(8, "big")
    path.write_bytes(content)
    with pytest.raises(MigrationError, match=f"the record at offset {where} has an impossible length"):
        read(path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(StorageNotFound, match="nothing does not exist"):
        read(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "it is empty"), (b"From: ada", "begins with b'From: ad'"), (b"SHELF-2\n" + bytes(99), "SHELF-2")],
)
def test_what_is_no_storage(content, what, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(MigrationError, match="is not a storage of Durus") as caught:
        read(tmp_path / "file")
    assert what in str(caught.value)


def test_a_file_that_a_process_writes_to(tmp_path):
    path = durusfiles.make(tmp_path / "file")
    with closing(FileStorage(str(path))), pytest.raises(StorageInUse, match="in use by another process"):
        read(path)
    read(path)


def test_a_source_that_is_open_cannot_be_opened_for_writing(tmp_path):
    path = durusfiles.make(tmp_path / "file")
    with open_source(path), path.open("r+b") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sqlite_file(path, *statements):
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return path


@pytest.mark.parametrize(
    ("statements", "what"),
    [
        (["CREATE TABLE other (id)"], "no such table: objects"),
        (["CREATE TABLE objects (id integer primary key)"], "no such column: data"),
    ],
)
def test_an_sqlite_file_of_something_else(statements, what, tmp_path):
    path = sqlite_file(tmp_path / "file", *statements)
    with pytest.raises(MigrationError, match=f"cannot be read as a SqliteStorage of Durus: {what}"):
        read(path)


@pytest.mark.parametrize("values", ["1, NULL, x''", "1, x'', 5", "-1, x'', x''"])
def test_an_sqlite_row_that_durus_did_not_write(values, tmp_path):
    path = durusfiles.make(tmp_path / "file", "SqliteStorage")
    sqlite_file(path, "DELETE FROM objects WHERE id = 1", f"INSERT INTO objects VALUES ({values})")
    with pytest.raises(MigrationError, match=r"the row of object -?1 is not one of Durus"):
        read(path)


def test_a_damaged_sqlite_file(tmp_path):
    path = durusfiles.make(tmp_path / "file", "SqliteStorage")
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(MigrationError, match="cannot be read as a SqliteStorage"):
        read(path)


def test_the_file_name_may_have_any_characters(tmp_path):
    path = durusfiles.make(tmp_path / "a?b#c %41.sqlite", "SqliteStorage", 3)
    assert read(path)[1] == durusfiles.contents(path, "SqliteStorage")


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_one_of_our_own(type, open_storage, directory):
    storage = open_storage(type=type)
    durusfiles.run_program(storage)
    expected = dict(storage.gen_oid_record())
    storage.close()
    assert read(directory) == ("BerkeleyDBStorage", expected)


def test_one_of_our_own_in_use(open_storage, directory):
    open_storage()
    with pytest.raises(StorageInUse):
        read(directory)


def test_a_directory_of_something_else(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear Ada,")
    with pytest.raises(BerkeleyDBStorageError, match="holds"):
        read(tmp_path)


def test_progress_is_told_of_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REPORT_EVERY", 10)
    path = durusfiles.write(tmp_path / "file", [[(oid(key), record(key)) for key in range(25)]])
    told = []
    read(path, lambda *what: told.append(what))
    assert told == [("indexing", 10), ("indexing", 20)]


def test_an_interrupted_index_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REPORT_EVERY", 10)
    path = durusfiles.write(tmp_path / "file", [[(oid(key), record(key)) for key in range(25)]])

    def interrupt(activity, number):
        raise KeyboardInterrupt

    before = set(os.listdir("/dev/fd"))
    with pytest.raises(KeyboardInterrupt):
        read(path, interrupt)
    assert set(os.listdir("/dev/fd")) == before


@given(st.lists(st.tuples(st.integers(0, 3 * module.PAGE) | st.integers(0, (1 << 64) - 1), st.integers(1, 1 << 62))))
@settings(max_examples=EXAMPLES, deadline=None)
def test_the_index_is_a_sorted_dict(items):
    with closing(module._Index()) as index:
        for number, offset in items:
            index.add(number, offset)
        assert list(index) == sorted(dict(items).items())
        assert len(index) == len(dict(items))


def test_memory_does_not_grow_with_the_source(tmp_path):
    """A file of one commit after another, of which Durus would keep an index in memory."""
    path = tmp_path / "file"
    batches = (
        [(oid(number), record(number, data=bytes(80))) for number in range(n, n + 500)] for n in range(0, 20_000, 500)
    )
    durusfiles.write(path, batches)
    tracemalloc.start()
    try:
        with open_source(path) as source:
            assert sum(1 for _ in source.records) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000, peak


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_program_in_its_original_size(kind, tmp_path, open_storage):
    path = durusfiles.make(tmp_path / "file", kind, 65_536)
    storage = open_storage()
    with open_source(path) as source:
        assert storage.migrate(source.records) == source.total
    assert dict(storage.gen_oid_record()) == durusfiles.contents(path, kind)
