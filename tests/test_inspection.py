"""What can be told about a storage: its figures, from inside and outside, its classes, and its records."""

import dataclasses
import os
import time
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import durusfiles
import pytest
from durus.error import DurusKeyError
from durus.storage import get_census
from graphs import commit, copied, oid, record, scratch_storage
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage import (
    DamagedError,
    GarbageManual,
    MigrationError,
    NotAStorage,
    StorageClosed,
    StorageInUse,
    StorageNotFound,
    inspection,
)
from berkeleydb_storage.environment import LIBRARY, TABLES
from berkeleydb_storage.format import FORMAT_VERSION

EXAMPLES = 30


@pytest.fixture
def full(open_storage):
    """A storage, closed, in which the test program ran; then one object lost its referrer."""
    storage = open_storage(garbage_collection=GarbageManual())
    durusfiles.run_program(storage)
    storage.close()
    return storage.get_filename()


def crashed(path, copy):
    """Copy the files of an open storage, as a crash would leave them."""
    copied(path, copy)
    return copy


@contextmanager
def not_writable(path):
    """Take the permission to write, also of root as far as the mode goes."""
    names = [Path(path), *Path(path).iterdir()]
    for name in names:
        name.chmod(0o555 if name.is_dir() else 0o444)
    try:
        yield
    finally:
        for name in names:
            name.chmod(0o755 if name.is_dir() else 0o644)


def snapshot(path):
    return {name: Path(path, name).read_bytes() for name in os.listdir(path)}


def test_outside_of_a_closed_storage(full):
    seen = inspection.outside(full)
    assert (seen.path, seen.format, seen.library, seen.type) == (full, FORMAT_VERSION, LIBRARY, "btree")
    assert (seen.state, seen.pid) == ("closed", None)
    assert {size.name for size in seen.tables} == {f"{name}.db" for name in TABLES}
    assert [size.name for size in seen.logs] == sorted(name for name in os.listdir(full) if name.startswith("log."))
    for size in (*seen.tables, *seen.logs):
        status = Path(full, size.name).stat()
        assert (size.bytes, size.disk) == (status.st_size, status.st_blocks * 512)
    assert seen.disk == sum(size.disk for size in (*seen.tables, *seen.logs))


def test_outside_of_an_open_storage(open_storage, directory):
    open_storage(type="hash")
    seen = inspection.outside(directory, 42)
    assert (seen.state, seen.type, seen.pid) == ("open", "hash", 42)


def test_outside_of_none(tmp_path):
    with pytest.raises(StorageNotFound, match="holds no storage"):
        inspection.outside(tmp_path)
    with pytest.raises(StorageNotFound, match="does not exist"):
        inspection.outside(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(NotAStorage):
        inspection.outside(tmp_path / "file")


def test_figures(open_storage):
    storage = open_storage(garbage_collection=GarbageManual())
    before = time.time()
    durusfiles.run_program(storage)
    found = inspection.figures(storage)
    known = storage.statistics()
    assert found.objects == known.objects == storage.get_size()
    assert found.garbage == known.garbage
    assert found.suspects == known.suspects
    assert found.transactions == 4
    assert before - 1 < found.last_transaction <= time.time()
    assert found.cache_bytes >= 64 << 20
    assert 0.5 < found.cache_hit_rate < 1
    assert found.cache_hit_rate == found.cache_hits / (found.cache_hits + found.cache_misses)
    assert found.log_since_checkpoint > 0
    assert (found.checkpoints, found.collected, found.recovered) == (0, 0, False)


def test_the_age_of_garbage(open_storage):
    storage = open_storage(garbage_collection=GarbageManual())
    storage.migrate([(oid(0), record(0, 1)), (oid(1), record(1))])
    assert inspection.figures(storage).garbage_age is None
    before = time.time()
    commit(storage, record(0))
    found = inspection.figures(storage)
    assert found.garbage == 1
    assert 0 <= found.garbage_age <= time.time() - before + 1
    storage.pack()
    found = inspection.figures(storage)
    assert (found.garbage, found.garbage_age, found.collected) == (0, None, 1)


def test_figures_of_a_closed_storage(open_storage):
    storage = open_storage()
    storage.close()
    with pytest.raises(StorageClosed):
        inspection.figures(storage)


def test_no_hit_rate_where_nothing_was_asked_for():
    zeros = {field.name: 0 for field in dataclasses.fields(inspection.Inside)}
    unknown = inspection.Inside(**zeros)
    assert unknown.cache_hit_rate is None


def test_stat_writes_nothing(full):
    before = snapshot(full)
    with not_writable(full):
        outside, inside = inspection.stat(full)
    assert snapshot(full) == before
    assert outside == inspection.outside(full)
    assert inside.objects > durusfiles.ITEMS / 40
    assert inside.transactions == 4
    assert not inside.recovered


def test_stat_of_a_storage_in_use(open_storage, directory):
    open_storage()
    outside, inside = inspection.stat(directory)
    assert inside.objects == 0
    assert (outside.pid, outside.state) == (os.getpid(), "open")


def test_stat_of_a_storage_that_others_read(full, open_storage):
    open_storage(read_only=True)
    assert inspection.stat(full)[1].objects


def test_stat_of_a_storage_that_crashed(open_storage, directory, tmp_path):
    storage = open_storage()
    durusfiles.run_program(storage)
    copy = crashed(directory, tmp_path / "copy")
    before = snapshot(copy)
    outside, inside = inspection.stat(copy)
    assert (outside.state, outside.pid, inside.recovered) == ("open", None, True)
    assert inside.objects == storage.get_size()
    assert snapshot(copy) == before


def test_stat_of_a_storage_that_is_not_created_yet(full):
    description = Path(full, "storage.json")
    whole = description.read_text()
    description.write_text(whole.replace('"closed"', '"creating"'))
    outside, inside = inspection.stat(full)
    description.write_text(whole)
    assert (outside.state, inside) == ("creating", None)


def test_stat_of_a_damaged_storage(full):
    meta = Path(full, "meta.db")
    whole = meta.read_bytes()
    meta.unlink()
    with pytest.raises(DamagedError, match=r"meta\.db is missing"):
        inspection.stat(full)
    meta.write_bytes(whole)


@pytest.mark.parametrize(("read_only", "repair", "writable"), [(True, False, 0), (False, False, 0), (False, True, 1)])
def test_a_clean_storage_is_opened_for_writing_only_to_repair(full, read_only, repair, writable):
    with inspection.open_gently(full, read_only=read_only, repair=repair, cachesize=1 << 20) as storage:
        assert storage._engine.environment.writable == writable


@pytest.mark.parametrize("read_only", [False, True])
def test_a_crashed_storage_is_recovered_in_place_unless_told_otherwise(read_only, full, open_storage, tmp_path):
    open_storage()
    copy = crashed(full, tmp_path / "copy")
    with inspection.open_gently(copy, read_only=read_only, cachesize=1 << 20) as storage:
        assert storage._engine.environment.writable is not read_only
        assert storage.statistics().recovered
    assert inspection.outside(copy).state == ("open" if read_only else "closed")


def test_a_storage_in_use_is_not_opened(open_storage, directory):
    open_storage()
    with pytest.raises(StorageInUse):
        inspection.open_gently(directory, read_only=True, cachesize=1 << 20)


def test_nothing_is_created_to_be_looked_at(tmp_path):
    with pytest.raises(StorageNotFound):
        inspection.open_gently(tmp_path, read_only=False, cachesize=1 << 20)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_census(open_storage, type):
    storage = open_storage(type=type)
    durusfiles.run_program(storage)
    lines = inspection.census(storage)
    theirs = {name.decode(): count for name, count in get_census(storage).items()}
    assert {line.name.rpartition(".")[2]: line.objects for line in lines} == theirs
    assert {line.name for line in lines} >= {"durus.btree.BTree", "durus.persistent_dict.PersistentDict"}
    assert sum(line.bytes for line in lines) == sum(len(row) for _, row in storage.gen_oid_record())
    assert [line.bytes for line in lines] == sorted((line.bytes for line in lines), reverse=True)


def test_census_of_nothing(open_storage):
    assert inspection.census(open_storage()) == []


def test_census_tells_its_progress(open_storage, monkeypatch):
    monkeypatch.setattr(inspection, "REPORT_EVERY", 10)
    storage = open_storage()
    storage.migrate([(oid(n), record(n)) for n in range(25)])
    told = []
    inspection.census(storage, lambda *what: told.append(what))
    assert told == [("counting", 10), ("counting", 20)]


def test_memory_of_a_census_does_not_grow():
    def peak(count):
        with scratch_storage() as storage:
            storage.migrate([(oid(n), record(n, data=bytes(50))) for n in range(count)])
            tracemalloc.start()
            try:
                inspection.census(storage)
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    few, many = peak(3000), peak(15_000)
    assert many < few * 1.3, (few, many)


numbers = st.integers(0, 40) | st.integers(0, (1 << 64) - 2)


@given(st.dictionaries(numbers, st.tuples(st.binary(max_size=40), st.booleans()), max_size=15))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_dump_is_loaded_as_it_was(objects):
    objects = {0: (b"", True), **objects}
    live = [number for number, (_, wanted) in objects.items() if wanted]
    rows = [(oid(n), record(n, *(live if n == 0 else ()), data=data)) for n, (data, _) in sorted(objects.items())]
    lines = []
    with scratch_storage() as one, scratch_storage() as other:
        one.migrate(rows)
        assert inspection.dump(inspection.select(one), lines.append) == len(rows)
        assert other.migrate(inspection.loaded(lines, "the dump")) == len(rows)
        assert list(other.gen_oid_record()) == rows
        assert other.statistics().garbage == one.statistics().garbage


def test_a_dump_of_some(full, open_storage):
    storage = open_storage(read_only=True)
    rows = list(inspection.select(storage, [3, 0, 3]))
    assert rows == [(oid(n), storage.load(oid(n))) for n in (3, 0, 3)]
    text = []
    inspection.dump(rows, text.append, text=True)
    assert [one.split(":")[0] for one in text] == ["object 3", "object 0", "object 3"]


def test_a_dump_of_what_is_not_there(full, open_storage):
    with pytest.raises(DurusKeyError):
        list(inspection.select(open_storage(read_only=True), [10_000_000]))


@pytest.mark.parametrize("number", [-1, 1 << 64])
def test_a_dump_of_what_cannot_be(number, full, open_storage):
    with pytest.raises(ValueError, match=f"{number} is not an oid"):
        list(inspection.select(open_storage(read_only=True), [number]))


def lines_of(*numbers):
    lines = []
    inspection.dump([(oid(n), record(n)) for n in numbers], lines.append)
    return lines


def test_empty_lines_are_passed_over():
    lines = ["\n", *lines_of(0), "  \n", *lines_of(1), ""]
    assert Counter(inspection.loaded(lines, "the dump")) == Counter([(oid(0), record(0)), (oid(1), record(1))])


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([*lines_of(0, 1), "junk\n"], "the dump, line 3: not JSON"),
        ([*lines_of(0), "\n", *lines_of(0)], "the dump, line 3: object 0 comes twice"),
        (["{}\n"], 'the dump, line 1: "oid" is None'),
        ([lines_of(0)[0][:-9]], "the dump, line 1: not JSON"),
    ],
)
def test_a_line_that_is_wrong_is_named(lines, what):
    with pytest.raises(MigrationError, match=what):
        list(inspection.loaded(lines, "the dump"))
