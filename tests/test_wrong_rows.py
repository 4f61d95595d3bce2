"""The collector on a queue, counts and records that are wrong: nothing alive is deleted."""

import pytest
from graphs import (
    EVER,
    assert_books,
    commit,
    counts,
    drain,
    hand_out,
    number,
    oid,
    queue,
    quiet,
    record,
    rows,
    scratch_storage,
    step,
    stored,
    table,
)

from berkeleydb_storage import (
    DamagedError,
)
from berkeleydb_storage.environment import GARBAGE, OBJECTS, REFCOUNTS
from berkeleydb_storage.format import pack_condemned, pack_count, pack_garbage_key


@pytest.fixture
def storage():
    with scratch_storage(40) as opened:
        yield opened
        assert_books(opened)


def plant(storage, *changes):
    """Write rows behind the engine's back, and correct the total for those of the queue."""
    for name, key, value in changes:
        if value is None:
            table(storage, name).delete(key)
        else:
            table(storage, name).put(key, value)
    storage._engine.counts.garbage += sum(name == GARBAGE for name, _, _ in changes)


@pytest.fixture
def with_wrong_entries(storage):
    """Objects 1 to 3 are alive, 4 and 5 are garbage; the queue has entries for 1, 4 (of another time) and 99, too."""
    commit(storage, record(0, 1, 2, 3), *map(record, (1, 2, 3)))
    commit(storage, record(4), record(5))
    wrong = [(GARBAGE, pack_garbage_key(time, oid(key)), b"") for time, key in ((1, 1), (2, 4), (EVER, 99))]
    plant(storage, *wrong)
    return storage


def test_entries_that_are_wrong_are_taken_out(with_wrong_entries):
    assert with_wrong_entries._running.collector.validate() == 3
    assert queue(with_wrong_entries) == [4, 5]
    assert with_wrong_entries._running.collector.validate() == 0


def test_validating_goes_through_a_long_queue():
    with scratch_storage(3500) as storage:
        commit(storage, record(0), *map(record, range(1, 3000)))
        alive = [(GARBAGE, pack_garbage_key(EVER - key, oid(key)), b"") for key in range(500, 3500, 3)]
        plant(storage, *alive)
        assert storage._running.collector.validate() == len(alive)
        assert_books(storage)


@pytest.mark.parametrize("validate", [False, True])
def test_the_queue_is_validated_when_it_is_opened_if_so_wished(tmp_path, caplog, validate):
    with quiet(tmp_path) as storage:
        hand_out(storage, 5)
        commit(storage, record(0, 1), record(1), record(2))
        plant(storage, (GARBAGE, pack_garbage_key(1, oid(1)), b""))
        commit(storage, record(0, 1))
    with quiet(tmp_path, validate_garbage=validate) as storage:
        assert queue(storage) == ([2] if validate else [1, 2])
    said = f"{tmp_path}: 1 wrong entries were taken out of the garbage queue" in caplog.messages
    assert said == validate


def test_a_wrong_entry_deletes_nothing(with_wrong_entries, caplog):
    """The collector looks at the count again before it deletes."""
    with_wrong_entries.pack()
    assert step(with_wrong_entries, 10, EVER) == 0
    assert queue(with_wrong_entries) == []
    assert stored(with_wrong_entries) == {0: [1, 2, 3], 1: [], 2: [], 3: []}
    assert [line for line in caplog.messages if "by mistake" in line] == [
        f"object {key} was in the garbage queue by mistake: taken out" for key in (1, 4, 99)
    ]


def test_garbage_that_is_gone_already(storage, caplog):
    commit(storage, record(0), record(1))
    table(storage, OBJECTS).delete(oid(1))
    assert step(storage) == 1
    assert "object 1 is garbage and does not exist: its rows are removed" in caplog.messages
    assert (counts(storage), queue(storage)) == ({}, [])
    storage._engine.journal.state = storage._engine.journal.state._replace(objects=1)
    commit(storage, record(0))


def test_garbage_that_is_malformed_does_not_stop_it(storage, caplog):
    """What it referred to stays: its count says that there is a referrer."""
    commit(storage, record(0), record(1, 3), record(2), record(3))
    table(storage, OBJECTS).put(oid(1), record(1, 3)[:-1])
    drain(storage)
    assert stored(storage) == {0: [], 3: []}
    assert "garbage is malformed, so that what it referred to stays" in caplog.text
    report = storage.check(repair=True)
    assert [fault.message for fault in report.faults] == ["object 3 has 0 referrers and a reference count of 1"]


def test_what_malformed_garbage_referred_to_goes_with_a_pack(storage):
    """Where the root does not reach it: a mark does not go by the counts."""
    commit(storage, record(0, 4), record(1, 3, 4), record(2), record(3), record(4))
    table(storage, OBJECTS).put(oid(1), record(1, 3, 4)[:-1])
    storage.pack()
    assert stored(storage) == {0: [4], 4: []}
    report = storage.check(repair=True)
    assert [fault.message for fault in report.faults] == ["object 4 has 1 referrers and a reference count of 2"]


def test_a_malformed_record_that_lives_stops_a_pack(storage):
    """What it keeps alive is not known. What has no referrer goes all the same, and nothing else."""
    commit(storage, record(0, 1), record(1, 2), record(2, 3), record(3, 2), record(4, 5), record(5, 4), record(6))
    table(storage, OBJECTS).put(oid(1), record(1, 2)[:-1])
    for _ in range(2):
        with pytest.raises(DamagedError, match=r"object 1 is malformed.*so that nothing is deleted: run `durus-bdb"):
            storage.pack()
    assert {number(key) for key in rows(storage, OBJECTS)} == {0, 1, 2, 3, 4, 5}
    assert list(storage.get_packer())[-1].startswith("stopped: the record of object 1 is malformed")
    table(storage, OBJECTS).put(oid(1), record(1, 2))
    storage.pack()
    assert stored(storage) == {0: [1], 1: [2], 2: [3], 3: [2]}


def test_a_count_that_would_be_negative_stops_it(storage):
    """It is wrong already, and must not get worse."""
    commit(storage, record(0), record(1, 2), record(2))
    plant(storage, (REFCOUNTS, oid(2), pack_condemned(EVER)))
    with pytest.raises(DamagedError, match="object 2 is lower than its number of referrers: run `durus-bdb check"):
        storage.pack()
    assert list(storage.get_packer())[-1].startswith("stopped: the reference count of object 2")
    assert set(stored(storage)) == {0, 1, 2}
    plant(storage, (REFCOUNTS, oid(2), None))


def test_an_object_with_more_referrers_than_there_are_is_kept(storage):
    """A count that is too high loses room, never data, and that only until a pack, which does not go by counts."""
    commit(storage, record(0, 1, 2), record(1), record(2))
    plant(storage, (REFCOUNTS, oid(1), pack_count(3)), (REFCOUNTS, oid(2), pack_count(4)))
    commit(storage, record(0, 1))
    while storage._running.collector.step(10, EVER):
        pass
    assert set(stored(storage)) == {0, 1, 2}
    storage.pack()
    assert set(stored(storage)) == {0, 1}
    assert storage.check(repair=True).sound
