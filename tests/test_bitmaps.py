"""Bitmaps: those that have nothing to iterate over cost no memory, which the library alone would lose each time."""

import sys
from pathlib import Path

import pytest
from pyroaring import BitMap64

import berkeleydb_storage
from berkeleydb_storage.bitmaps import members
from berkeleydb_storage.format import pack_oids

TIMES = 100_000
LEAKED = 224 * TIMES
"""Bytes, if each time lost what the library loses."""

BEYOND = {
    "empty": lambda: members(BitMap64(), 0, 10),
    "behind the last": lambda: members(BitMap64([1, 70_000]), 70_001, 10),
    "no oids": lambda: pack_oids(BitMap64()),
}


def test_members():
    numbers = BitMap64([3, 5, 1 << 40])
    assert members(numbers, 0, 10) == [3, 5, 1 << 40]
    assert members(numbers, 4, 1) == [5]
    assert members(numbers, 5, 1) == [5]
    assert members(numbers, 1 << 40, 2) == [1 << 40]
    assert members(numbers, 0, 0) == []


def memory():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
@pytest.mark.parametrize("work", BEYOND.values(), ids=BEYOND)
def test_nothing_to_iterate_over_costs_nothing(work):
    assert work() == []
    before = memory()
    for _ in range(TIMES):
        work()
    assert memory() - before < LEAKED / 4


def test_nobody_iterates_from_somewhere_on_without_a_look():
    using = {
        path.stem
        for path in Path(berkeleydb_storage.__file__).parent.rglob("*.py")
        if "iter_equal_or_larger" in path.read_text()
    }
    assert using == {"bitmaps"}
