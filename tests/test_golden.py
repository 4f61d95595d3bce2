"""Storages that earlier releases wrote: what is in them is read, checked, and goes on being written to.

The archives are never made again: they are what their release wrote, as their checksums say.
"""

import hashlib
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from durus.btree import BTree
from durus.connection import Connection
from durus.persistent_dict import PersistentDict
from graphs import assert_books, commit, counts, journal, number, queue, quiet, record, suspects

from berkeleydb_storage import DanglingReferenceError
from berkeleydb_storage.check import check_pages
from berkeleydb_storage.environment import LIBRARY

GOLDEN = Path(__file__).parent / "golden"
ARCHIVES = {
    "format-1-btree-not-closed.tar.gz": "71599af5811bf76d074d7f0506fe78952a62cb9658638f3afbb9e29b9545a0fc",
    "format-1-btree.tar.gz": "bf9fada784759d9c9e536d1dfb754a394da7da0e4b99b08ad7955c019aa409d1",
    "format-1-hash.tar.gz": "07782ed377704636ec60eda8ddf7b2566d350869b5c497f445a13ba41b743f98",
}
LAST_OID = 48
pytestmark = pytest.mark.skipif(
    not LIBRARY.startswith("5.3."),
    reason="the archives were written by Berkeley DB 5.3, and other versions refuse them",
)


@pytest.fixture(params=ARCHIVES)
def path(request, tmp_path):
    """A copy of a directory as its release left it."""
    with tarfile.open(GOLDEN / request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def is_closed(path):
    return '"closed"' in (path / "storage.json").read_text()


def contents(path):
    return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in os.listdir(path)}


def test_the_archives_are_what_they_were():
    found = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in GOLDEN.glob("*.tar.gz")}
    assert found == ARCHIVES


def assert_contents(storage):
    root = Connection(storage).get_root()
    assert sorted(root.keys()) == ["large", "many", "numbers", "one", "other"]
    assert type(root["numbers"]) is BTree
    assert list(root["numbers"].items()) == [(number, number * number) for number in range(200)]
    blocks = (hashlib.sha256(b"%d" % number).digest() for number in range(20_000 // 32))
    assert root["large"]["bytes"] == b"".join(blocks)
    assert root["one"]["it"]["name"] == "shared"
    assert root["one"]["all"] is root["other"]["all"]
    assert list(root["other"].keys()) == ["all"]
    assert [each["number"] for each in root["many"]] == list(range(5, 20))
    assert len({each["it"]._p_oid for each in root["many"]}) == 1
    assert root["many"][0]["it"]["name"] == "popular"


def test_everything_is_there(path):
    with quiet(path) as storage:
        assert_contents(storage)
        assert storage.get_size() == len(list(storage.gen_oid_record())) == 47


def test_it_is_read_without_writing(path, is_closed):
    before = contents(path)
    with quiet(path, read_only=True) as storage:
        assert_contents(storage)
        assert storage.statistics().recovered != is_closed
    assert contents(path) == before


def test_the_type_is_kept(path, request):
    with quiet(path) as storage:
        assert storage.statistics().type in request.node.name


def test_the_books_are_right(path, is_closed):
    with quiet(path) as storage:
        assert storage.statistics().recovered != is_closed
        report = storage.check()
        assert (report.faults, report.objects, report.references, report.garbage) == ([], 47, 60, 6)
        assert_books(storage)
        assert Counter(counts(storage).values()) == {0: 6, 2: 1, 20: 1}
        assert len(queue(storage)) == 6
        assert len(suspects(storage)) == 2
        assert [row.oids if row.oids is None else len(row.oids) for row in journal(storage).values()] == [
            0,
            None,
            28,
            8,
            1,
            2,
            3,
            1,
        ]
    assert check_pages(path) == []


def test_it_goes_on(path):
    """Objects are stored and linked, garbage is collected and stays refused, and all that is there again later."""
    with quiet(path) as storage:
        gone = queue(storage)
        assert number(storage.new_oid()) >= LAST_OID
        connection = Connection(storage)
        root = connection.get_root()
        root["many"].append(root["many"][0])
        root["new"] = PersistentDict({"written by": "a later release"})
        connection.commit()
        storage.pack()
        assert queue(storage) == []
        root["many"][:] = []
        connection.commit()
        storage.pack()
        assert_books(storage)
        with pytest.raises(DanglingReferenceError):
            commit(storage, record(0, gone[0]))
    with quiet(path) as storage:
        assert not storage.statistics().recovered
        root = Connection(storage).get_root()
        assert root["new"]["written by"] == "a later release"
        assert len(root["many"]) == 0
        assert root["numbers"][7] == 49
        assert storage.check().faults == []
    assert check_pages(path) == []
