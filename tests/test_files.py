"""Berkeley DB's files read as bytes: checksums against a slow reference and the library's own files, names, tails."""

import random
import struct
import sys

import pytest
from graphs import commit, hand_out, quiet, record
from hypothesis import given
from hypothesis import strategies as st

from berkeleydb_storage.environment import TABLES, end_of_log
from berkeleydb_storage.files import (
    BTREE_META,
    LOG_HEADER,
    META_CHECKSUM,
    META_SIZE,
    PAGE_CHECKSUM,
    PAGE_SIZE,
    PAGE_TYPE,
    TABLE_SUFFIX,
    Tail,
    bad_pages,
    checksum,
    log_name,
    log_number,
    log_numbers,
    log_tail,
    page_is_sound,
)

OBJECTS = 400
FLIPS = 150


def slow_checksum(data):
    """The definition: ``h = h * 33 + byte`` in 32 bits."""
    value = 0
    for byte in data:
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value


@pytest.mark.parametrize("size", [META_SIZE, PAGE_SIZE])
def test_checksum_of_extremes(size):
    for pattern in (b"\0", b"\xff", b"\x01", b"\0\xff", b"\xff\0", b"\0\0\0\0\0\0\0\x01", b"\x80\0\0\0\0\0\0\0"):
        data = (pattern * size)[:size]
        assert checksum(data) == slow_checksum(data)


@given(st.sampled_from([META_SIZE, PAGE_SIZE]), st.randoms(use_true_random=False))
def test_checksum_is_the_slow_one(size, source):
    data = source.randbytes(size)
    assert checksum(data) == slow_checksum(data)


@given(st.sampled_from([META_SIZE, PAGE_SIZE]), st.data())
def test_checksum_sees_every_byte(size, data):
    where = data.draw(st.integers(0, size - 1))
    change = data.draw(st.integers(1, 255))
    changed = bytearray(b"page" * (size // 4))
    changed[where] ^= change
    assert checksum(bytes(changed)) == slow_checksum(changed)
    assert checksum(bytes(changed)) != checksum(b"page" * (size // 4))


@pytest.fixture(scope="module", params=["btree", "hash"])
def closed(request, tmp_path_factory):
    """A closed storage with leaf, internal, overflow and free pages."""
    path = tmp_path_factory.mktemp(request.param)
    with quiet(path, type=request.param) as storage:
        hand_out(storage, OBJECTS)
        commit(storage, record(0, *range(1, OBJECTS)), *(record(n, 0, data=b"x" * 100) for n in range(1, OBJECTS)))
        commit(storage, record(1, data=bytes(range(256)) * 200))
        commit(storage, record(0, *range(1, 100)))
        storage.pack()
    return path


def pages_of(path):
    content = path.read_bytes()
    return [content[start : start + PAGE_SIZE] for start in range(0, len(content), PAGE_SIZE)]


def test_the_librarys_pages_are_sound(closed):
    for name in TABLES:
        assert list(bad_pages(closed / (name + TABLE_SUFFIX))) == []


def test_there_are_pages_of_many_kinds(closed):
    """Otherwise the test above says little."""
    kinds = {page[PAGE_TYPE] for name in TABLES for page in pages_of(closed / (name + TABLE_SUFFIX)) if any(page)}
    overflow, btree_leaf = 7, 5
    assert {BTREE_META, btree_leaf, overflow} <= kinds
    assert len(kinds) >= 4


def used_bytes(page):
    """How many of its first bytes the page's checksum covers."""
    return META_SIZE if page[PAGE_TYPE] in (8, BTREE_META) else PAGE_SIZE


def test_a_flipped_byte_is_found_wherever_it_is(closed, tmp_path):
    source = random.Random(closed.name)
    pages = [
        (name, number, page)
        for name in TABLES
        for number, page in enumerate(pages_of(closed / (name + TABLE_SUFFIX)))
        if any(page)
    ]
    for name, number, page in source.choices(pages, k=FLIPS):
        where, change = source.randrange(used_bytes(page)), source.randrange(1, 256)
        damaged = bytearray(page)
        damaged[where] ^= change
        assert page_is_sound(page)
        assert not page_is_sound(bytes(damaged)), f"{name} page {number}: byte {where} changed by {change}"


def test_every_byte_of_one_page_matters(closed):
    page = pages_of(closed / f"refcounts{TABLE_SUFFIX}")[1]
    for where in range(PAGE_SIZE):
        damaged = bytearray(page)
        damaged[where] ^= 0x40
        assert not page_is_sound(bytes(damaged)), where


def test_bad_pages_are_named_in_order(closed, tmp_path):
    content = bytearray((closed / f"objects{TABLE_SUFFIX}").read_bytes())
    bad = [number for number, page in enumerate(pages_of(closed / f"objects{TABLE_SUFFIX}")) if any(page)][1:6:2]
    for number in bad:
        content[number * PAGE_SIZE + 100] ^= 1
    copy = tmp_path / "objects.db"
    copy.write_bytes(content)
    assert list(bad_pages(copy)) == bad


def test_pages_of_zeros_are_sound_and_cut_ones_are_not(closed):
    page = pages_of(closed / f"objects{TABLE_SUFFIX}")[1]
    assert page_is_sound(b"\0" * PAGE_SIZE)
    assert not page_is_sound(page[:-1])
    assert not page_is_sound(page[: PAGE_SIZE // 2])
    assert not page_is_sound(b"x")


def test_a_page_is_checked_in_the_byte_order_of_the_machine():
    page = bytearray(b"\x05" * PAGE_SIZE)
    page[PAGE_CHECKSUM : PAGE_CHECKSUM + 4] = b"\0\0\0\0"
    page[PAGE_CHECKSUM : PAGE_CHECKSUM + 4] = slow_checksum(page).to_bytes(4, sys.byteorder)
    assert page_is_sound(bytes(page))


def test_a_meta_page_is_checked_in_its_first_bytes():
    page = bytearray(b"\x05" * PAGE_SIZE)
    page[PAGE_TYPE] = BTREE_META
    page[META_CHECKSUM : META_CHECKSUM + 4] = b"\0\0\0\0"
    page[META_CHECKSUM : META_CHECKSUM + 4] = slow_checksum(page[:META_SIZE]).to_bytes(4, sys.byteorder)
    assert page_is_sound(bytes(page))
    page[META_SIZE] ^= 1
    assert page_is_sound(bytes(page))


@given(st.integers(0, 9_999_999_999))
def test_log_names_round_trip(number):
    assert log_number(log_name(number)) == number
    assert len(log_name(number)) == len("log.0000000001")


@pytest.mark.parametrize(
    "name", ["log", "log.", "log.1", "log.00000000001", "log.000000000x", "Log.0000000001", "log.0000000001.db", "x"]
)
def test_other_names_are_not_those_of_logs(name):
    assert log_number(name) is None


def test_logs_are_listed_in_order(tmp_path):
    for name in ("log.0000000010", "log.0000000002", "log.txt", "objects.db", "storage.json"):
        (tmp_path / name).touch()
    assert log_numbers(tmp_path) == [2, 10]


def a_log(path, rest):
    path.write_bytes(b"whole records" + rest)
    return log_tail(path, len(b"whole records"))


def header(length):
    return LOG_HEADER.pack(28, length, 0xDEADBEEF)


def test_a_log_without_a_tail(tmp_path):
    assert a_log(tmp_path / "log", b"") == Tail(0, True)
    assert a_log(tmp_path / "log", b"\0" * 10_000) == Tail(0, True)


def test_a_record_that_was_being_written(tmp_path):
    begun = header(100) + b"x" * 40
    assert a_log(tmp_path / "log", begun) == Tail(len(begun), True)
    assert a_log(tmp_path / "log", begun + b"\0" * 1000) == Tail(len(begun), True)
    for size in range(1, LOG_HEADER.size):
        assert a_log(tmp_path / "log", header(0x01020304)[:size]).unfinished


def test_a_tail_with_more_behind_it(tmp_path):
    damaged = header(100) + b"x" * 88
    assert a_log(tmp_path / "log", damaged) == Tail(100, True)
    assert a_log(tmp_path / "log", damaged + header(20)) == Tail(100 + LOG_HEADER.size, False)
    assert a_log(tmp_path / "log", header(0) + b"x" * 30) == Tail(42, False)


def test_the_header_is_that_of_the_library():
    assert struct.calcsize(LOG_HEADER.format) == 12


def test_the_end_of_a_real_log(tmp_path):
    """What the library takes for its end, the tail begins at; cut and flipped bytes are told apart."""
    with quiet(tmp_path) as storage:
        hand_out(storage, 50)
        commit(storage, record(0, *range(1, 50)), *(record(n) for n in range(1, 50)))
    log = tmp_path / log_name(log_numbers(tmp_path)[-1])
    end = end_of_log(log)
    assert log_tail(log, end) == Tail(0, True)
    content = log.read_bytes()
    cut = tmp_path / "cut" / log.name
    cut.parent.mkdir()
    cut.write_bytes(content[: end - 5])
    assert log_tail(cut, end_of_log(cut)).unfinished
    damaged = bytearray(content)
    damaged[end // 2] ^= 1
    cut.write_bytes(damaged)
    middle = end_of_log(cut)
    assert middle < end
    assert log_tail(cut, middle) == Tail(len(content[middle:end].rstrip(b"\0")), False)


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("zeros", [0, 1, 65_535, 65_536, 131_073])
def test_tail_before_zeros_of_any_length(tmp_path, size, zeros):
    """They are cut off block by block."""
    log = tmp_path / "log.0000000001"
    log.write_bytes(b"x" * size + bytes(zeros))
    assert log_tail(log, 0).size == size
