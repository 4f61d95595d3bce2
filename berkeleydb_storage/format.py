"""Bytes <-> values of everything that is stored. Pure functions without I/O; docs/FORMAT.md describes the layouts.

Invariants:

1. Keys are big-endian, so that their byte order is their numeric order.
2. An oid is 8 bytes; a record is exactly what ``durus.serialize.pack_record`` made, oid included.
3. Whatever comes from outside is validated here, by `references` and `require_mark`, and nowhere else.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from typing import NamedTuple

FORMAT_VERSION = 3
ENCRYPTED_VERSION = 4
"""What ``storage.json`` of an encrypted storage says instead, so that releases before this keep away from it. The
tables are those of `FORMAT_VERSION`, and say so."""
ROOT_OID = b"\0" * 8
OID_LENGTH = 8
RECORD_HEADER = 12
"""Bytes of a record before its data: the oid and the length of the data."""
MAX_LISTED = 4096
"""A transaction that changed more objects than this says so in the journal instead of listing them."""
MARK_LENGTH = 16
"""Bytes by which the client that committed a transaction recognises it."""
IDENTITY_LENGTH = 16
"""Bytes of the row `META_IDENTITY`."""

META_FORMAT = b"format"
META_NEXT_OID = b"next oid"
META_MIGRATING = b"migrating"
META_PACKED = b"packed"
META_SEARCHED = b"searched"
META_UNMARKED = b"unmarked"
META_DOOMED = b"doomed"
META_DOOMED_FROM = b"doomed from"
META_IDENTITY = b"identity"

_UINT64 = struct.Struct(">Q")
_UINT32_AT = struct.Struct(">L").unpack_from
_JOURNAL = struct.Struct(">QQQQB")
_GARBAGE_KEY = struct.Struct(">Q8s")
_EVERYTHING, _MARKED = 1, 2
_CONDEMNED = struct.Struct(">QQ")
_SUSPECT = struct.Struct(">QLL")

pack_uint64 = _UINT64.pack


def pack_oids(numbers: Iterable[int]) -> list[bytes]:
    """Return the oids of these numbers."""
    return [pack_uint64(number) for number in numbers] if numbers else []  # see `bitmaps`


def unpack_oids(oids: Collection[bytes]) -> tuple[int, ...]:
    """Return the numbers of these oids; each has 8 bytes."""
    return struct.unpack(f">{len(oids)}Q", b"".join(oids))


def unpack_uint64(data: bytes) -> int:
    """Return the number in 8 big-endian bytes.

    Raises:
        ValueError: they are not 8.
    """
    try:
        number: int = _UINT64.unpack(data)[0]
    except struct.error:
        raise ValueError(f"a number has 8 bytes, not {len(data)}: {data[:16]!r}") from None
    return number


def references(oid: bytes, record: bytes) -> tuple[bytes, ...]:
    """Return the oids a record refers to, each once, without itself.

    Args:
        oid: the key that the record is or will be stored under.
        record: the packed record.

    Raises:
        ValueError: the record is not one of `oid`, or is malformed.
    """
    size = len(record)
    if size < RECORD_HEADER or record[:8] != oid:
        raise ValueError(_complaint(oid, record))
    start = RECORD_HEADER + _UINT32_AT(record, 8)[0]
    if start == size:
        return ()
    if start + 8 == size:
        reference = record[start:]
        return () if reference == oid else (reference,)
    if start > size or (size - start) % 8:
        raise ValueError(_complaint(oid, record))
    found = dict.fromkeys([record[i : i + 8] for i in range(start, size, 8)])
    found.pop(oid, None)
    return tuple(found)


def same_references(old: bytes, record: bytes) -> bool:
    """Tell whether a record refers to what a well-formed one of the same object does, in the same order.

    If so it is well-formed, too. It takes half the time of `references`, and much less where there are many.
    """
    if len(old) < RECORD_HEADER or old[:OID_LENGTH] != record[:OID_LENGTH]:
        return False
    start, begin = RECORD_HEADER + _UINT32_AT(old, OID_LENGTH)[0], RECORD_HEADER + _UINT32_AT(record, OID_LENGTH)[0]
    return len(old) - start == len(record) - begin and old[start:] == record[begin:]


def has_references(oid: bytes, record: bytes) -> bool:
    """Tell whether a record refers to others than `oid`; a malformed one may be said to."""
    if len(record) <= RECORD_HEADER:
        return False
    tail = record[RECORD_HEADER + _UINT32_AT(record, OID_LENGTH)[0] :]
    return tail != oid * (len(tail) // OID_LENGTH)


def _complaint(oid: bytes, record: bytes) -> str:
    if len(oid) != OID_LENGTH:
        return f"an oid has 8 bytes, not {len(oid)}: {oid[:16]!r}"
    number = unpack_uint64(oid)
    if len(record) < RECORD_HEADER:
        return f"the record of object {number} has {len(record)} bytes; the shortest possible has {RECORD_HEADER}"
    if record[:8] != oid:
        return f"the record stored as object {number} is one of object {unpack_uint64(record[:8])}"
    return f"the record of object {number} is malformed: its {len(record)} bytes do not end in whole references"


class State(NamedTuple):
    """What every transaction writes into its journal row: the totals after it. All are numbers of rows."""

    time: int
    """Microseconds since the epoch."""
    objects: int
    garbage: int
    suspects: int


class JournalRow(NamedTuple):
    """A transaction as the journal has it."""

    state: State
    oids: tuple[bytes, ...] | None
    """What it changed or deleted; None: too many to list, so anything may have changed."""
    mark: bytes | None = None
    """By which the client that committed it recognises it, if that client gave it one."""


def pack_journal(state: State, oids: list[bytes] | None, mark: bytes | None = None) -> bytes:
    """Return the journal row of a transaction; `oids` None or longer than `MAX_LISTED` stands for everything.

    A mark has `MARK_LENGTH` bytes.
    """
    flags = 0 if mark is None else _MARKED
    if oids is None or len(oids) > MAX_LISTED:
        return _JOURNAL.pack(*state, flags | _EVERYTHING) + (mark or b"")
    return _JOURNAL.pack(*state, flags) + (mark or b"") + b"".join(oids)


def unpack_journal(row: bytes) -> JournalRow:
    """Return the values of a journal row.

    Raises:
        ValueError: the row has an impossible length, or flags that mean nothing.
    """
    listed = len(row) - _JOURNAL.size
    if listed < 0 or listed % 8:
        raise ValueError(f"a journal row of {len(row)} bytes")
    *state, flags = _JOURNAL.unpack_from(row)
    mark = unpack_mark(row[JOURNAL_FLAGS : JOURNAL_FLAGS + 1 + MARK_LENGTH])
    if flags & _EVERYTHING:
        return JournalRow(State(*state), None, mark)
    start = _JOURNAL.size + len(mark or b"")
    return JournalRow(State(*state), tuple(row[i : i + 8] for i in range(start, len(row), 8)), mark)


JOURNAL_FLAGS = _JOURNAL.size - 1
"""Where the flags are in a journal row; the mark follows them."""


def unpack_mark(part: bytes) -> bytes | None:
    """Return the mark of a journal row, None where it has none.

    Args:
        part: its flags, and the `MARK_LENGTH` bytes that follow, or as many as there are.

    Raises:
        ValueError: there are no flags, or unknown ones, or the mark that they promise is cut off.
    """
    flags = part[:1]
    if not flags or flags[0] & ~(_EVERYTHING | _MARKED):
        raise ValueError(f"a journal row has the flags {flags!r}")
    if not flags[0] & _MARKED:
        return None
    if len(part) < 1 + MARK_LENGTH:
        raise ValueError(f"the mark of a journal row has {len(part) - 1} bytes, not {MARK_LENGTH}")
    return part[1 : 1 + MARK_LENGTH]


def require_mark(mark: bytes) -> None:
    """Validate a mark that a client made.

    Raises:
        ValueError: it is not `MARK_LENGTH` bytes.
    """
    if not isinstance(mark, bytes) or len(mark) != MARK_LENGTH:
        raise ValueError(f"the mark of a commit has {MARK_LENGTH} bytes; it is {mark!r:.60}")


def pack_count(count: int) -> bytes:
    """Return the reference count row of an object that has `count` referrers, which is neither 0 nor 1."""
    return pack_uint64(count)


def pack_condemned(time: int) -> bytes:
    """Return the reference count row of an object that has had no referrer since `time` (microseconds)."""
    return _CONDEMNED.pack(0, time)


def unpack_count(row: bytes) -> tuple[int, int]:
    """Return (count, time) of a reference count row; time is 0 unless the count is 0.

    Raises:
        ValueError: the row has an impossible length.
    """
    if len(row) == _UINT64.size:
        return unpack_uint64(row), 0
    if len(row) == _CONDEMNED.size:
        count, time = _CONDEMNED.unpack(row)
        return count, time
    raise ValueError(f"a reference count row of {len(row)} bytes")


class Suspect(NamedTuple):
    """An object whose count fell, but not to 0: it may hang on a dead cycle."""

    since: int
    """When it last fell, in microseconds since the epoch."""
    spent: int
    """Records that were read to find out whether it is garbage."""
    state: int
    """`PENDING`: to be looked at; `ACQUITTED`: alive when it was; `UNSETTLED`: only a full pack can tell."""


PENDING, ACQUITTED, UNSETTLED = 0, 1, 2


def pack_suspect(suspect: Suspect) -> bytes:
    """Return the row of a suspect."""
    return _SUSPECT.pack(*suspect)


def unpack_suspect(row: bytes) -> Suspect:
    """Return the values of a suspect's row; those of format 1 have only the time.

    Raises:
        ValueError: the row has an impossible length.
    """
    if len(row) == _UINT64.size:
        return Suspect(unpack_uint64(row), 0, PENDING)
    if len(row) == _SUSPECT.size:
        return Suspect(*_SUSPECT.unpack(row))
    raise ValueError(f"the row of a suspect has {len(row)} bytes")


def pack_garbage_key(time: int, oid: bytes) -> bytes:
    """Return the queue's key of an object without referrers since `time` (microseconds): oldest first."""
    return _GARBAGE_KEY.pack(time, oid)


def unpack_garbage_key(key: bytes) -> tuple[int, bytes]:
    """Return (time, oid) of a key of the garbage queue.

    Raises:
        ValueError: the key has an impossible length.
    """
    if len(key) != _GARBAGE_KEY.size:
        raise ValueError(f"a garbage key of {len(key)} bytes")
    time, oid = _GARBAGE_KEY.unpack(key)
    return time, oid
