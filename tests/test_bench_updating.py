"""Updates, halving and going through objects: everyone does the work, and a wrong result is found out."""

import pytest

from benchmarks.objects.records import record
from benchmarks.peers.registry import (
    FILE,
    LMDB,
    OURS,
    RELSTORAGE,
    SQLITE3,
    SQLITE_STORAGE,
    ZODB_FILE,
    is_here,
    open_database,
    open_store,
)
from benchmarks.work import halving, traversing, updating
from benchmarks.work.halving import BY_ITSELF, BY_PACK, Halves, Halving
from benchmarks.work.traversing import COLD, DROPPED, WARM, Traversing
from benchmarks.work.updating import Updates, items
from berkeleydb_storage.format import pack_uint64

OBJECTS = 1100


def by_name(peer):
    return peer.name


def contender(kind, tmp_path, peer, *arguments):
    if not is_here(peer):
        pytest.skip(f"{peer.package} is not installed")
    return kind(peer.name, str(tmp_path / "place" / "store"), OBJECTS, *arguments)


@pytest.mark.parametrize("peer", [OURS, FILE, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE, LMDB, SQLITE3], ids=by_name)
def test_updates_are_done_and_verified(tmp_path, peer):
    one = contender(Updates, tmp_path, peer, 800, 20)
    found = one.round()
    assert found[updating.MOST] >= found[updating.CLOSED] > 0
    assert (updating.PACKED in found) is (peer not in (LMDB, SQLITE3))
    assert sorted(one._versions.values())[-1] == 800
    one.verify()
    with_another = open_store(peer.name, one.path)
    number = items(OBJECTS, 1)[0]
    with_another.commit([(pack_uint64(number), record(number, 9999))])
    with_another.close()
    with pytest.raises(AssertionError, match=f"{peer.name} has something else than version .* of object {number}"):
        one.verify()


def test_updates_are_the_same_for_all():
    every = list(updating.updates(OBJECTS, 200, 50))
    assert every == list(updating.updates(OBJECTS, 200, 50))
    assert [version for commit in every for _, version in commit] == list(range(1, 201))
    assert all(len({number for number, _ in commit}) == 50 for commit in every)


@pytest.mark.parametrize("peer", [BY_ITSELF, BY_PACK, FILE, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE], ids=by_name)
def test_half_is_dropped_and_collected(tmp_path, peer):
    one = contender(Halving, tmp_path, peer)
    found = one.round()
    assert all(found[name] > 0 for name in (halving.DROP, halving.COLLECT, halving.BEFORE, halving.AFTER))
    database = open_database(OURS.name if peer is BY_PACK else peer.name, one.path)
    assert sorted(len(folder.items) for folder in database.root.values()) == [50, 500]
    database.close()


def test_what_was_not_collected_is_found_out(tmp_path, monkeypatch):
    one = contender(Halving, tmp_path, BY_PACK)
    monkeypatch.setattr(Halving, "_until_collected", lambda *_: 0.0)
    with pytest.raises(AssertionError, match="ours, pack: 548 of 548 objects are left, 0 missing"):
        one.round()
    with pytest.raises(AssertionError, match="0 of 1 objects are left, 1 missing"):
        one.verify(Halves([pack_uint64(1 << 40)], [pack_uint64(1 << 41)]))


def test_a_copy_is_the_same_and_takes_no_room_for_zeros(tmp_path):
    data = b"begin" + bytes(1 << 20) + b"middle" + bytes(1 << 20)
    (tmp_path / "file").write_bytes(data)
    halving.copy_sparsely(tmp_path / "file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert (tmp_path / "copy").stat().st_blocks * 512 < 1 << 18


@pytest.mark.parametrize("peer", [OURS, ZODB_FILE, RELSTORAGE], ids=by_name)
def test_all_shapes_are_gone_through(tmp_path, peer):
    found = contender(Traversing, tmp_path, peer).round()
    shapes = [traversing.column(shape, state) for shape in traversing.GOES_THROUGH for state in (COLD, WARM)]
    assert found.keys() == {*shapes, DROPPED}
    assert all(found[column] > 0 for column in shapes)


def test_an_object_that_was_not_met_is_found_out(tmp_path):
    one = contender(Traversing, tmp_path, OURS)
    database = open_database(OURS.name, one.path)
    database.root["tree"].children = database.root["tree"].children[1:]
    with pytest.raises(AssertionError, match="led to 989 objects of 1100 in the tree"):
        one.through(database, "tree")
    database.close()
