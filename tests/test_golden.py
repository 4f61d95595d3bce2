"""Storages that earlier releases wrote: what is in them is read, checked, and goes on being written to.

The archives are never made again: they are what their release wrote, as their checksums say.
"""

import hashlib
import json
import os
import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import graphs
import pytest
from durus.btree import BTree
from durus.connection import Connection
from durus.persistent_dict import PersistentDict
from graphs import (
    EVER,
    assert_books,
    commit,
    counts,
    doomed,
    journal,
    meta,
    number,
    oid,
    queue,
    record,
    rows,
    suspects,
)

from berkeleydb_storage import DanglingReferenceError, cli
from berkeleydb_storage.check import check_pages
from berkeleydb_storage.environment import LIBRARY, META, SUSPECTS
from berkeleydb_storage.format import ACQUITTED, ENCRYPTED_VERSION, FORMAT_VERSION, PENDING, UNSETTLED, unpack_suspect
from berkeleydb_storage.keys import VARIABLE

STATES = (PENDING, ACQUITTED, UNSETTLED)
GOLDEN = Path(__file__).parent / "golden"
ARCHIVES = {
    "format-1-btree-not-closed.tar.gz": "71599af5811bf76d074d7f0506fe78952a62cb9658638f3afbb9e29b9545a0fc",
    "format-1-btree.tar.gz": "bf9fada784759d9c9e536d1dfb754a394da7da0e4b99b08ad7955c019aa409d1",
    "format-1-hash.tar.gz": "07782ed377704636ec60eda8ddf7b2566d350869b5c497f445a13ba41b743f98",
    "format-2-btree-deleting.tar.gz": "75f959ad9261ae3dc2ecb52941b2a996a5364ea82509b2dd41308529de9c0951",
    "format-2-btree-not-closed.tar.gz": "20c997182be317f8c17271c2f1815dfe440392c360a498799cb37f751fbc5df7",
    "format-2-btree.tar.gz": "812e2e53cca0b83b53eb8a4a76d3c8506e3912e2d0f45b491e3e3570bde7d58a",
    "format-2-hash.tar.gz": "10f76219cda5aff95133f0175eae20e14e769e259c797ab829ffb8fda2361ebe",
    "format-3-btree-deleting.tar.gz": "dae6e75d6bff8ba497b9e6fa1caaf2b39c7573c6e4c98442b1642e960d60304f",
    "format-3-btree-not-closed.tar.gz": "fa206f2971f7be3b2b54b68122feff1fcede48aaca9d9b6a13ea00322408c941",
    "format-3-btree.tar.gz": "774311dff21d071385c6b7a45625dea1dc9d39824aeee1b66cc9ba0226e42205",
    "format-3-hash.tar.gz": "49cb14b92b1633cbd4ef074a6b0bcf6d84575901ac69ad9006bb13fc4f4efe14",
    "format-4-encrypted-btree-deleting.tar.gz": "cc7ee1fe4b8bc3e35b2d509bcb7a5a1b9b9a4bf084132955bbd6d12876c6463a",
    "format-4-encrypted-btree-not-closed.tar.gz": "b974722b4495019f7d0235711cb59dcdda97bb9ba9520cdd47ec0784dabf2abe",
    "format-4-encrypted-btree.tar.gz": "2ef23a47e8a93ccdc9b20c3af38f83365570df63c58f753ae67eb3338eb086b0",
    "format-4-encrypted-hash.tar.gz": "1c21d43492d4a44ea066c0d3740365eae57a7d0ae1365dc542d2d0c72cd74710",
}
KEY = "the key of the archives"
"""Of those that are encrypted."""
IDENTITIES = {
    "format-3-btree-deleting.tar.gz": "73ecbf44f8cbc580b45b75a9ee44d837",
    "format-3-btree-not-closed.tar.gz": "9bc4899a77829c389a041bfc64485749",
    "format-3-btree.tar.gz": "baeb6e45047cb025341ead87ba870b28",
    "format-3-hash.tar.gz": "dc5b5d0dfccd10aedb4243d7b58a53b5",
    "format-4-encrypted-btree-deleting.tar.gz": "e046554278d430d655ae5763d5dea8c0",
    "format-4-encrypted-btree-not-closed.tar.gz": "796acbe69b983ea0f556c2083b041a2b",
    "format-4-encrypted-btree.tar.gz": "0766463a640d234da13a5bb1f994ac1f",
    "format-4-encrypted-hash.tar.gz": "213aa1974a3d79e48189d4171e8c3adb",
}


class Expected(NamedTuple):
    """What is in an archive."""

    format: int
    objects: int
    references: int
    living: int
    """Objects that the root reaches."""
    next_oid: int
    counts: dict
    """Count -> number of objects that have it, where it is not 1."""
    states: dict
    """State of suspects -> number of those in it."""
    journal: list
    """The number of objects that each transaction changed, None: any."""
    doomed: int = 0
    """Objects that are left of those that are being deleted."""
    gone: int = 0
    """How many of these are deleted already."""


FIRST = [0, None, 28, 8, 1, 2, 3, 1]
SECOND = [0, None, 6, 1, 28, 8, 1, 2, 3, 1]
THIRD = [*SECOND, 1, 1, None]
DELETING = [121, 1, 8, 0, 50, 6, 1]
MARKS = {b"the first mark..": 10, b"the second mark.": 12}
"""Mark -> transaction that has it, from format 3 on."""
CONTENTS = {
    "format-1": Expected(1, 47, 60, 37, 48, {0: 6, 2: 1, 20: 1}, {PENDING: 2}, FIRST),
    "format-2": Expected(2, 52, 66, 42, 54, {0: 6, 2: 2, 20: 1}, dict.fromkeys(STATES, 1), SECOND),
    "format-2-btree-deleting": Expected(
        2,
        119,
        61,
        43,
        179,
        {0: 1, 2: 2, 15: 1},
        dict.fromkeys(STATES, 1),
        [*SECOND, *DELETING],
        72,
        50,
    ),
    "format-3": Expected(3, 52, 66, 42, 54, {0: 6, 2: 2, 20: 1}, dict.fromkeys(STATES, 1), THIRD),
    "format-3-btree-deleting": Expected(
        3,
        119,
        61,
        43,
        179,
        {0: 1, 2: 2, 15: 1},
        dict.fromkeys(STATES, 1),
        [*THIRD, *DELETING],
        72,
        50,
    ),
}
CONTENTS |= {
    name.replace("format-3", "format-4-encrypted"): CONTENTS[name]._replace(format=ENCRYPTED_VERSION)
    for name in ("format-3", "format-3-btree-deleting")
}
pytestmark = pytest.mark.skipif(
    not LIBRARY.startswith("5.3."),
    reason="the archives were written by Berkeley DB 5.3, and other versions refuse them",
)


def key_of(path):
    said = path / "storage.json"
    return KEY if said.exists() and '"encrypted": true' in said.read_text() else None


def quiet(path, **options):
    return graphs.quiet(path, key=key_of(path), **options)


@pytest.fixture(params=ARCHIVES)
def path(request, tmp_path, monkeypatch):
    """A copy of a directory as its release left it. The commands find its key."""
    if "encrypted" in request.param:
        monkeypatch.setenv(VARIABLE, KEY)
    with tarfile.open(GOLDEN / request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def expected(request, path):
    name = request.node.callspec.params["path"].removesuffix(".tar.gz")
    return CONTENTS.get(name) or CONTENTS[re.match(r"format-\d(-encrypted)?", name)[0]]


@pytest.fixture
def is_closed(path):
    return '"closed"' in (path / "storage.json").read_text()


def contents(path):
    return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in os.listdir(path)}


def test_the_archives_are_what_they_were():
    found = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in GOLDEN.glob("*.tar.gz")}
    assert found == ARCHIVES


def assert_contents(storage, expected):
    root = Connection(storage).get_root()
    kept = ["kept", "kept too"] if expected.format > 1 else []
    late = ["late"] if expected.doomed else []
    assert sorted(root.keys()) == [*kept, "large", *late, "many", "numbers", "one", "other"]
    if kept:
        assert root["kept"]["alive"]["child"]["name"] == "child"
        assert root["kept"]["unsettled"]["root"] is root
        assert len(root["kept too"]) == 0
    if late:
        assert len(root["late"]) == 0
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


def test_everything_is_there(path, expected):
    with quiet(path) as storage:
        assert_contents(storage, expected)
        assert storage.get_size() == len(list(storage.gen_oid_record())) + expected.doomed == expected.objects


def test_it_is_read_without_writing(path, expected, is_closed):
    before = contents(path)
    with quiet(path, read_only=True) as storage:
        assert_contents(storage, expected)
        assert storage.statistics().recovered != is_closed
        assert storage.statistics().doomed == expected.doomed
        assert storage._running.opened.directory.read().format == expected.format
        assert storage.check().faults == []
    assert contents(path) == before


def test_it_gets_the_current_format(path, expected):
    with quiet(path) as storage:
        known = storage.statistics()
        assert (known.last_search is not None) == (expected.format > 1)
        assert known.last_pack is not None
        assert meta(storage, b"unmarked") == b"1", "it was migrated: there may be cycles of which no suspect is known"
    current = FORMAT_VERSION if key_of(path) is None else ENCRYPTED_VERSION
    assert f'"format": {current},' in (path / "storage.json").read_text()
    with quiet(path) as storage:
        assert_contents(storage, expected)
        assert not storage.statistics().recovered


def test_it_keeps_its_identity(path, request):
    """Also where its owner was killed. An older format gets one, and keeps that."""
    noted = IDENTITIES.get(request.node.callspec.params["path"])
    with quiet(path, read_only=True) as storage:
        found = storage._engine.identity.hex()
        assert noted in (None, found)
    with quiet(path) as storage:
        identity = storage._engine.identity
        assert (noted or identity.hex()) == identity.hex() == meta(storage, b"identity").hex()
        assert noted or identity.hex() != found
    with quiet(path, read_only=True) as storage:
        assert storage._engine.identity == identity


@pytest.mark.parametrize("read_only", [False, True])
def test_the_fate_of_its_commits(path, expected, read_only):
    marks = MARKS if expected.format > 2 else {}
    with quiet(path, read_only=read_only) as storage:
        assert {row.mark: tid for tid, row in journal(storage).items() if row.mark} == marks
        for mark, tid in MARKS.items():
            assert storage._engine.fate(mark, 0) == (True, marks.get(mark))
            assert storage._engine.fate(mark, storage._engine.journal.tid) == (True, None)
            assert not marks or storage._engine.fate(mark, tid - 1) == (True, tid)


def test_the_commands_read_it_as_it_is(path, expected, capsys):
    before = contents(path)
    assert cli.main(["check", str(path), "--read-only"]) == 0
    assert f"sound; {expected.objects} objects" in capsys.readouterr().out
    assert cli.main(["stat", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"format {expected.format}," in said
    assert ("encrypted," in said) == (key_of(path) is not None)
    assert ("packed         not known" in said) == (expected.format == 1)
    assert cli.main(["census", str(path), "--json"]) == 0
    classes = json.loads(capsys.readouterr().out)["classes"]
    assert sum(each["objects"] for each in classes) == expected.objects - expected.doomed
    assert contents(path) == before


def test_it_is_migrated(path, tmp_path_factory, expected):
    """Also as it is, without an upgrade, and in the middle of a deletion."""
    with quiet(path, read_only=True) as storage, quiet(tmp_path_factory.mktemp("new")) as new:
        assert new.migrate(storage.gen_oid_record()) == expected.objects - expected.doomed
        assert_contents(new, expected)
        assert_books(new)
        assert new.check().faults == []


def test_the_type_is_kept(path, request):
    with quiet(path) as storage:
        assert storage.statistics().type in request.node.name


def states(storage):
    return Counter(unpack_suspect(row).state for row in rows(storage, SUSPECTS).values())


def test_the_books_are_right(path, expected, is_closed):
    with quiet(path) as storage:
        assert storage.statistics().recovered != is_closed
        report = storage.check()
        garbage = expected.counts[0]
        assert (report.faults, report.objects, report.garbage) == ([], expected.objects, garbage)
        assert report.references == expected.references
        assert_books(storage)
        assert Counter(counts(storage).values()) == expected.counts
        assert len(queue(storage)) == garbage
        assert states(storage) == expected.states
        assert [row.oids if row.oids is None else len(row.oids) for row in journal(storage).values()] == (
            expected.journal
        )
        assert storage.statistics().doomed == expected.doomed
        assert len(doomed(storage)) == expected.doomed + expected.gone
    assert check_pages(path, key=key_of(path)) == []


def test_a_pack_leaves_what_the_root_reaches(path, expected):
    """Rings, and what was being deleted, go; what a search had found out about suspects is not needed any more."""
    with quiet(path) as storage:
        storage.pack()
        assert_contents(storage, expected)
        assert_books(storage)
        assert storage.get_size() == len(list(storage.gen_oid_record(oid(0)))) == expected.living
        assert (queue(storage), states(storage), storage.statistics().doomed) == ([], {}, 0)
        assert rows(storage, META).keys() - {b"searched"} == {b"format", b"next oid", b"packed", b"identity"}
        assert storage.check().faults == []


def test_the_steps_of_the_collector_do_too(path, expected):
    """The suspects that are to be looked at are on rings, or live."""
    with quiet(path) as storage:
        while storage._running.collector.step(10, EVER):
            assert_books(storage)
        assert storage.get_size() == expected.living
        assert_contents(storage, expected)
        assert states(storage)[PENDING] == 0
        assert storage.check().faults == []


def test_it_goes_on(path, expected):
    """Objects are stored and linked, garbage is collected and stays refused, and all that is there again later."""
    with quiet(path) as storage:
        gone, deleting = queue(storage), doomed(storage)
        assert number(storage.new_oid()) >= expected.next_oid
        connection = Connection(storage)
        root = connection.get_root()
        root["many"].append(root["many"][0])
        root["new"] = PersistentDict({"written by": "a later release"})
        connection.commit()
        storage.pack()
        assert (queue(storage), suspects(storage)) == ([], set())
        root["many"][:] = []
        connection.commit()
        storage.pack()
        assert_books(storage)
        with pytest.raises(DanglingReferenceError):
            commit(storage, record(0, gone[0]))
        for key in deleting:
            with pytest.raises(DanglingReferenceError):
                commit(storage, record(0, key))
    with quiet(path) as storage:
        assert not storage.statistics().recovered
        root = Connection(storage).get_root()
        assert root["new"]["written by"] == "a later release"
        assert len(root["many"]) == 0
        assert root["numbers"][7] == 49
        assert storage.check().faults == []
    assert check_pages(path, key=key_of(path)) == []
