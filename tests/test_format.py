"""Bytes <-> values: what each layout is, byte by byte, and that nothing else is taken for it."""

import re

import pytest
from durus.serialize import pack_record, split_oids, unpack_record
from graphs import oid, oids, record
from hypothesis import given
from hypothesis import strategies as st

from berkeleydb_storage.format import (
    ACQUITTED,
    FORMAT_VERSION,
    IDENTITY_LENGTH,
    JOURNAL_FLAGS,
    MARK_LENGTH,
    MAX_LISTED,
    PENDING,
    ROOT_OID,
    UNSETTLED,
    JournalRow,
    State,
    Suspect,
    pack_condemned,
    pack_count,
    pack_garbage_key,
    pack_journal,
    pack_oids,
    pack_suspect,
    pack_uint64,
    references,
    require_mark,
    same_references,
    unpack_count,
    unpack_garbage_key,
    unpack_journal,
    unpack_mark,
    unpack_oids,
    unpack_suspect,
    unpack_uint64,
)

numbers = st.integers(0, (1 << 64) - 1)
keys = st.binary(min_size=8, max_size=8)
states = st.builds(State, numbers, numbers, numbers, numbers)
marks = st.none() | st.binary(min_size=16, max_size=16)

TIME = 0x0006112233445566
GOLDEN_STATE = State(TIME, 5, 2, 1)
GOLDEN_STATE_BYTES = "0006112233445566000000000000000500000000000000020000000000000001"


def test_golden_oid():
    assert pack_uint64(258).hex() == "0000000000000102"
    assert unpack_uint64(bytes.fromhex("ffffffffffffffff")) == (1 << 64) - 1
    assert ROOT_OID.hex() == "0000000000000000"


def test_golden_record():
    golden = bytes.fromhex("00000000000000070000000361626300000000000000010000000000000002")
    assert record(7, 1, 2, data=b"abc") == golden
    assert references(oid(7), golden) == (oid(1), oid(2))


def test_golden_counts():
    assert pack_count(3).hex() == "0000000000000003"
    assert pack_condemned(TIME).hex() == "00000000000000000006112233445566"
    assert unpack_count(bytes.fromhex("0000000000000003")) == (3, 0)
    assert unpack_count(bytes.fromhex("00000000000000000006112233445566")) == (0, TIME)


def test_golden_garbage_key():
    assert pack_garbage_key(TIME, oid(9)).hex() == "00061122334455660000000000000009"


def test_golden_journal():
    listed = pack_journal(GOLDEN_STATE, oids(1, 9))
    assert listed.hex() == GOLDEN_STATE_BYTES + "0000000000000000010000000000000009"
    assert pack_journal(GOLDEN_STATE, None).hex() == GOLDEN_STATE_BYTES + "01"
    assert pack_journal(GOLDEN_STATE, []).hex() == GOLDEN_STATE_BYTES + "00"


def test_golden_marks():
    """A row without a mark is that of format 2, byte for byte."""
    mark = bytes(range(0xA0, 0xB0))
    marked = pack_journal(GOLDEN_STATE, oids(1, 9), mark)
    assert marked.hex() == GOLDEN_STATE_BYTES + "02" + mark.hex() + "00000000000000010000000000000009"
    assert pack_journal(GOLDEN_STATE, None, mark).hex() == GOLDEN_STATE_BYTES + "03" + mark.hex()
    assert pack_journal(GOLDEN_STATE, [], mark).hex() == GOLDEN_STATE_BYTES + "02" + mark.hex()
    assert (MARK_LENGTH, IDENTITY_LENGTH) == (16, 16)


def test_golden_suspect():
    """Those of format 1 have only the time; nothing was read for them yet."""
    assert pack_suspect(Suspect(TIME, 300, UNSETTLED)).hex() == "00061122334455660000012c00000002"
    assert unpack_suspect(bytes.fromhex("00061122334455660000012c00000001")) == Suspect(TIME, 300, ACQUITTED)
    assert unpack_suspect(bytes.fromhex("0006112233445566")) == Suspect(TIME, 0, PENDING)
    assert (PENDING, ACQUITTED, UNSETTLED) == (0, 1, 2)


def test_format_version():
    assert FORMAT_VERSION == 3


@given(numbers)
def test_numbers_round_trip(number):
    assert unpack_uint64(pack_uint64(number)) == number


@given(numbers, numbers)
def test_bytes_sort_as_numbers(one, other):
    assert (pack_uint64(one) < pack_uint64(other)) == (one < other)


@given(numbers, keys, numbers, keys)
def test_queue_sorts_by_time(time, key, later, other):
    one, two = pack_garbage_key(time, key), pack_garbage_key(later, other)
    assert unpack_garbage_key(one) == (time, key)
    assert (one < two) == ((time, key) < (later, other))


@given(st.integers(2, (1 << 64) - 1))
def test_counts_round_trip(count):
    assert unpack_count(pack_count(count)) == (count, 0)


@given(numbers)
def test_condemned_round_trip(time):
    assert unpack_count(pack_condemned(time)) == (0, time)


@given(numbers, st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1))
def test_suspects_round_trip(since, spent, state):
    assert unpack_suspect(pack_suspect(Suspect(since, spent, state))) == Suspect(since, spent, state)
    assert unpack_suspect(pack_uint64(since)) == Suspect(since, 0, PENDING)


@given(st.lists(numbers, max_size=20))
def test_many_oids_round_trip(several):
    assert unpack_oids(pack_oids(several)) == tuple(several)
    assert pack_oids(several) == oids(*several)


@given(states, st.lists(keys, max_size=20), marks)
def test_journal_round_trip(state, changed, mark):
    row = pack_journal(state, changed, mark)
    assert unpack_journal(row) == JournalRow(state, tuple(changed), mark)
    assert unpack_mark(row[JOURNAL_FLAGS : JOURNAL_FLAGS + 17]) == mark


@given(states, marks)
def test_journal_of_everything(state, mark):
    row = pack_journal(state, None, mark)
    assert unpack_journal(row) == JournalRow(state, None, mark)
    assert unpack_mark(row[JOURNAL_FLAGS : JOURNAL_FLAGS + 17]) == mark


@pytest.mark.parametrize(
    ("flags", "rest", "complaint"),
    [
        (2, b"", "the mark of a journal row has 0 bytes, not 16"),
        (3, bytes(8), "the mark of a journal row has 8 bytes, not 16"),
        (4, b"", "a journal row has the flags b'\\x04'"),
        (130, bytes(16), "a journal row has the flags b'\\x82'"),
    ],
)
def test_journal_rows_with_a_malformed_mark(flags, rest, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        unpack_journal(bytes.fromhex(GOLDEN_STATE_BYTES) + bytes([flags]) + rest)


def test_a_row_that_is_too_short_for_flags_has_no_mark():
    with pytest.raises(ValueError, match="flags b''"):
        unpack_mark(b"")


@pytest.mark.parametrize("mark", [b"", bytes(15), bytes(17), "x" * 16, bytearray(16), None, 5])
def test_what_is_no_mark(mark):
    with pytest.raises(ValueError, match="the mark of a commit has 16 bytes; it is"):
        require_mark(mark)
    require_mark(bytes(16))


def test_journal_lists_up_to_a_limit():
    most = oids(*range(MAX_LISTED))
    assert unpack_journal(pack_journal(GOLDEN_STATE, most)).oids == tuple(most)
    assert unpack_journal(pack_journal(GOLDEN_STATE, [*most, oid(1)])).oids is None


@given(keys, st.binary(max_size=50), st.lists(keys, max_size=6))
def test_references_are_those_of_durus(key, data, refs):
    packed = pack_record(key, data, b"".join(refs))
    theirs = split_oids(unpack_record(packed)[2])
    found = references(key, packed)
    assert list(found) == [ref for ref in dict.fromkeys(theirs) if ref != key]


def test_references_are_each_once_and_in_order():
    assert references(oid(1), record(1, 5, 3, 5, 1, 3)) == (oid(5), oid(3))


@pytest.mark.parametrize("refs", [(), (1,), (1, 1), (1, 1, 1)])
def test_an_object_does_not_refer_to_itself(refs):
    assert references(oid(1), record(1, *refs)) == ()


@given(st.lists(keys, min_size=1, max_size=3), st.integers(1, 7))
def test_half_a_reference_is_malformed(refs, cut):
    packed = pack_record(oid(1), b"data", b"".join(refs))
    with pytest.raises(ValueError, match="record of object 1 is malformed"):
        references(oid(1), packed[:-cut])


sizes = st.integers(0, 40).map(lambda size: size.to_bytes(4, "big"))
nearly_records = st.builds(lambda *parts: b"".join(parts), keys, sizes, st.binary(max_size=60))


few = st.lists(st.sampled_from([oid(1), oid(2), oid(3)]), max_size=3)


@given(st.binary(max_size=20), few, st.binary(max_size=20), few)
def test_same_references(data, refs, other, others):
    packed, changed = pack_record(oid(1), data, b"".join(refs)), pack_record(oid(1), other, b"".join(others))
    assert same_references(packed, changed) == (refs == others)


@given(nearly_records, st.binary(max_size=20), few)
def test_what_is_malformed_has_other_references(garbage, data, refs):
    packed = pack_record(oid(1), data, b"".join(refs))
    assert not same_references(garbage, packed) or references(oid(1), garbage) == references(oid(1), packed)


@pytest.mark.parametrize("size", range(12))
def test_what_is_too_short_has_other_references(size):
    packed = pack_record(oid(1), b"", b"")
    assert not same_references(packed[:size], packed)


@given(st.binary(max_size=200) | nearly_records)
def test_any_bytes_are_a_record_or_a_value_error(garbage):
    key = garbage[:8].ljust(8, b"\0")
    if is_record(key, garbage):
        assert set(references(key, garbage)) == set(split_oids(unpack_record(garbage)[2])) - {key}
    else:
        with pytest.raises(ValueError, match="object"):
            references(key, garbage)


def is_record(key, packed):
    if len(packed) < 12 or not packed.startswith(key):
        return False
    rest = len(packed) - 12 - int.from_bytes(packed[8:12], "big")
    return rest >= 0 and rest % 8 == 0


@pytest.mark.parametrize(
    ("key", "packed", "complaint"),
    [
        (oid(7), b"", "record of object 7 has 0 bytes; the shortest possible has 12"),
        (oid(7), record(7)[:11], "record of object 7 has 11 bytes; the shortest possible has 12"),
        (oid(7), record(8), "record stored as object 7 is one of object 8"),
        (oid(7), oid(7) + b"\0\0\0\x01", "record of object 7 is malformed: its 12 bytes"),
        (oid(7), oid(7) + b"\xff\xff\xff\xff" + b"x" * 20, "record of object 7 is malformed: its 32 bytes"),
        (oid(7), record(7) + b"x", "record of object 7 is malformed: its 13 bytes"),
        (b"", record(7), "an oid has 8 bytes, not 0: b''"),
        (b"1234567", record(7), "an oid has 8 bytes, not 7: b'1234567'"),
        (b"123456789" * 9, record(7), "an oid has 8 bytes, not 81: b'1234567891234567'"),
    ],
)
def test_malformed_records_say_what_is_wrong(key, packed, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        references(key, packed)


@given(st.binary(max_size=40))
def test_malformed_rows_are_value_errors(row):
    for unpack, sizes in (
        (unpack_uint64, {8}),
        (unpack_count, {8, 16}),
        (unpack_garbage_key, {16}),
        (unpack_suspect, {8, 16}),
    ):
        if len(row) in sizes:
            unpack(row)
        else:
            with pytest.raises(ValueError, match=f"{len(row)}"):
                unpack(row)


@given(st.binary(max_size=90))
def test_journal_rows_are_unpacked_or_value_errors(row):
    try:
        unpacked = unpack_journal(row)
    except ValueError:
        assert len(row) < 33 or len(row) % 8 != 1 or row[32] > 3 or (row[32] > 1 and len(row) < 49)
    else:
        assert len(unpacked.oids or ()) in (0, (len(row) - 33) // 8 - 2 * (unpacked.mark is not None))


@pytest.mark.parametrize("size", [0, 32, 34, 40, 42])
def test_journal_rows_of_an_impossible_length(size):
    with pytest.raises(ValueError, match=f"a journal row of {size} bytes"):
        unpack_journal(b"\0" * size)
