"""Berkeley DB's files as bytes, without the library: log names, record headers, page checksums. Reads, never writes.

Used before the library is let near the files, and to say which file is at fault after it refused them. The layouts
are those of Berkeley DB 4.8 to 18.1: ``dbinc/db_page.h``, ``dbinc/log.h`` and ``hash/hash_func.c`` of its source.

Only storages without encryption are read: encrypted pages have keyed checksums.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from operator import mul
from pathlib import Path
from typing import NamedTuple

LOG_HEADER = struct.Struct("=III")
"""Offset of the previous record, length of this one with its header, checksum."""
META_SIZE = 512
META_CHECKSUM = 492
META_FREE = 28
META_LAST_PAGE = 32
NEXT_PAGE = 16
PAGE_CHECKSUM = 28
PAGE_TYPE = 25
HASH_META, BTREE_META = 8, 9
PAGE_SIZE = 4096
CHECKPOINT_RECORD = 11
"""The type of a record, in its first four bytes after the header."""
TABLE_SUFFIX = ".db"

_WORD = 0xFFFFFFFF


def log_number(name: str) -> int | None:
    """Return the number of a log file's name, None where it is not one."""
    prefix, dot, digits = name.partition(".")
    return int(digits) if prefix == "log" and dot and len(digits) == 10 and digits.isdecimal() else None


def log_name(number: int) -> str:
    """Return the name of log file `number`."""
    return f"log.{number:010d}"


def log_numbers(directory: Path) -> list[int]:
    """Return the numbers of the log files in a directory, in order."""
    found = (log_number(name) for name in os.listdir(directory))
    return sorted(number for number in found if number is not None)


class Position(NamedTuple):
    """A place in the log. Positions are ordered as the log is."""

    log: int
    """Number of the log file."""
    offset: int
    """Bytes from its beginning."""


class Tail(NamedTuple):
    """What a log file holds after its last whole record. All in bytes."""

    size: int
    """From the end of the last whole record to the last byte that is not zero."""
    unfinished: bool
    """True where it can only be one record whose writing was interrupted, False where more lies behind it."""


def log_tail(path: Path, end: int) -> Tail:
    """Return what follows offset `end`, where the last whole record of the log file `path` ends."""
    with path.open("rb") as file:
        file.seek(end)
        rest = _without_zeros(file.read())
    if not rest:
        return Tail(0, True)
    header = rest[: LOG_HEADER.size].ljust(LOG_HEADER.size, b"\0")
    length = LOG_HEADER.unpack(header)[1]
    return Tail(len(rest), len(rest) <= length)


def _without_zeros(data: bytes) -> bytes:
    """Return data without the zeros at its end, block by block: a log file that was just begun is full of them."""
    zeros = bytes(PAGE_SIZE * 16)
    end = len(data)
    while end and data[max(0, end - len(zeros)) : end] == zeros[:end]:
        end = max(0, end - len(zeros))
    return data[:end].rstrip(b"\0")


def is_checkpoint(path: Path, offset: int) -> bool:
    """Return whether at this offset of a log file a whole record of a checkpoint begins."""
    with path.open("rb") as file:
        file.seek(offset)
        header = file.read(LOG_HEADER.size).ljust(LOG_HEADER.size, b"\0")
        previous, length, stored = LOG_HEADER.unpack(header)
        body = file.read(min(length, PAGE_SIZE) - LOG_HEADER.size) if length > LOG_HEADER.size else b""
    if len(body) != length - LOG_HEADER.size or int.from_bytes(body[:4], sys.byteorder) != CHECKPOINT_RECORD:
        return False
    found = 0
    for byte in body:
        found = (found * 33 + byte) & _WORD
    return bool(found ^ previous ^ length == stored)


def newest_position(path: Path) -> tuple[int, int]:
    """Return the newest log position (file, offset) that a page of a table has; reads all, 400 MB a second."""
    newest = (0, 0)
    with path.open("rb") as file:
        while pages := file.read(256 * PAGE_SIZE):
            words = memoryview(pages[: len(pages) // PAGE_SIZE * PAGE_SIZE]).cast("I")
            step = PAGE_SIZE // words.itemsize
            newest = max([newest, *zip(words[::step], words[1::step], strict=True)])
    return newest


def missing_pages(path: Path) -> int:
    """Return how many pages a table lacks at its end; exact when nobody has it open and all pages were written."""
    return max(0, _pages(path) - path.stat().st_size // PAGE_SIZE)


def noted_size(path: Path) -> int:
    """Return the bytes of the pages of a table, without those at its end that the library took back."""
    return min(_pages(path) * PAGE_SIZE, path.stat().st_size)


def _pages(path: Path) -> int:
    with path.open("rb") as file:
        first = file.read(META_SIZE).ljust(META_SIZE, b"\0")
    return _word(first, META_LAST_PAGE) + 1


def free_pages(path: Path, limit: int) -> int:
    """Return how many pages are in the list of free ones, as far as the file tells; at most `limit`."""
    found = 0
    with path.open("rb", buffering=0) as file:
        number = _word(os.pread(file.fileno(), META_SIZE, 0), META_FREE)
        while number and found < limit:
            page = os.pread(file.fileno(), PAGE_TYPE + 1, number * PAGE_SIZE)
            if len(page) <= PAGE_TYPE or page[PAGE_TYPE]:
                break
            found += 1
            number = _word(page, NEXT_PAGE)
    return found


def _word(data: bytes, where: int) -> int:
    return int.from_bytes(data[where : where + 4], sys.byteorder)


def bad_pages(path: Path, *, start: int = 0, zeros: bool = False) -> Iterator[int]:
    """Yield the numbers of the pages of a table that are damaged, in order; about 100 MB a second.

    Args:
        path: the table's file.
        start: the first page to look at.
        zeros: pages of zeros are sound, as they are in every table that was not closed or recovered: the library made
            them and did not come to writing them. In a table of type hash they always are, it makes them in advance.
    """
    with path.open("rb") as file:
        zeros = zeros or file.read(META_SIZE)[PAGE_TYPE : PAGE_TYPE + 1] == bytes([HASH_META])
        file.seek(start * PAGE_SIZE)
        number = start
        while page := file.read(PAGE_SIZE):
            if not (page_is_sound(page) and (zeros or any(page))):
                yield number
            number += 1


def page_is_sound(page: bytes) -> bool:
    """Return whether the checksum of a page is right. A page of zeros was allocated and never written: it is sound."""
    if not any(page):
        return True
    if len(page) < PAGE_SIZE:
        return False
    if page[PAGE_TYPE] in (HASH_META, BTREE_META):
        page, where = page[:META_SIZE], META_CHECKSUM
    else:
        where = PAGE_CHECKSUM
    stored = int.from_bytes(page[where : where + 4], sys.byteorder)
    return checksum(page[:where] + b"\0\0\0\0" + page[where + 4 :]) == stored


def _powers(step: int, count: int) -> list[int]:
    """Return 33**(step*(count-1)), ..., 33**step, 1, modulo 2**32."""
    powers = [1]
    for _ in range(count - 1):
        powers.append(powers[-1] * pow(33, step, 1 << 32) & _WORD)
    return powers[::-1]


_WEIGHTS = {size: _powers(8, size // 8) for size in (META_SIZE, PAGE_SIZE)}
_BYTES, _PAIRS, _QUADS = (
    {size: int.from_bytes(bytes(pattern) * (size // 8), "big") for size in _WEIGHTS}
    for pattern in ((0, 255) * 4, (0, 0, 255, 255) * 2, (0, 0, 0, 0, 255, 255, 255, 255))
)


def checksum(data: bytes) -> int:
    """Return Berkeley DB's checksum of 512 or 4096 bytes: ``h = h * 33 + byte`` modulo 2**32, Chris Torek's hash.

    Eight bytes at a time: one long integer holds the data in 64-bit lanes, in which neighbours are combined three
    times; that leaves one number a lane, to be weighted with a power of 33.
    """
    size = len(data)
    lanes = int.from_bytes(data, "big")
    lanes = (lanes >> 8 & _BYTES[size]) * 33 + (lanes & _BYTES[size])
    lanes = (lanes >> 16 & _PAIRS[size]) * 33**2 + (lanes & _PAIRS[size])
    lanes = (lanes >> 32 & _QUADS[size]) * 33**4 + (lanes & _QUADS[size])
    numbers = struct.unpack(f">{size // 8}Q", lanes.to_bytes(size, "big"))
    total: int = sum(map(mul, numbers, _WEIGHTS[size])) & _WORD
    return total
