"""Tells which pages of a table that is copied are damaged, without keeping others from running.

The library's own function takes 3 microseconds a page, 5 where it is encrypted, and others run meanwhile. `files` does
the same in Python, in 40 and 80, with the interpreter's lock held. It is what counts where the two disagree, and what
is used where the library does not have the function. Any thread may use it.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

from berkeleydb_storage import files, keyed
from berkeleydb_storage.environment import checksum_function
from berkeleydb_storage.files import (
    BTREE_META,
    CHECKSUM_SIZE,
    HASH_META,
    META_CHECKSUM,
    META_SIZE,
    PAGE_CHECKSUM,
    PAGE_NUMBER,
    PAGE_SIZE,
    PAGE_TYPE,
)


def damaged_pages(part: bytes, first: int, mac: bytes | None) -> Iterator[int]:
    """Yield the numbers of the pages that are damaged, or another's.

    Pages of zeros are sound: the library made them and has not come to writing them.

    Args:
        part: some whole pages of a table.
        first: the number of the first of them.
        mac: what their checksums are keyed with, `keys.mac_key`; None where nothing is encrypted.
    """
    function = _function()
    doubted = _doubted(part, mac) if function is None else _different(function, part, mac)
    unsound = {first + n for n in doubted if not files.page_is_sound(part[n * PAGE_SIZE : (n + 1) * PAGE_SIZE], mac)}
    words = memoryview(part).cast("I")
    noted = words[PAGE_NUMBER // words.itemsize :: PAGE_SIZE // words.itemsize].tolist()
    for number, found in enumerate(noted, first):
        if number in unsound or found not in (0, number):  # those of buckets to come may have no number yet
            yield number


@cache
def _function() -> Any:
    """Return the library's function, None where it is not there or not as expected."""
    function = checksum_function()
    page = bytes(range(256)) * (PAGE_SIZE // 256)
    found = ctypes.create_string_buffer(keyed.SIZE)
    if function is not None:
        function(None, page, PAGE_SIZE, None, found)
        if found.raw[:CHECKSUM_SIZE] != files.checksum(page).to_bytes(CHECKSUM_SIZE, sys.byteorder):
            return None
    return function


def _different(function: Any, part: bytes, mac: bytes | None) -> Iterator[int]:
    """Yield which pages have another checksum than the library finds; so have those of zeros in encrypted tables."""
    size = CHECKSUM_SIZE if mac is None else keyed.SIZE
    found, cleared = ctypes.create_string_buffer(size), bytearray(part)
    address, zeros = ctypes.addressof(ctypes.c_char.from_buffer(cleared)), bytes(size)
    for start in range(0, len(part), PAGE_SIZE):
        is_meta = part[start + PAGE_TYPE] in (HASH_META, BTREE_META)
        where, length = (META_CHECKSUM, META_SIZE) if is_meta else (PAGE_CHECKSUM, PAGE_SIZE)
        noted = slice(start + where, start + where + size)
        cleared[noted] = zeros
        function(None, address + start, length, mac, found)
        if found.raw != part[noted]:
            yield start // PAGE_SIZE


def _doubted(part: bytes, mac: bytes | None) -> Iterator[int]:
    """Yield which pages are unsound; let others run in between."""
    pages = [part[start : start + PAGE_SIZE] for start in range(0, len(part), PAGE_SIZE)]
    for number, sound in enumerate(files.are_sound(pages, mac)):
        if not sound:
            yield number
        time.sleep(0)
