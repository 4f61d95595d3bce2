"""Berkeley DB's files as bytes, without the library: log names, record headers, page checksums. Reads, never writes.

Used before the library is let near the files, and to say which file is at fault after it refused them. The layouts
are those of Berkeley DB 4.8 to 18.1: ``dbinc/db_page.h``, ``dbinc/log.h`` and ``hash/hash_func.c`` of its source.

What is needed is not encrypted: headers of pages and of records, and the beginnings of metadata pages. Only checksums
take the key: where there is one, they are HMAC-SHA1 of what was encrypted (``hmac/hmac.c``).
"""

from __future__ import annotations

import hmac
import os
import struct
import sys
from collections.abc import Iterator
from operator import mul
from pathlib import Path
from typing import NamedTuple

from berkeleydb_storage.keys import mac_key

LOG_HEADER = struct.Struct("=III")
"""Offset of the previous record, length of this one with its header, checksum."""
META_SIZE = 512
META_CHECKSUM = 492
META_FREE = 28
META_LAST_PAGE = 32
META_BUCKETS = struct.Struct("=II")
"""In the first page of a table of type hash, at `META_MAX_BUCKET`: the last bucket in use; the mask of all there are."""
META_MAX_BUCKET = 72
META_SPARES = struct.Struct("=32I")
META_SPARES_AT = 96
PAGE_NUMBER = 8
NEXT_PAGE = 16
PAGE_CHECKSUM = 28
PAGE_TYPE = 25
CHECKSUM_SIZE, MAC_SIZE = 4, 20
"""Bytes of a page's checksum without and with a key."""
HASH_META, BTREE_META = 8, 9
PAGE_SIZE = 4096
CHECKPOINT_RECORD = 11
"""The type of a record, in its first four bytes after the header."""
ENCRYPTED_HEADER = struct.Struct("=II20s16sI")
"""Of a record in an encrypted log: as `LOG_HEADER` but for the checksum; then the start vector of the encryption, and the
length of the record without header and padding."""
CHECKPOINT_SIZE = 44
"""Bytes of the record of a checkpoint without its header."""
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
    return Tail(len(rest), len(rest) <= length)


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
    found = struct.unpack("=II12s", hmac.digest(mac, record[ENCRYPTED_HEADER.size :], "sha1"))
    return size == CHECKPOINT_SIZE and struct.pack("=II12s", found[0] ^ previous, found[1] ^ length, found[2]) == stored


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
    """Yield the numbers of the pages of a table that are damaged, or another's, in order; about 100 MB a second.

    Args:
        path: the table's file.
        start: the first page to look at.
        zeros: pages of zeros are sound, as they are in every table that was not closed or recovered: the library made
            them and did not come to writing them. In a table of type hash those of future buckets always are.
    """
    with path.open("rb") as file:
        unused = future_buckets(file.read(META_SIZE))
        file.seek(start * PAGE_SIZE)
        number = start
        while page := file.read(PAGE_SIZE):
            if any(page):
                if not page_is_sound(page) or _word(page, PAGE_NUMBER) != number:
                    yield number
            elif not (zeros or number in unused):
                yield number
            number += 1


def strange_pages(path: Path, *, zeros: bool = False) -> Iterator[int]:
    """Yield the numbers of the pages that are another's, or of zeros and should not be: without their checksums.

    In a page of zeros the library searches forever, and it does not look at the number that a page has. Cost: a
    microsecond a page, and reading the file. `zeros` as of `bad_pages`.
    """
    with path.open("rb") as file:
        unused = future_buckets(file.read(META_SIZE))
        file.seek(0)
        first = 0
        while pages := file.read(256 * PAGE_SIZE):
            words = memoryview(pages[: len(pages) // PAGE_SIZE * PAGE_SIZE]).cast("I")
            for number, noted in enumerate(words[PAGE_NUMBER // 4 :: PAGE_SIZE // words.itemsize], first):
                if noted != number or not number:
                    page = pages[(number - first) * PAGE_SIZE :][:PAGE_SIZE]
                    if any(page) and noted == number:
                        continue
                    if any(page) or not (zeros or number in unused):
                        yield number
            first += 256


def future_buckets(first: bytes) -> range:
    """Return which pages a table of type hash has made for buckets that are not in use: they may be of zeros.

    `first` is the beginning of its first page; a table of another type has none.
    """
    if first[PAGE_TYPE : PAGE_TYPE + 1] != bytes([HASH_META]) or len(first) < META_SIZE:
        return range(0)
    last, mask = META_BUCKETS.unpack_from(first, META_MAX_BUCKET)
    spares = META_SPARES.unpack_from(first, META_SPARES_AT)
    if not last <= mask < 1 << len(spares) - 1:
        return range(0)
    spare = spares[mask.bit_length()]
    return range(last + 1 + spare, mask + 1 + spare)


def page_is_sound(page: bytes, mac: bytes | None = None) -> bool:
    """Return whether the checksum of a page is right. A page of zeros was allocated and never written: it is sound.

    Args:
        page: all of it.
        mac: what its checksum is keyed with, `keys.mac_key`; None where nothing is encrypted.
    """
    if not any(page):
        return True
    if len(page) < PAGE_SIZE:
        return False
    if page[PAGE_TYPE] in (HASH_META, BTREE_META):
        page, where = page[:META_SIZE], META_CHECKSUM
    else:
        where = PAGE_CHECKSUM
    length = CHECKSUM_SIZE if mac is None else MAC_SIZE
    stored = page[where : where + length]
    cleared = page[:where] + bytes(length) + page[where + length :]
    if mac is None:
        return checksum(cleared) == int.from_bytes(stored, sys.byteorder)
    return hmac.digest(mac, cleared, "sha1") == stored


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
