"""Recovery and damage of encrypted storages: all that holds for others holds for them, test by test."""

import os
import random
import shutil
from contextlib import closing
from functools import partial

import pytest
import test_recovery
from durus.connection import Connection
from durus.persistent_dict import PersistentDict
from graphs import copied
from test_recovery import *  # noqa: F403 - the same tests, with a key

from berkeleydb_storage import BerkeleyDBStorage, DamagedError, cli, files, keyed
from berkeleydb_storage.check import check_pages
from berkeleydb_storage.directory import DESCRIPTION
from berkeleydb_storage.environment import TABLES, end_of_log, log_records
from berkeleydb_storage.files import (
    BTREE_META,
    HASH_META,
    META_SIZE,
    PAGE_SIZE,
    PAGE_TYPE,
    TABLE_SUFFIX,
    bad_pages,
    log_numbers,
)
from berkeleydb_storage.keys import VARIABLE, mac_key
from berkeleydb_storage.vectors import _makes_sense, verify_vectors

KEY = "a key for recoveries"
FLIPS = 60
VECTORS = 40


@pytest.fixture(autouse=True)
def encrypted(monkeypatch):
    """All storages of `test_recovery` have a key, and so have its looks at their files."""
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(test_recovery, "OPTIONS", test_recovery.OPTIONS | {"key": KEY})
    monkeypatch.setattr(test_recovery, "end_of_log", partial(end_of_log, key=KEY))
    monkeypatch.setattr(test_recovery, "bad_pages", partial(bad_pages, key=KEY))


def test_they_are_encrypted(example):
    assert example.description()["encrypted"] is True
    assert not [name for name, data in example.contents().items() if name != DESCRIPTION and b"graphs" in data]


def pages_of(path):
    """Return (table, number, page) of all pages that are not of zeros."""
    found = []
    for name in TABLES:
        contents = (path / (name + TABLE_SUFFIX)).read_bytes()
        pages = [contents[start : start + PAGE_SIZE] for start in range(0, len(contents), PAGE_SIZE)]
        found += [(name, number, page) for number, page in enumerate(pages) if any(page)]
    return found


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_a_flipped_byte_is_found_and_named(place, capsys, type):
    example = test_recovery.Example(place, closed=True, type=type)
    source = random.Random(type)
    assert check_pages(example.path, key=KEY) == []
    for name, number, page in source.choices(pages_of(example.path), k=FLIPS):
        used = META_SIZE if page[PAGE_TYPE] in (HASH_META, BTREE_META) else PAGE_SIZE
        where = example.path / (name + TABLE_SUFFIX)
        before = where.read_bytes()
        test_recovery.flip(where, number * PAGE_SIZE + source.randrange(used))
        assert list(bad_pages(where, KEY)) == [number]
        where.write_bytes(before)
    test_recovery.flip(where, number * PAGE_SIZE + 200)
    assert cli.main(["check", str(example.path)]) == 1
    assert f"page {number} of {where} is damaged" in capsys.readouterr().out


def test_all_kinds_of_pages_are_sound_together_and_one_by_one(closed):
    mac = mac_key(KEY)
    for _, _, page in pages_of(closed.path):
        assert files.page_is_sound(page, mac)
        assert not files.page_is_sound(page)
    usual = [page for _, _, page in pages_of(closed.path) if page[PAGE_TYPE] not in (HASH_META, BTREE_META)]
    cleared = [page[:28] + bytes(20) + page[48:] for page in usual]
    assert keyed.macs(mac, cleared) == [page[28:48] for page in usual] == [keyed.mac(mac, page) for page in cleared]
    assert len(usual) > 10


def test_what_looks_damaged_at_first_is_looked_at_again(closed, monkeypatch):
    """The quick way to many checksums is wrong once in some millions."""
    monkeypatch.setattr(keyed, "macs", lambda mac, pages: [b"wrong"] * len(pages))
    assert check_pages(closed.path, key=KEY) == []


def test_a_checkpoint_is_recognised(closed):
    said = closed.description()
    log, offset = closed.path / files.log_name(said["checkpoint_log"]), said["checkpoint_offset"]
    starts, end = test_recovery.whole_records(log)
    assert files.is_checkpoint(log, offset, KEY)
    assert not files.is_checkpoint(log, offset, "another key")
    assert not files.is_checkpoint(log, offset)
    found = [start for start in starts if files.is_checkpoint(log, start, KEY)]
    assert offset in found
    assert len(found) < len(starts) // 4
    assert not any(files.is_checkpoint(log, start, KEY) for start in (offset + 1, end, end + 5000))
    for where in (*range(offset, offset + 28, 3), *range(offset + 48, offset + 96, 5)):  # not the start vector
        test_recovery.flip(log, where)
        assert not files.is_checkpoint(log, offset, KEY)
        test_recovery.flip(log, where)


def test_a_changed_start_vector_is_found(killed):
    """It is in no checksum: of the record it changes the type, the transaction, or the position of the one before."""
    known, source, contents = killed.description(), random.Random(7), killed.contents()
    records = []
    for number in log_numbers(killed.path):
        if number >= known["checkpoint_log"]:
            log = killed.path / files.log_name(number)
            records += [(log, start) for start in test_recovery.whole_records(log)[0] if start]
    for log, start in source.choices(records, k=VECTORS):
        test_recovery.flip(log, start + source.randrange(28, 44))
        with pytest.raises(DamagedError):
            killed.open()
        for name, before in contents.items():
            (killed.path / name).write_bytes(before)
    killed.is_sound()


def busy(path, type):
    """Leave what a kill leaves of a storage that was filled, opened again, emptied, packed and compacted."""
    (path / "working").mkdir()
    options = test_recovery.OPTIONS | {"durable": False, "type": type}
    for _ in range(2):
        with BerkeleyDBStorage(path / "working", **options) as storage:
            connection = Connection(storage)
            root = connection.get_root()
            for first in range(0, 600, 60):
                for number in range(first, first + 60):
                    root[number] = PersistentDict(some=os.urandom(60 if number % 30 else 9000))
                connection.commit()
            storage.checkpoint()
            root.clear()
            connection.commit()
            storage.pack()
            storage.compact()
            shutil.rmtree(path / "killed", ignore_errors=True)
            copied(path / "working", path / "killed")
    return path / "killed"


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_records_of_all_kinds_make_sense(place, type):
    """And with another type, few do."""
    path = busy(place, type)
    verify_vectors(path, KEY, log_numbers(path))
    examples = {}
    with closing(log_records(path, KEY)) as records:
        for _, found in records:
            examples.setdefault(found[0], found)
    assert len(examples) > 12
    for found in examples.values():
        assert _makes_sense(found)
        others = [kind for kind in range(256) if kind != found[0] and _makes_sense(bytes([kind]) + found[1:])]
        assert len(others) < 20, (found[0], others)


def test_a_reader_of_what_was_killed_changes_nothing(killed, tmp_path):
    copy = copied(killed.path, tmp_path / "copy")
    before = killed.contents()
    with BerkeleyDBStorage(killed.path, key=KEY, read_only=True) as storage:
        killed.history.verify(storage)
    assert killed.contents() == before
    test_recovery.flip(copy / "objects.db", *range(PAGE_SIZE + 200, (copy / "objects.db").stat().st_size, PAGE_SIZE))
    with pytest.raises(DamagedError, match=rf"page \d+ of {copy}/objects\.db is damaged"):
        BerkeleyDBStorage(copy, key=KEY, read_only=True)
