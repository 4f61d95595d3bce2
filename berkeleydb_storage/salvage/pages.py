"""The rows in pages of a table, read without the library. Pure; layouts: ``dbinc/db_page.h`` of Berkeley DB's source.

What comes in has a right checksum, and may be anything all the same: `ValueError` where it makes no sense.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from berkeleydb_storage.files import META_CHECKSUM, META_LAST_PAGE, PAGE_SIZE

HASH_UNSORTED, BTREE_LEAF, OVERFLOW, HASH = 2, 5, 7, 13
BTREE = (b"\3", b"\5")
"""Types of the pages of a btree."""
LEAVES = (BTREE_LEAF, HASH, HASH_UNSORTED)
PLAIN_START, ENCRYPTED_START = 32, 64
"""Where the content of a page begins, behind its header."""

_DELETED = 0x80
_IN_PAGE, _OVERFLOW = 1, 3
_HEADER = struct.Struct("=IIIIIHHBB")
_CHAIN = struct.Struct("=II")
_LENGTH = struct.Struct("=HB")
_NOT_LOGGED = 0, 1
"""The position that the library gives to what it does not log; that of a first page must not be ahead of the log."""
_NEVER = 0x7FFFFFFF
"""The number of a log file that no log will have."""


class Header(NamedTuple):
    """The beginning of a page that is not the first one."""

    log: int
    """With `offset`: the position of the last record in the log that changed the page."""
    offset: int
    number: int
    previous: int
    next: int
    entries: int
    free: int
    """Where its items begin; in an overflow page, how many bytes it has."""
    level: int
    type: int


class Chain(NamedTuple):
    """A value that is in overflow pages."""

    page: int
    """The first of them."""
    length: int


def header(page: bytes) -> Header:
    """Return the header of a page."""
    return Header._make(_HEADER.unpack_from(page))


def rows(page: bytes, start: int = PLAIN_START) -> Iterator[tuple[bytes, bytes | Chain]]:
    """Yield key and value of each row in a leaf of a btree, or in a page of a hash; no row of other pages.

    Args:
        page: decrypted.
        start: where its content begins.

    Raises:
        ValueError: it is none that the library makes.
    """
    known = header(page)
    if known.type not in LEAVES:
        return
    if known.entries % 2 or start + 2 * known.entries > PAGE_SIZE:
        raise ValueError(f"page {known.number} has {known.entries} items")
    offsets = struct.unpack_from(f"={known.entries}H", page, start)
    item = _btree_item if known.type == BTREE_LEAF else _hash_item
    for index in range(0, known.entries, 2):
        key, value = item(page, offsets, index), item(page, offsets, index + 1)
        if isinstance(key, bytes) and value is not None:
            yield key, value


def _btree_item(page: bytes, offsets: tuple[int, ...], index: int) -> bytes | Chain | None:
    """Return an item; None where it was deleted while somebody's cursor was on it."""
    where = offsets[index]
    if where + 12 > PAGE_SIZE and where + 3 > PAGE_SIZE:
        raise ValueError(f"an item begins at {where}")
    length, kind = _LENGTH.unpack_from(page, where)
    if kind & _DELETED:
        return None
    if kind == _OVERFLOW:
        return _chain(page, where)
    if kind != _IN_PAGE or where + 3 + length > PAGE_SIZE:
        raise ValueError(f"an item of type {kind} with {length} bytes at {where}")
    return page[where + 3 : where + 3 + length]


def _hash_item(page: bytes, offsets: tuple[int, ...], index: int) -> bytes | Chain | None:
    where, end = offsets[index], offsets[index - 1] if index else PAGE_SIZE
    if not where < end <= PAGE_SIZE:
        raise ValueError(f"an item from {where} to {end}")
    kind = page[where]
    if kind == _OVERFLOW:
        return _chain(page, where)
    if kind != _IN_PAGE:
        raise ValueError(f"an item of type {kind} at {where}")
    return page[where + 1 : end]


def _chain(page: bytes, where: int) -> Chain:
    if where + 12 > PAGE_SIZE:
        raise ValueError(f"an item begins at {where}")
    return Chain._make(_CHAIN.unpack_from(page, where + 4))


def part(page: bytes, number: int, previous: int, start: int = PLAIN_START) -> tuple[bytes, int]:
    """Return what an overflow page has of a value, and the number of the page with the next part, 0 for none.

    Raises:
        ValueError: it is not the page that follows `previous`.
    """
    known = header(page)
    if known.type != OVERFLOW or (known.number, known.previous) != (number, previous):
        raise ValueError(f"page {number} does not go on with a value from page {previous}")
    if not 0 < known.free <= PAGE_SIZE - start:
        raise ValueError(f"page {number} has {known.free} bytes of a value")
    return page[start : start + known.free], known.next


def blank(number: int) -> bytes:
    """Return a page for the place of one that is lost, without its checksum: no record in the log is for it."""
    return _HEADER.pack(_NEVER, 0, number, 0, 0, 0, PAGE_SIZE, 0, 0).ljust(PAGE_SIZE, b"\0")


def first_page(template: bytes, identity: bytes, pages: int) -> bytes:
    """Return the first page of a btree made from that of another one, without its checksum.

    Args:
        template: the other one's.
        identity: 20 bytes by which the log knows the table.
        pages: how many pages it has.
    """
    made = bytearray(template)
    struct.pack_into("=II", made, 0, *_NOT_LOGGED)
    struct.pack_into("=II", made, META_LAST_PAGE - 4, 0, pages - 1)
    struct.pack_into("=5I", made, META_CHECKSUM, 0, 0, 0, 0, 0)
    made[_IDENTITY_AT : _IDENTITY_AT + len(identity)] = identity
    return bytes(made)


_IDENTITY_AT = 52
_REGISTERED = struct.Struct("=I")


def identity_in_log(log: bytes, name: str) -> bytes | None:
    """Return the 20 bytes by which a log knows a table, from a record that says so; None where there is none."""
    named = name.encode() + b"\0"
    mark = _REGISTERED.pack(len(named)) + named + _REGISTERED.pack(20)
    found = log.rfind(mark)
    where = found + len(mark)
    return log[where : where + 20] if found >= 0 and where + 20 <= len(log) else None


__all__ = [
    "BTREE",
    "ENCRYPTED_START",
    "LEAVES",
    "OVERFLOW",
    "PLAIN_START",
    "Chain",
    "Header",
    "blank",
    "first_page",
    "header",
    "identity_in_log",
    "part",
    "rows",
]
