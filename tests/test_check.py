"""Every kind of fault, planted into the tables: it is reported, exactly, and mended where the report says so."""

import pytest
from faults import GARBAGE_OBJECTS, GRAPH, NEXT_OID, REFERENCES, build, found, plant, since, totals_by_hand
from graphs import (
    EVER,
    assert_books,
    commit,
    drain,
    journal,
    meta,
    number,
    oid,
    queue,
    quiet,
    record,
    rows,
    scratch_storage,
    stored,
    suspects,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage import Fault
from berkeleydb_storage.environment import GARBAGE, JOURNAL, META, OBJECTS, REFCOUNTS, SUSPECTS, TABLES
from berkeleydb_storage.format import (
    ACQUITTED,
    PENDING,
    UNSETTLED,
    State,
    Suspect,
    pack_condemned,
    pack_count,
    pack_garbage_key,
    pack_journal,
    pack_suspect,
    pack_uint64,
)

EXAMPLES = 400


@pytest.fixture
def storage():
    with scratch_storage() as opened:
        build(opened)
        yield opened


def test_the_storage_is_as_it_is_described(storage):
    assert stored(storage) == {key: sorted(refs) for key, refs in GRAPH.items()}
    assert queue(storage) == GARBAGE_OBJECTS
    assert suspects(storage) == {5}
    assert len(journal(storage)) > 8
    assert_books(storage)


def test_a_sound_storage(storage):
    report = storage.check()
    assert report.faults == []
    assert (report.objects, report.references, report.garbage) == (len(GRAPH), REFERENCES, 3)
    assert report.sound
    assert not report.repaired
    assert report.seconds > 0


def test_an_empty_storage():
    with scratch_storage() as storage:
        report = storage.check(repair=True)
        assert (report.objects, report.references, report.garbage, report.faults) == (0, 0, 0, [])


def test_repairing_what_is_sound_writes_nothing(storage):
    before = {name: rows(storage, name) for name in TABLES}
    report = storage.check(repair=True)
    assert report.sound
    assert not report.repaired
    assert {name: rows(storage, name) for name in TABLES} == before


# Faults that repair mends, and do not get into each other's way: name -> what plants it, what is reported.
MENDABLE = {
    "count too high": lambda storage: (
        [(REFCOUNTS, oid(4), pack_count(3))],
        {("count", 4, "object 4 has 2 referrers and a reference count of 3")},
    ),
    "count missing": lambda storage: (
        [(REFCOUNTS, oid(6), None)],
        {("count", 6, "object 6 has 2 referrers and a reference count of 1")},
    ),
    "count of the root": lambda storage: (
        [(REFCOUNTS, oid(0), None)],
        {("count", 0, "object 0 has 2 referrers and a reference count of 1")},
    ),
    "row for 1": lambda storage: (
        [(REFCOUNTS, oid(1), pack_count(1))],
        {("count", 1, "object 1 has a row for a reference count of 1")},
    ),
    "count of an unknown object": lambda storage: (
        [(REFCOUNTS, oid(99), pack_count(2)), (REFCOUNTS, oid(98), pack_condemned(5))],
        {
            ("count", 99, "object 99 has a reference count and does not exist"),
            ("count", 98, "object 98 has a reference count and does not exist"),
        },
    ),
    "malformed count": lambda storage: (
        [(REFCOUNTS, oid(2), b"abc")],
        {("count", 2, "object 2: a reference count row of 3 bytes")},
    ),
    "malformed key of a count": lambda storage: (
        [(REFCOUNTS, b"x", pack_count(2))],
        {("count", None, "object b'x' has a reference count and does not exist")},
    ),
    "count of 2 that has a time": lambda storage: (
        [(REFCOUNTS, oid(3), pack_count(2) + pack_uint64(5))],
        {("count", 3, "object 3: a reference count row of 16 bytes for a count of 2")},
    ),
    "condemned without a time": lambda storage: (
        [(REFCOUNTS, oid(10), pack_count(0))],
        {
            ("count", 10, "object 10: a reference count row of 8 bytes for a count of 0"),
            ("queue", 10, f"object 10 is in the garbage queue since {since(storage, 10)} and must not be"),
        },
    ),
    "condemned by mistake": lambda storage: (
        [(REFCOUNTS, oid(9), pack_condemned(5)), (GARBAGE, pack_garbage_key(5, oid(9)), b"")],
        {
            ("count", 9, "object 9 has 1 referrers and a reference count of 0"),
            ("queue", 9, "object 9 is in the garbage queue since 5 and must not be"),
        },
    ),
    "queue entry missing": lambda storage: (
        [(GARBAGE, pack_garbage_key(since(storage, 7), oid(7)), None)],
        {("queue", 7, f"object 7 has no referrer since {since(storage, 7)} and is not in the garbage queue")},
    ),
    "queue entry too many": lambda storage: (
        [(GARBAGE, pack_garbage_key(1, oid(8)), b""), (GARBAGE, pack_garbage_key(1, oid(97)), b"")],
        {
            ("queue", 8, "object 8 is in the garbage queue since 1 and must not be"),
            ("queue", 97, "object 97 is in the garbage queue since 1 and must not be"),
        },
    ),
    "queue entry of another time": lambda storage: (
        [
            (GARBAGE, pack_garbage_key(since(storage, 11), oid(11)), None),
            (GARBAGE, pack_garbage_key(since(storage, 11) - 1, oid(11)), b""),
        ],
        {
            ("queue", 11, f"object 11 has no referrer since {since(storage, 11)} and is not in the garbage queue"),
            ("queue", 11, f"object 11 is in the garbage queue since {since(storage, 11) - 1} and must not be"),
        },
    ),
    "malformed queue key": lambda storage: (
        [(GARBAGE, b"xyz", b"")],
        {("queue", None, "a garbage key of 3 bytes")},
    ),
    "unknown suspect": lambda storage: (
        [(SUSPECTS, oid(77), pack_suspect(Suspect(1, 2, PENDING))), (SUSPECTS, b"??", pack_uint64(1))],
        {
            ("suspect", 77, "object 77 is a suspect and does not exist"),
            ("suspect", None, "object b'??' is a suspect and does not exist"),
        },
    ),
    "malformed suspects": lambda storage: (
        [(SUSPECTS, oid(5), b"long"), (SUSPECTS, oid(2), b""), (SUSPECTS, oid(3), bytes(12))],
        {
            ("suspect", 5, "object 5: the row of a suspect has 4 bytes"),
            ("suspect", 2, "object 2: the row of a suspect has 0 bytes"),
            ("suspect", 3, "object 3: the row of a suspect has 12 bytes"),
        },
    ),
    "suspects in a state that there is not": lambda storage: (
        [(SUSPECTS, oid(1), pack_suspect(Suspect(5, 6, 3))), (SUSPECTS, oid(4), b"\xff" * 16)],
        {
            ("suspect", 1, "object 1: a suspect in a state 3"),
            ("suspect", 4, f"object 4: a suspect in a state {2**32 - 1}"),
        },
    ),
    "gap in the journal": lambda storage: (
        [(JOURNAL, pack_uint64(2), None)],
        {("journal", None, "transaction 3 follows 1 in the journal")},
    ),
    "malformed journal row": lambda storage: (
        [(JOURNAL, pack_uint64(5), b"short")],
        {("journal", None, "row 0000000000000005 of the journal: a journal row of 5 bytes")},
    ),
    "malformed tid": lambda storage: (
        [(JOURNAL, b"\0", b"")],
        {("journal", None, "row 00 of the journal: a number has 8 bytes, not 1: b'\\x00'")},
    ),
    "time of the last pack missing": lambda storage: (
        [(META, b"packed", None)],
        {("meta", None, "the table meta does not say when the storage was packed")},
    ),
    "malformed time of the last search": lambda storage: (
        [(META, b"searched", b"today")],
        {("meta", None, 'the time "searched" in the table meta has 5 bytes')},
    ),
    "malformed identity": lambda storage: (
        [(META, b"identity", b"me")],
        {("meta", None, "the identity of the storage is b'me'")},
    ),
    "next oid too low": lambda storage: (
        [(META, b"next oid", pack_uint64(11))],
        {("meta", None, "the next oid is b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x0b', and object 11 exists")},
    ),
}


def plant_and_mend(storage, names):
    """Plant these faults, look whether they are reported, repair, and look whether everything is right again."""
    expected = set()
    for changes, reported in [MENDABLE[name](storage) for name in names]:
        plant(storage, *changes)
        expected |= reported
    expected |= totals_by_hand(storage)
    report = storage.check()
    assert found(report) == expected
    assert all(fault.repairable for fault in report.faults)
    assert not report.sound
    report = storage.check(repair=True)
    assert found(report) == expected
    assert report.sound
    assert report.repaired
    assert found(storage.check()) == set()
    assert_books(storage)
    assert storage._engine.journal.since(storage._engine.journal.tid - 1)[0].oids is None


@pytest.mark.parametrize("name", MENDABLE)
def test_a_fault_is_reported_and_mended(storage, name):
    plant_and_mend(storage, [name])


def test_all_of_them_together(storage):
    plant_and_mend(storage, MENDABLE)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.sets(st.sampled_from(sorted(MENDABLE))))
def test_any_of_them_together(names):
    with scratch_storage() as storage:
        build(storage)
        if names:
            plant_and_mend(storage, sorted(names))


def test_garbage_whose_count_is_missing_is_condemned_anew(storage):
    before = since(storage, 7)
    plant(storage, (REFCOUNTS, oid(7), None))
    expected = {
        ("count", 7, "object 7 has 0 referrers and a reference count of 1"),
        ("queue", 7, f"object 7 is in the garbage queue since {before} and must not be"),
    }
    assert found(storage.check(repair=True)) == expected
    assert since(storage, 7) > before
    assert storage.check().faults == []
    storage.pack()
    assert_books(storage)
    assert 7 not in stored(storage)


@pytest.mark.parametrize("wrong", [State(1, 13, 3, 1), State(1, 12, 4, 1), State(1, 12, 3, 0), State(1, 0, 0, 0)])
def test_wrong_totals(storage, wrong):
    newest = max(rows(storage, JOURNAL))
    plant(storage, (JOURNAL, newest, pack_journal(wrong, [])))
    expected = totals_by_hand(storage)
    assert len(expected) == sum(one != other for one, other in zip(wrong[1:], (12, 3, 1), strict=True))
    assert found(storage.check(repair=True)) == expected
    assert_books(storage)


def test_totals_that_are_wrong_in_memory_alone(storage):
    engine = storage._engine
    engine.journal.state = engine.journal.state._replace(garbage=9)
    report = storage.check(repair=True)
    assert found(report) == {("total", None, "3 garbage are stored, and the total says 9")}
    assert_books(storage)


@pytest.mark.parametrize("row", [None, b"short", b""])
def test_a_newest_transaction_that_is_missing_or_malformed(storage, row):
    newest = max(rows(storage, JOURNAL))
    plant(storage, (JOURNAL, newest, row))
    (fault,) = storage.check(repair=True).faults
    what = "ends with transaction" if row is None else f"row {newest.hex()} of the journal"
    assert what in fault.message
    assert fault.kind == "journal"
    assert_books(storage)
    assert min(journal(storage)) == max(journal(storage)) == number(newest) + 1
    commit(storage, record(8, data=b"goes on"))
    assert_books(storage)


def test_a_transaction_from_the_future(storage):
    newest = number(max(rows(storage, JOURNAL)))
    plant(storage, (JOURNAL, pack_uint64(newest + 5), pack_journal(storage._engine.journal.state, [])))
    report = storage.check(repair=True)
    assert found(report) == {
        ("journal", None, f"transaction {newest + 5} follows {newest} in the journal"),
        ("journal", None, f"the journal ends with transaction {newest + 5}, and the newest is {newest}"),
    }
    assert storage.check().faults == []


def test_dangling_references(storage):
    plant(storage, (OBJECTS, oid(8), None), (OBJECTS, oid(6), None))
    missing = {
        ("dangling", 8, "object 8 does not exist, and is referred to"),
        ("dangling", 6, "object 6 does not exist, and is referred to"),
    }
    mendable = {
        ("count", 6, "object 6 has a reference count and does not exist"),
        ("total", None, "10 objects are stored, and the total says 12"),
    }
    report = storage.check(repair=True)
    assert found(report) == missing | mendable
    assert {fault.kind for fault in report.faults if not fault.repairable} == {"dangling"}
    assert report.unrepairable == 2
    assert report.repaired
    assert not report.sound
    assert found(storage.check()) == missing


def test_a_root_that_is_gone(storage):
    plant(storage, (OBJECTS, oid(0), None))
    report = storage.check()
    assert ("dangling", 0, "the root does not exist, and is referred to") in found(report)


MALFORMED = {
    "cut off": (oid(5), record(5, 6)[:-1], "the record of object 5 is malformed"),
    "too short": (oid(5), b"", "the record of object 5 has 0 bytes"),
    "of another object": (oid(5), record(6, 6), "the record stored as object 5 is one of object 6"),
    "with a long key": (oid(5) + b"!", record(5, 6), "an oid has 8 bytes, not 9"),
    "with the last oid of all": (b"\xff" * 8, b"junk", f"the record of object {2**64 - 1} has 4 bytes"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_records(storage, name):
    """What such a record refers to is not known: no count is too high because of it, and nothing is condemned."""
    key, value, complaint = MALFORMED[name]
    plant(storage, (OBJECTS, key, value))
    before = rows(storage, REFCOUNTS), rows(storage, GARBAGE)
    report = storage.check(repair=True)
    (fault,) = [fault for fault in report.faults if not fault.repairable]
    assert (fault.kind, fault.oid) == ("record", number(key) if len(key) == 8 else None)
    assert complaint in fault.message
    assert found(report) - {("record", fault.oid, fault.message)} <= totals_of(13) | {NEXT_OID_AT_THE_END}
    assert (rows(storage, REFCOUNTS), rows(storage, GARBAGE)) == before
    again = storage.check()
    assert [fault for fault in again.faults if fault.kind != "meta"] == [fault]


NEXT_OID_AT_THE_END = (
    "meta",
    None,
    f"the next oid is {pack_uint64(NEXT_OID + 4076)!r}, and object {2**64 - 1} exists",
)


def totals_of(objects):
    return {("total", None, f"{objects} objects are stored, and the total says 12")}


@pytest.mark.parametrize("row", [pack_uint64(5), *(pack_suspect(Suspect(5, 6, state)) for state in range(3))])
def test_suspects_of_every_kind_are_sound(storage, row):
    """Those of format 1, which have only the time, are valid."""
    plant(storage, (SUSPECTS, oid(5), row))
    assert storage.check().faults == []
    assert rows(storage, SUSPECTS) == {oid(5): row}


def test_malformed_suspects_are_looked_at_again(storage):
    """A repair makes them pending, as if nothing had been read for them; a search then finds that they live."""

    def look():
        while storage._running.collector.step(50, EVER):
            pass
        return storage._engine.counts.suspect(oid(5)).state

    known = look()
    assert known in (ACQUITTED, UNSETTLED)
    plant(storage, (SUSPECTS, oid(5), b"long"))
    before = storage._engine.time()
    assert storage.check(repair=True).sound
    suspect = storage._engine.counts.suspect(oid(5))
    assert (suspect.spent, suspect.state, suspect.since > before) == (0, PENDING, True)
    assert look() == known


def test_a_malformed_record_does_not_hide_counts_that_are_too_low(storage):
    plant(
        storage,
        (OBJECTS, oid(3), b"junk"),
        (REFCOUNTS, oid(4), None),
        (REFCOUNTS, oid(1), pack_condemned(5)),
        (REFCOUNTS, oid(6), pack_count(9)),
        (GARBAGE, pack_garbage_key(since(storage, 7), oid(7)), None),
    )
    report = storage.check(repair=True)
    assert found(report) == {
        ("record", 3, "the record of object 3 has 4 bytes; the shortest possible has 12"),
        ("count", 4, "object 4 has 2 referrers and a reference count of 1"),
        ("count", 1, "object 1 has 1 referrers and a reference count of 0"),
        ("queue", 7, f"object 7 has no referrer since {since(storage, 7)} and is not in the garbage queue"),
        ("total", None, "2 garbage are stored, and the total says 3"),
    }
    assert [fault.kind for fault in storage.check().faults] == ["record"]
    drain(storage)
    assert stored_keys(storage) == set(range(12)) - {7, 8, 10, 11}


def stored_keys(storage):
    return {number(key) for key in rows(storage, OBJECTS)}


def test_a_format_in_the_table_that_is_another(storage):
    plant(storage, (META, b"format", pack_uint64(7)))
    report = storage.check(repair=True)
    (fault,) = report.faults
    assert fault == Fault("meta", f"the table meta says format {pack_uint64(7)!r}", False, None)
    assert not report.repaired


@pytest.mark.parametrize("row", [b"", b"1234567", b"123456789"])
def test_malformed_times(tmp_path, row):
    """The storage opens all the same, so that it can be repaired."""
    with quiet(tmp_path) as storage:
        build(storage)
        plant(storage, (META, b"packed", row), (META, b"searched", row))
    with quiet(tmp_path) as storage:
        assert (storage.statistics().last_pack, storage.statistics().last_search) == (None, None)
        assert found(storage.check(repair=True)) == {
            ("meta", None, f'the time "packed" in the table meta has {len(row)} bytes'),
            ("meta", None, f'the time "searched" in the table meta has {len(row)} bytes'),
        }
        assert storage.check().faults == []
        assert meta(storage, b"searched") is None
        assert number(meta(storage, b"packed")) <= storage._engine.time()


@pytest.mark.parametrize("row", [None, b"", b"123456789", pack_uint64(0), pack_uint64(11)])
def test_the_next_oid_is_above_all_that_exist_and_all_that_were_handed_out(storage, row):
    last = number(storage.new_oid())
    plant(storage, (META, b"next oid", row))
    (fault,) = storage.check(repair=True).faults
    assert fault.kind == "meta"
    assert number(meta(storage, b"next oid")) > last
    assert number(storage.new_oid()) > last


rows_of_nonsense = st.tuples(
    st.sampled_from(TABLES),
    st.integers(0, 40).map(lambda n: ("existing", n)) | st.binary(max_size=17) | st.integers(0, 30).map(oid),
    st.none() | st.binary(max_size=40) | st.integers(0, 40).map(lambda n: ("existing", n)),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(rows_of_nonsense, min_size=1, max_size=5))
def test_whatever_is_in_the_tables(nonsense):
    """No row makes a check fail; after a repair, exactly that is wrong which was not repairable."""
    with scratch_storage() as storage:
        build(storage)
        for name, key, value in nonsense:
            there = list(rows(storage, name).items()) or [(b"key", b"value")]
            if isinstance(key, tuple):
                key = there[key[1] % len(there)][0]
            if isinstance(value, tuple):
                value = there[value[1] % len(there)][1]
            if value is not None or key in rows(storage, name):
                plant(storage, (name, key, value))
        report = storage.check(repair=True)
        lost = {fault for fault in report.faults if not fault.repairable}
        assert len(lost) == report.unrepairable
        assert {fault for fault in storage.check().faults if fault.message != NEXT_OID_AT_THE_END[2]} == lost
