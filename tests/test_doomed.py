"""A storage in the middle of the deletion of objects that are garbage together: what is seen of it; how it goes on."""

import json
from contextlib import closing

import pytest
from durus.file_storage import FileStorage
from faults import found, plant
from graphs import (
    EVER,
    assert_books,
    commit,
    counts,
    doomed,
    hand_out,
    meta,
    number,
    oid,
    oids,
    queue,
    quiet,
    record,
    rows,
    stored,
    suspects,
)
from pyroaring import BitMap64

from berkeleydb_storage import (
    DamagedError,
    DanglingReferenceError,
    GarbageInline,
    GarbageThread,
    ReadOnlyError,
    cli,
)
from berkeleydb_storage.environment import GARBAGE, META, OBJECTS, REFCOUNTS, SUSPECTS
from berkeleydb_storage.format import pack_condemned, pack_count, pack_garbage_key, pack_uint64
from berkeleydb_storage.garbage import deletion, packing
from berkeleydb_storage.reachability import why

STEP = 4
RING = range(10, 20)
LIVING = {0: [1, 2], 1: [3], 2: [], 3: [1]}
HANGING = {25: [], 26: []}
"""Garbage that hangs on the ring: 25 on 15 and 18, 26 on 11."""
EXTRA = {11: [26], 12: [3], 15: [25], 18: [3, 25]}
DEAD = {key: [10 + (key - 9) % 10, *EXTRA.get(key, [])] for key in RING} | HANGING
GONE = [10, 11, 12, 13]
LEFT = [14, 15, 16, 17, 18, 19]


def build(storage):
    """Store the living, and the dead, of which the root lets go."""
    hand_out(storage, 40)
    whole = LIVING | DEAD
    commit(storage, *(record(key, *refs) for key, refs in whole.items() if key), record(0, 1, 2, 10))
    commit(storage, record(0, *LIVING[0]))


def delete_half_by_search(storage):
    """A search finds the ring, and not what hangs on it."""
    while not doomed(storage):
        assert storage._running.collector.step(50, EVER)
    assert (doomed(storage), suspects(storage), set(queue(storage))) == (set(RING), {3}, {26})


def delete_half_by_pack(storage):
    """A mark finds all of them."""
    packer = storage.get_packer()
    while storage.get_size() == len(LIVING | DEAD):
        next(packer)
    assert doomed(storage) == {*RING, *HANGING}
    packer.close()


HALVES = {"search": delete_half_by_search, "pack": delete_half_by_pack}


@pytest.fixture(params=["search", "pack"])
def way(request):
    return request.param


@pytest.fixture(params=["btree", "hash"])
def path(tmp_path, monkeypatch, way, request):
    """A storage that was closed in the middle of a deletion."""
    path = tmp_path / "half"
    path.mkdir()
    monkeypatch.setattr(deletion, "STEP", STEP)
    monkeypatch.setattr(packing, "STEP", STEP)
    with quiet(path, type=request.param) as storage:
        build(storage)
        HALVES[way](storage)
    return path


@pytest.fixture
def storage(path):
    with quiet(path) as opened:
        yield opened


@pytest.fixture
def outside(way):
    """Garbage that is not doomed."""
    return {} if way == "pack" else HANGING


def finish(storage):
    while storage._running.collector.step(STEP, EVER):
        assert_books(storage)
    assert stored(storage) == {key: sorted(refs) for key, refs in LIVING.items()}
    assert counts(storage) == {1: 2}
    assert (doomed(storage), queue(storage), storage.statistics().doomed) == (set(), [], 0)
    assert (meta(storage, b"doomed"), meta(storage, b"doomed from")) == (None, None)
    assert storage.check().faults == []


def test_the_half_is_as_it_is_described(storage, outside):
    assert stored(storage) == {key: sorted(refs) for key, refs in (LIVING | DEAD).items() if key not in GONE}
    assert storage.statistics().doomed == len(LEFT) + len(HANGING) - len(outside)
    assert number(meta(storage, b"doomed from")) == LEFT[0]
    assert_books(storage)


def test_it_is_sound(storage):
    report = storage.check(repair=True)
    assert report.faults == []
    assert not report.repaired
    assert report.objects == storage.get_size() == len(LIVING | DEAD) - len(GONE)


def test_it_goes_on_when_it_is_opened_again(storage):
    finish(storage)


def test_a_step_is_no_larger_than_it_may_be(storage):
    size = storage.get_size()
    assert storage._running.collector.step(1, EVER) == 1
    assert storage.get_size() == size - 1
    assert storage._running.collector.step(3, EVER) == 3
    assert storage.get_size() == size - 4


def test_it_goes_on_after_each_commit(path, outside):
    with quiet(path, garbage_collection=GarbageInline(grace=0, least=2, factor=0)) as storage:
        before = storage.statistics().doomed
        commit(storage, record(2))
        assert storage.statistics().doomed == before - 2


def test_it_goes_on_in_the_background(path):
    with quiet(path, garbage_collection=GarbageThread(grace=0, interval=0.001)) as storage:
        packer = storage.get_packer()  # it waits for the thread, if that is at it
        for _ in packer:
            pass
        assert stored(storage) == {key: sorted(refs) for key, refs in LIVING.items()}


def test_a_pack_deletes_it_first(storage):
    left, packer = storage.statistics().doomed, storage.get_packer()
    assert next(packer) == f"deleting, {left} in all"
    for _ in packer:
        assert_books(storage)
    finish(storage)


def test_a_pack_that_is_not_finished_goes_on_at_the_next_opening(path):
    for _ in range(100):
        with quiet(path) as storage:
            if not doomed(storage):
                break
            next(storage.get_packer())
    with quiet(path) as storage:
        storage.pack()
        finish(storage)


def test_an_iteration_over_all_leaves_them_out(storage, outside):
    seen = dict(storage.gen_oid_record())
    assert list(seen) == sorted(seen)
    assert set(map(number, seen)) == LIVING.keys() | outside.keys()
    assert {number(key) for key, _ in storage.gen_oid_record(batch_size=1)} == LIVING.keys() | outside.keys()
    assert [number(key) for key, _ in storage.gen_oid_record(oid(1))] == [1, 3]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_migration_of_it_succeeds(path, tmp_path, outside, read_only):
    (tmp_path / "new").mkdir()
    with quiet(path, read_only=read_only) as storage, quiet(tmp_path / "new") as new:
        new.migrate(storage.gen_oid_record())
        assert stored(new) == {key: sorted(refs) for key, refs in (LIVING | outside).items()}
        assert_books(new)
        assert new.check().faults == []


def test_the_commands_read_it(path, tmp_path, outside, capsys):
    """What they write is whole. None of them writes to it."""

    def run(*arguments):
        assert cli.main(list(map(str, arguments))) == 0
        return capsys.readouterr().out

    before = {each.name: each.read_bytes() for each in path.iterdir()}
    living = sorted(LIVING | outside)
    lines = [json.loads(line) for line in run("dump", path).splitlines()]
    assert [line["oid"] for line in lines] == living
    assert sum(line["objects"] for line in json.loads(run("census", path, "--json"))["classes"]) == len(living)
    run("export", path, tmp_path / "new.durus")
    with closing(FileStorage(str(tmp_path / "new.durus"), readonly=True)) as exported:
        assert sorted(number(key) for key, _ in exported.gen_oid_record()) == living
    run("migrate", path, tmp_path / "migrated")
    with quiet(tmp_path / "migrated") as migrated:
        assert sorted(stored(migrated)) == living
        assert migrated.check().faults == []
    inside = json.loads(run("stat", path, "--json"))["inside"]
    assert (inside["objects"], inside["doomed"]) == (12, 8 - len(outside))
    assert json.loads(run("check", path, "--json"))["sound"]
    assert {each.name: each.read_bytes() for each in path.iterdir()} == before


def test_it_is_read_as_it_is(path, outside):
    before = {each.name: each.read_bytes() for each in path.iterdir()}
    with quiet(path, read_only=True) as storage:
        assert storage.check().faults == []
        assert storage.statistics().doomed == 8 - len(outside)
        assert len(list(storage.gen_oid_record())) == len(LIVING | outside)
        with pytest.raises(ReadOnlyError):
            storage.pack()
        assert list(storage.get_packer()) == []
    assert {each.name: each.read_bytes() for each in path.iterdir()} == before


@pytest.mark.parametrize("target", [GONE[0], GONE[-1], LEFT[0], LEFT[-1]])
@pytest.mark.parametrize("from_new", [False, True])
def test_a_commit_that_refers_to_one_is_refused(storage, target, from_new):
    before = {name: rows(storage, name) for name in (OBJECTS, REFCOUNTS, GARBAGE, SUSPECTS, META)}
    linking = [record(2, 30), record(30, target)] if from_new else [record(2, target)]
    with pytest.raises(DanglingReferenceError, match=f"or were collected: {target}\\. ") as caught:
        commit(storage, *linking)
    assert caught.value.oids == oids(target)
    assert {name: rows(storage, name) for name in (OBJECTS, REFCOUNTS, GARBAGE, SUSPECTS, META)} == before
    assert target in map(number, storage.sync()), "the client is told that it is gone"
    finish(storage)


@pytest.mark.parametrize("target", [GONE[-1], LEFT[0]])
def test_a_commit_that_stores_one_is_refused(storage, target):
    with pytest.raises(DanglingReferenceError) as caught:
        commit(storage, record(2, data=b"new"), record(target, data=b"new"))
    assert oid(target) in caught.value.oids
    assert set(map(number, caught.value.oids)) <= doomed(storage)
    finish(storage)


def test_commits_to_all_others_go_on(storage):
    """Also to what doomed objects refer to, whose count is lowered later."""
    commit(storage, record(0, 1, 2, 3), record(30), record(2, 30))
    assert_books(storage)
    commit(storage, record(0, *LIVING[0]), record(2))
    assert_books(storage)
    storage._running.collector.collect(50, EVER)
    assert 30 in stored(storage), "whatever has no referrer waits"
    storage.pack()
    finish(storage)


def test_what_hangs_on_them_may_be_linked(storage, outside):
    """It lives, or the commit is refused."""
    if outside:
        commit(storage, record(2, *HANGING))
        while storage._running.collector.step(STEP, EVER):
            assert_books(storage)
        assert stored(storage) == {0: [1, 2], 1: [3], 2: [25, 26], 3: [1], 25: [], 26: []}
        assert storage.check().faults == []
    else:
        with pytest.raises(DanglingReferenceError) as caught:
            commit(storage, record(2, *HANGING))
        assert caught.value.oids == oids(*HANGING)


def test_clients_are_told_of_each_that_is_deleted(storage):
    session = storage.session()
    before = stored(storage).keys()
    finish(storage)
    assert set(map(number, session.sync())) >= before - LIVING.keys()


@pytest.mark.parametrize("target", [GONE[0], LEFT[0]])
def test_one_that_is_referred_to_is_a_fault(storage, target):
    """Nothing mends it: some of them are gone."""
    plant(storage, (OBJECTS, oid(2), record(2, target)))
    report = storage.check(repair=True)
    assert found(report) == {("dangling", target, f"object {target} is being deleted, and is referred to")}
    assert (report.unrepairable, report.repaired, report.sound) == (1, False, False)
    plant(storage, (OBJECTS, oid(2), record(2)))
    finish(storage)


def test_a_doomed_root_is_a_fault(storage):
    closed = storage._engine.doomed.closed
    plant(storage, (META, b"doomed", (closed | type(closed)([0])).serialize()))
    storage._engine.adopt()
    assert ("dangling", 0, "object 0 is being deleted, and is referred to") in found(storage.check())


def test_one_that_was_passed_over_is_deleted_after_a_repair(storage, outside):
    plant(storage, (OBJECTS, oid(GONE[1]), record(GONE[1], GONE[1] + 1)))
    report = storage.check(repair=True)
    assert found(report) == {
        ("doomed", GONE[1], f"object {GONE[1]} was to be deleted, and was passed over"),
        ("total", None, "13 objects are stored, and the total says 12"),
    }
    assert report.sound
    assert storage.statistics().doomed == 8 - len(outside) + 3, "the places of the next two are empty"
    assert storage.check().faults == []
    finish(storage)


def test_the_others_are_repaired(storage):
    """A count is that of all referrers, those included that are still to be deleted."""
    right = counts(storage)[3]
    assert right == 2
    plant(storage, (REFCOUNTS, oid(3), None), (REFCOUNTS, oid(2), pack_count(7)), (SUSPECTS, oid(1), b"?"))
    report = storage.check(repair=True)
    assert {(fault.kind, fault.oid) for fault in report.faults} >= {("count", 3), ("count", 2), ("suspect", 1)}
    assert report.sound
    assert counts(storage)[3] == right
    finish(storage)


def test_what_is_noted_of_them_means_nothing(storage):
    """Counts and suspects of theirs may be anything that is well-formed."""
    one, two, three = LEFT[:3]
    plant(
        storage,
        (REFCOUNTS, oid(one), pack_count(1000)),
        (REFCOUNTS, oid(two), pack_condemned(5)),
        (GARBAGE, pack_garbage_key(5, oid(two)), b""),
        (SUSPECTS, oid(three), pack_uint64(5)),
    )
    assert {fault.kind for fault in storage.check(repair=True).faults} == {"total"}
    finish(storage)


def test_what_is_noted_of_them_is_mended_where_it_would_stop_the_deletion(storage):
    one, two, three, four = LEFT[:4]
    plant(
        storage,
        (REFCOUNTS, oid(one), b"?"),
        (REFCOUNTS, oid(two), pack_condemned(5)),
        (GARBAGE, pack_garbage_key(6, oid(three)), b""),
        (SUSPECTS, oid(four), b"?"),
        (REFCOUNTS, oid(GONE[0]), pack_count(3)),
    )
    report = storage.check(repair=True)
    assert {(fault.kind, fault.oid) for fault in report.faults if fault.kind != "total"} == {
        ("count", one),
        ("queue", two),
        ("queue", three),
        ("suspect", four),
        ("count", GONE[0]),
    }
    assert report.sound
    assert storage.check().faults == []
    finish(storage)


@pytest.mark.parametrize("row", [b"", b"nonsense", bytes(99), b"\xff" * 99], ids=["empty", "short", "0", "ff"])
def test_a_malformed_set_is_refused(path, row):
    with quiet(path) as storage:
        plant(storage, (META, b"doomed", row))
    with pytest.raises(DamagedError, match=r"malformed set of doomed objects.*: restore a backup"):
        quiet(path)


@pytest.mark.parametrize("row", [None, b"", b"nonsense", BitMap64([5]).serialize()], ids=["none", "empty", "bad", "5"])
@pytest.mark.parametrize("key", [b"doomed", b"doomed from"])
def test_a_set_that_is_not_what_is_being_deleted_is_repaired(storage, key, row):
    """Somebody else changed the rows while the storage was open."""
    right = meta(storage, key)
    plant(storage, (META, key, row))
    report = storage.check(repair=True)
    assert found(report) == {("doomed", None, "the table meta does not say what is being deleted")}
    assert report.sound
    assert meta(storage, key) == right
    finish(storage)


def test_a_set_although_nothing_is_being_deleted_is_repaired(storage):
    finish(storage)
    plant(storage, (META, b"doomed", BitMap64([2]).serialize()), (META, b"doomed from", pack_uint64(0)))
    assert found(storage.check(repair=True)) == {("doomed", None, "the table meta does not say what is being deleted")}
    finish(storage)


def test_why_tells_of_them(storage, path, outside, capsys):
    (answer,) = why(storage, [LEFT[0]])
    assert (answer.node.oid, answer.node.doomed, answer.node.since) == (LEFT[0], True, None)
    assert (answer.reachable, answer.path, answer.count, answer.referrers) == (False, (), 0, ())
    with pytest.raises(KeyError):
        why(storage, [GONE[0]])
    if outside:
        queued, held = why(storage, [26, 25])
        assert (queued.node.since is not None, queued.count, queued.referrers) == (True, 0, ())
        assert [(node.oid, node.doomed) for node in held.referrers] == [(15, True), (18, True)]
        assert held.count == 2
    storage.close()
    assert cli.main(["why", str(path), str(LEFT[0])]) == 1
    said = capsys.readouterr().out
    assert f"object {LEFT[0]} is garbage: it is being deleted, with others that the root does not reach" in said
    if outside:
        assert cli.main(["why", str(path), "25"]) == 1
        assert capsys.readouterr().out.count(", is being deleted") == 2
