"""Berkeley DB's files as bytes, without the library: log names, record headers, page checksums. Reads, never writes.

Used before the library is let near the files, and to say which file is at fault after it refused them. The layouts
are those of Berkeley DB 4.8 to 18.1: ``dbinc/db_page.h``, ``dbinc/log.h`` and ``hash/hash_func.c`` of its source.

What is needed is not encrypted: headers of pages and of records, and the first 64 bytes of metadata pages. Only
checksums take the key: where there is one, they are those of `keyed`, of what was encrypted.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterator
from operator import mul
from pathlib import Path
from typing import NamedTuple

from berkeleydb_storage import keyed
from berkeleydb_storage.keys import mac_key

LOG_HEADER = struct.Struct("=III")
"""Offset of the previous record, length of this one with its header, checksum."""
META_SIZE = 512
META_CHECKSUM = 492
META_ENCRYPTION = 24
META_FREE = 28
META_LAST_PAGE = 32
META_MASK = struct.Struct("=I")
META_HIGH_MASK = 76
"""In the first page of a table of type hash: the highest number that a bucket may have."""
META_SPARES = struct.Struct("=32I")
META_SPARES_AT = 96
PAGE_NUMBER = 8
NEXT_PAGE = 16
PAGE_CHECKSUM = 28
PAGE_TYPE = 25
CHECKSUM_SIZE = 4
"""Bytes of a page's checksum that has no key; `keyed.SIZE` of one that has."""
_MAC = (PAGE_CHECKSUM, PAGE_CHECKSUM + keyed.SIZE)
HASH_META, BTREE_META = 8, 9
PAGE_SIZE = 4096
FIRST_RECORD = (28, 64)
"""Bytes of the first record of a log file, without and with encryption."""
CHECKPOINT_RECORD = 11
"""The type of a record, in its first four bytes after the header."""
ENCRYPTED_HEADER = struct.Struct("=II20s16sI")
"""Of a record in an encrypted log: as `LOG_HEADER` but for the checksum; then the start vector of the encryption, and
the length of the record without its header."""
CHECKPOINT_SIZE = 48
"""Bytes of the record of a checkpoint in an encrypted log, padded, without its header."""
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


def oldest_without_gap(directory: Path) -> int:
    """Return the number of the oldest log file from which on all are there; 0 where there is none."""
    numbers = log_numbers(directory)
    oldest = numbers[-1] if numbers else 0
    for number in reversed(numbers[:-1]):
        if number != oldest - 1:
            break
        oldest = number
    return oldest


def used_bytes(path: Path) -> int:
    """Return the bytes that a file has on the disk, and in it; 0 where it was removed."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0
    return min(status.st_size, status.st_blocks * 512)


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
    return Tail(len(rest), len(rest) <= max(length, LOG_HEADER.size - 1))  # the length may not be there yet


def first_lengths(path: Path) -> tuple[int, int]:
    """Return the lengths of the first two records of a log file, as it says itself; 0 where there is none."""
    with path.open("rb") as file:
        start = file.read(META_SIZE).ljust(META_SIZE, b"\0")
    first: int = LOG_HEADER.unpack_from(start)[1]
    if not LOG_HEADER.size < first <= META_SIZE - LOG_HEADER.size:
        return first, 0
    return first, LOG_HEADER.unpack_from(start, first)[1]


def _without_zeros(data: bytes) -> bytes:
    """Return data without the zeros at its end, block by block: a log file that was just begun is full of them."""
    zeros = bytes(PAGE_SIZE * 16)
    end = len(data)
    while end and data[max(0, end - len(zeros)) : end] == zeros[:end]:
        end = max(0, end - len(zeros))
    return data[:end].rstrip(b"\0")


def is_checkpoint(path: Path, offset: int, key: str | None = None) -> bool:
    """Return whether at this offset of a log file a whole record of a checkpoint begins.

    Args:
        path: the log file.
        offset: in bytes.
        key: what it is encrypted with. Its type being encrypted, a record is then known by its length.
    """
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(PAGE_SIZE).ljust(ENCRYPTED_HEADER.size, b"\0")
    length = LOG_HEADER.unpack_from(data)[1]
    if length > len(data):
        return False
    mac = mac_key(key)
    return _plain_checkpoint(data[:length]) if mac is None else _encrypted_checkpoint(data[:length], mac)


def _plain_checkpoint(record: bytes) -> bool:
    if len(record) <= LOG_HEADER.size:
        return False
    previous, length, stored = LOG_HEADER.unpack_from(record)
    body = record[LOG_HEADER.size :]
    found = 0
    for byte in body:
        found = (found * 33 + byte) & _WORD
    return int.from_bytes(body[:4], sys.byteorder) == CHECKPOINT_RECORD and bool(found ^ previous ^ length == stored)


def _encrypted_checkpoint(record: bytes, mac: bytes) -> bool:
    if len(record) <= ENCRYPTED_HEADER.size:
        return False
    previous, length, stored, _, size = ENCRYPTED_HEADER.unpack_from(record)
    found = struct.unpack("=II12s", keyed.mac(mac, record[ENCRYPTED_HEADER.size :]))
    same: bool = struct.pack("=II12s", found[0] ^ previous, found[1] ^ length, found[2]) == stored
    return same and size == CHECKPOINT_SIZE


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


def bad_pages(path: Path, key: str | None = None, *, start: int = 0, zeros: bool = False) -> Iterator[int]:
    """Yield the numbers of the pages of a table that are damaged, or another's, in order.

    Cost: 100 MB a second, 50 where they are encrypted.

    Args:
        path: the table's file.
        key: what it is encrypted with, if it is.
        start: the first page to look at.
        zeros: pages of zeros are sound, as they are in every table that was not closed or recovered: the library made
            them and did not come to writing them. In a table of type hash those of buckets always are.
    """
    mac = mac_key(key)
    at_once = 1 if mac is None else keyed.AT_ONCE
    with path.open("rb") as file:
        is_bucket = bucket_pages(file.read(META_SIZE))
        file.seek(start * PAGE_SIZE)
        number = start
        while some := file.read(at_once * PAGE_SIZE):
            pages = [some[offset : offset + PAGE_SIZE] for offset in range(0, len(some), PAGE_SIZE)]
            for page, sound in zip(pages, are_sound(pages, mac), strict=True):
                if any(page):
                    noted = _word(page, PAGE_NUMBER)  # recovery writes pages of future buckets without their number
                    if not sound or (noted != number and (noted or not is_bucket(number))):
                        yield number
                elif not (zeros or is_bucket(number)):
                    yield number
                number += 1


def are_sound(pages: list[bytes], mac: bytes | None) -> Iterator[bool]:
    """Yield for each page what `page_is_sound` returns; those with a keyed checksum are looked at together."""
    alike = [] if mac is None else [page for page in pages if _has_usual_checksum(page)]
    found = iter(() if mac is None or not alike else keyed.macs(mac, [_cleared(page, *_MAC) for page in alike]))
    for page in pages:
        quickly = mac is not None and _has_usual_checksum(page) and page[slice(*_MAC)] == next(found)
        yield quickly or page_is_sound(page, mac)


def _has_usual_checksum(page: bytes) -> bool:
    return len(page) == PAGE_SIZE and page[PAGE_TYPE] not in (HASH_META, BTREE_META) and any(page)


def strange_pages(path: Path) -> Iterator[int]:
    """Yield the numbers of the pages that are another's, or of zeros and should not be, whatever their checksums say.

    In a page of zeros the library searches forever, and it does not look at the number that a page has. It is for a
    table whose pages are all in the file. Cost: half a microsecond a page, and reading the file.
    """
    with path.open("rb") as file:
        first = file.read(META_SIZE).ljust(META_SIZE, b"\0")
        is_bucket, end = bucket_pages(first), _word(first, META_LAST_PAGE) + 1
        file.seek(0)
        start = 0
        while pages := file.read(256 * PAGE_SIZE):
            words = memoryview(pages[: len(pages) // PAGE_SIZE * PAGE_SIZE]).cast("I")
            noted = words[PAGE_NUMBER // words.itemsize :: PAGE_SIZE // words.itemsize].tolist()
            if noted != list(range(start, start + len(noted))):
                wrong = (number for number, found in enumerate(noted, start) if found != number and number < end)
                yield from (number for number in wrong if noted[number - start] or not is_bucket(number))
            start += 256


def holes(path: Path) -> Iterator[int]:
    """Yield the numbers of the pages that have no place on the disk, and should: as `strange_pages`, in microseconds.

    Pages of zeros are so where the system lost what was to be written; where it keeps no account of holes, none is.
    """
    with path.open("rb", buffering=0) as file:
        first = file.read(META_SIZE).ljust(META_SIZE, b"\0")
        is_bucket, end = bucket_pages(first), (_word(first, META_LAST_PAGE) + 1) * PAGE_SIZE
        end = min(end, os.fstat(file.fileno()).st_size)
        place = 0
        while (place := os.lseek(file.fileno(), place, os.SEEK_HOLE)) < end:
            following = _data_behind(file.fileno(), place, end)
            for number in range(-(-place // PAGE_SIZE), following // PAGE_SIZE):
                if not is_bucket(number):
                    yield number
            place = following


def _data_behind(descriptor: int, place: int, end: int) -> int:
    try:
        return min(os.lseek(descriptor, place, os.SEEK_DATA), end)
    except OSError:
        return end  # there is nothing but the hole


def bucket_pages(first: bytes) -> Callable[[int], bool]:
    """Return a function that tells whether a page is one of a hash's buckets: it is of zeros until it has a row.

    `first` is the beginning of the table's first page; a table of another type has no buckets. In an encrypted one,
    which does not tell, it may be any.
    """
    groups: list[range] = []
    if first[PAGE_TYPE : PAGE_TYPE + 1] == bytes([HASH_META]) and len(first) == META_SIZE:
        if first[META_ENCRYPTION]:
            return lambda _: True
        (mask,) = META_MASK.unpack_from(first, META_HIGH_MASK)
        for level, spare in enumerate(META_SPARES.unpack_from(first, META_SPARES_AT)):
            start, end = 1 << level >> 1, min(1 << level, mask + 1)
            groups.append(range(start + spare, end + spare))
    return lambda number: any(number in group for group in groups)


def page_is_sound(page: bytes, mac: bytes | None = None) -> bool:
    """Return whether the checksum of a page is right. A page of zeros was allocated and never written: it is sound.

    Args:
        page: all of it.
        mac: what its checksum is keyed with, `keys.mac_key`; None where nothing is encrypted. Cost: 3 milliseconds
            instead of 0.04.
    """
    if not any(page):
        return True
    if len(page) < PAGE_SIZE:
        return False
    if page[PAGE_TYPE] in (HASH_META, BTREE_META):
        page, where = page[:META_SIZE], META_CHECKSUM
    else:
        where = PAGE_CHECKSUM
    end = where + (CHECKSUM_SIZE if mac is None else keyed.SIZE)
    stored, cleared = page[where:end], _cleared(page, where, end)
    if mac is None:
        return checksum(cleared) == int.from_bytes(stored, sys.byteorder)
    return keyed.mac(mac, cleared) == stored


def _cleared(page: bytes, start: int, end: int) -> bytes:
    return page[:start] + bytes(end - start) + page[end:]


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
