"""What the directory knows about its files: whether the library fits, what is missing, what is cleared and copied."""

import os
from dataclasses import replace

import pytest

from berkeleydb_storage.directory import CLOSED, DESCRIPTION, LOCK, Description, Directory
from berkeleydb_storage.environment import TABLES
from berkeleydb_storage.errors import DamagedError, LibraryMismatch
from berkeleydb_storage.files import PAGE_SIZE, log_name
from berkeleydb_storage.format import FORMAT_VERSION

DESCRIBED = Description(FORMAT_VERSION, "5.3.28", "btree", CLOSED, 3, 5)


def contents(path):
    return {name: (path / name).read_bytes() for name in os.listdir(path)}


@pytest.mark.parametrize("library", ["5.3.28", "5.3.21", "5.3"])
def test_the_patch_level_of_the_library_may_differ(tmp_path, library):
    Directory(tmp_path).verify_library(DESCRIBED, library)


@pytest.mark.parametrize("library", ["5.2.28", "6.3.28", "18.1.40", "5.30.1"])
def test_another_library_is_named(tmp_path, library):
    with pytest.raises(
        LibraryMismatch, match=f"was written by Berkeley DB 5.3.28, and this is {library}: open it with"
    ):
        Directory(tmp_path).verify_library(DESCRIBED, library)


@pytest.fixture
def complete(tmp_path):
    """A directory with all the files that a storage needs, as far as their names and sizes go."""
    for name in TABLES:
        (tmp_path / f"{name}.db").write_bytes(b"\0" * PAGE_SIZE)
    for number in range(3, 7):
        (tmp_path / log_name(number)).touch()
    return tmp_path


def test_a_complete_directory(complete):
    Directory(complete).verify_files(DESCRIBED, list(TABLES))


def test_a_missing_table_is_named(complete):
    (complete / "garbage.db").unlink()
    with pytest.raises(DamagedError, match=r"garbage\.db is missing: restore the storage from a backup"):
        Directory(complete).verify_files(DESCRIBED, list(TABLES))


def test_a_table_that_is_cut_off_is_named(complete):
    os.truncate(complete / "meta.db", PAGE_SIZE - 1)
    with pytest.raises(DamagedError, match=r"meta\.db is cut off"):
        Directory(complete).verify_files(DESCRIBED, list(TABLES))


def test_a_table_that_is_shorter_than_when_it_was_closed_is_named(complete):
    sizes = {f"{name}.db": PAGE_SIZE for name in TABLES}
    Directory(complete).verify_files(replace(DESCRIBED, sizes=sizes), list(TABLES))
    sizes["journal.db"] += 1
    with pytest.raises(DamagedError, match=r"journal\.db is cut off, it has 4096 of 4097 bytes"):
        Directory(complete).verify_files(replace(DESCRIBED, sizes=sizes), list(TABLES))


def test_a_log_without_the_newest_checkpoint_is_named(complete):
    described = replace(DESCRIBED, checkpoint_log=4, checkpoint_offset=1000)
    with pytest.raises(DamagedError, match=rf"{log_name(4)} is damaged.*the checkpoint at offset 1000 is not in it"):
        Directory(complete).verify_files(described, list(TABLES))


@pytest.mark.parametrize("missing", [3, 4, 5])
def test_a_missing_log_is_named(complete, missing):
    """Log 6 is newer than what the description knows, so 5 is needed in between."""
    (complete / log_name(missing)).unlink()
    with pytest.raises(DamagedError, match=rf"{log_name(missing)} is missing, and log files 3 to 6 are needed"):
        Directory(complete).verify_files(DESCRIBED, list(TABLES))


def test_the_newest_known_log_is_needed(complete):
    for number in (5, 6):
        (complete / log_name(number)).unlink()
    with pytest.raises(DamagedError, match=rf"{log_name(5)} is missing, and log files 3 to 5 are needed"):
        Directory(complete).verify_files(DESCRIBED, list(TABLES))


def test_a_log_that_nobody_needs_may_be_missing_or_there(complete):
    (complete / log_name(6)).unlink()
    (complete / log_name(1)).touch()
    Directory(complete).verify_files(DESCRIBED, list(TABLES))


def test_clearing_removes_tables_and_logs_alone(complete):
    kept = {DESCRIPTION, LOCK, "notes.txt", ".hidden", "log.txt"}
    for name in kept:
        (complete / name).touch()
    Directory(complete).clear()
    assert set(os.listdir(complete)) == kept


def test_a_copy_has_everything_but_the_lock(complete, tmp_path_factory):
    one = Directory(complete)
    one.write(DESCRIBED)
    for name in (LOCK, "notes.txt"):
        (complete / name).touch()
    target = tmp_path_factory.mktemp("copy")
    one.copy_to(target)
    expected = contents(complete)
    del expected[LOCK], expected["notes.txt"]
    assert contents(target) == expected
