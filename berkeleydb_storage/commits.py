"""Which transaction ends where in the log: what a restore to a point in time needs to know, and how to cut there.

For a copy of log files that nobody uses. The layouts are those of Berkeley DB 5.3, whose log has version 19:
``db/db.src``, ``dbreg/dbreg.src``, ``txn/txn.src`` and ``dbinc/log.h`` of its source.

Invariants:

1. What is told are the transactions that are committed in the log and have a row in the journal, in their order.
2. A log that is cut at the end of one of them holds all of it, and nothing of what came after.

A transaction puts its row into the journal as a key, the tid, and a value, which begins with the time; a long value
goes to pages of its own, and is in the log before the reference to it. The log names tables by numbers, which are given
anew in each opening. A log may begin before the first mention of the journal's, which comes with the next checkpoint.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from berkeleydb_storage import files
from berkeleydb_storage.environment import JOURNAL, log_records
from berkeleydb_storage.errors import DamagedError, LibraryMismatch
from berkeleydb_storage.files import LOG_HEADER, TABLE_SUFFIX, Position
from berkeleydb_storage.format import unpack_uint64

REPORT_EVERY = 1 << 20
"""Bytes of log after which the progress is reported."""

_VERSION, _MAGIC = 19, 0x040988
_PERSISTENT = struct.Struct("=II")
"""The first record of each file: the magic number and the version of the log."""
_FIRST, _FIRST_ENCRYPTED = 28, 64
"""Bytes of it with its header."""
_PREFIX = struct.Struct("=IIII")
"""Before the fields of a record: its type, the transaction, and where the record before of that is: file, offset."""
_REGISTER, _COMMIT, _CHILD, _ITEM, _CHUNK = 2, 10, 12, 41, 43
_WORD = struct.Struct("=I")
_OPCODE_MASK = 0xF
_WAS_OPEN, _CLOSING = {1, 2, 5, 7}, {2, 5}
"""Of the records that name a table: those that tell a number that it had before, and that it has no longer."""
_COMMITTED = 1
_ITEM_FIELDS = struct.Struct("=IIIIIII")
"""Operation, table, page, index on it, bytes there, length of a header of its own (0: it has none), length."""
_ITEM_IS_ADDED = 1 << 8 | 5
"""To a leaf page."""
_CHUNK_FIELDS = struct.Struct("=IIIIII")
"""Operation, table, page, the page before of this value (0: it is the first), the page after, length."""
_CHUNK_IS_ADDED = 3 << 8 | 7
_NAME = JOURNAL.encode() + TABLE_SUFFIX.encode() + b"\0"


class Commit(NamedTuple):
    """A transaction in the log."""

    tid: int
    time: int
    """In microseconds since the epoch."""
    end: Position
    """Where its last record ends: cut there, it is the newest transaction."""


def scan(path: Path, key: str | None = None, progress: Callable[[int], object] | None = None) -> Iterator[Commit]:
    """Yield the transactions in the log files of a directory that nobody uses, in their order. It may be changed.

    Args:
        path: the directory, with consecutive log files, of which the first may be any.
        key: the password, if the log is encrypted.
        progress: called now and then with the number of bytes that were looked at since it was called before.

    Raises:
        LibraryMismatch: another version of the library wrote the log.
        DamagedError: a log file is damaged or missing.
        BerkeleyDBStorageError: they cannot be read.
    """
    for number in files.log_numbers(path):
        _require_version(path / files.log_name(number), plain=key is None)
    read = _Reader(_first_number(path, key)).read
    done: tuple[int, int] | None = None
    last = where = reported = (0, 0)
    with closing(log_records(path, key)) as records:
        for position, record in records:
            if position[0] != where[0] and where[0]:
                _require_end(path, where, position[0])
            where = position
            if done is not None:
                yield Commit(*done, Position(*where) if where[0] == last[0] else _end(path, last))
            done = read(record)
            if done is not None:
                last = where
            if progress is not None and (where[0] != reported[0] or where[1] - reported[1] >= REPORT_EVERY):
                progress(_size(path, reported, where))
                reported = where
    if where[0]:
        _require_last(path, where)
    if done is not None:
        yield Commit(*done, _end(path, last))


def cut(path: Path, position: Position) -> None:
    """End the log in a directory at the end of a record; nobody uses it. Killed meanwhile, some of it may be left.

    Raises:
        DamagedError: the log does not reach to there.
        OSError: the files cannot be changed.
    """
    file = path / files.log_name(position.log)
    if not file.exists() or file.stat().st_size < position.offset:
        raise DamagedError(f"{file} does not reach to offset {position.offset}: restore it from a backup")
    for number in reversed(files.log_numbers(path)):
        if number > position.log:
            (path / files.log_name(number)).unlink()
    with file.open("r+b") as log:
        log.truncate(position.offset)
        os.fsync(log.fileno())
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class _Reader:
    """Takes the records of a log in their order, and tells which of them end a transaction that has a journal row."""

    def __init__(self, journal: int | None) -> None:
        """Begin with the number that the journal has, None where it is not open."""
        self._journal = journal
        self._tids: dict[int, int] = {}
        """Transaction of the library -> the key that it put into the journal last."""
        self._rows: dict[int, tuple[int, int]] = {}
        """Transaction of the library -> the tid and the time of its row."""

    def read(self, record: bytes) -> tuple[int, int] | None:
        """Take the next record; return the tid and the time, if it commits a transaction that has them."""
        kind, transaction, previous, _ = _PREFIX.unpack_from(record)
        if not previous and transaction in self._rows:  # one before a crash, with the same number
            del self._rows[transaction]
        if kind == _ITEM:
            self._item(transaction, record)
        elif kind == _COMMIT:
            row = self._rows.pop(transaction, None)
            return row if row is not None and _WORD.unpack_from(record, 16)[0] == _COMMITTED else None
        elif kind == _CHUNK:
            self._chunk(transaction, record)
        elif kind == _REGISTER:
            self._register(record)
        elif kind == _CHILD:
            row = self._rows.pop(_WORD.unpack_from(record, 16)[0], None)
            if row is not None:
                self._rows[transaction] = row
        return None

    def _item(self, transaction: int, record: bytes) -> None:
        """Note the key, or the value, of a row of the journal."""
        operation, table, _, index, _, header, size = _ITEM_FIELDS.unpack_from(record, 16)
        if table != self._journal or operation != _ITEM_IS_ADDED or header:
            return
        if not index % 2:
            self._tids[transaction] = unpack_uint64(record[44 : 44 + size])
        else:
            self._value(transaction, record[44:52])

    def _chunk(self, transaction: int, record: bytes) -> None:
        """Note the value of a row of the journal that has pages of its own."""
        operation, table, _, before, _, _ = _CHUNK_FIELDS.unpack_from(record, 16)
        if table == self._journal and operation == _CHUNK_IS_ADDED and not before:
            self._value(transaction, record[40:48])

    def _value(self, transaction: int, time: bytes) -> None:
        tid = self._tids.pop(transaction, None)
        if tid is not None:
            self._rows[transaction] = tid, unpack_uint64(time)

    def _register(self, record: bytes) -> None:
        found = _registered(record)
        if found is None:
            return
        operation, number = found
        if operation not in _CLOSING:
            self._journal = number
        elif number == self._journal:
            self._journal = None


def _registered(record: bytes) -> tuple[int, int] | None:
    """Return what a record says about the number of the journal, None where it is about another table."""
    operation, size = struct.unpack_from("=II", record, 16)
    if record[24 : 24 + size] != _NAME:
        return None
    (length,) = _WORD.unpack_from(record, 24 + size)
    return operation & _OPCODE_MASK, _WORD.unpack_from(record, 28 + size + length)[0]


def _first_number(path: Path, key: str | None) -> int | None:
    """Return the number that the journal has at the beginning of the log, None where it is not open."""
    with closing(log_records(path, key)) as records:
        for _, record in records:
            if _WORD.unpack_from(record)[0] == _REGISTER and (found := _registered(record)) is not None:
                operation, number = found
                return number if operation in _WAS_OPEN else None
    return None


def _end(path: Path, position: tuple[int, int]) -> Position:
    """Return where the record at this position ends."""
    with (path / files.log_name(position[0])).open("rb") as file:
        file.seek(position[1])
        return Position(position[0], position[1] + LOG_HEADER.unpack(file.read(LOG_HEADER.size))[1])


def _require_end(path: Path, position: tuple[int, int], following: int) -> None:
    """Look whether the last record that was read of a log file ends it; the library may take damage for the end."""
    end = _end(path, position)
    file = path / files.log_name(end.log)
    if following != end.log + 1:
        raise DamagedError(f"{path / files.log_name(end.log + 1)} is missing: put it back, or restore from a backup")
    if files.log_tail(file, end.offset).size:
        raise DamagedError(
            f"{file} is damaged at offset {end.offset}: put an undamaged copy back, or restore from a backup"
        )


def _require_last(path: Path, position: tuple[int, int]) -> None:
    """Look whether the last record that was read is in the last log file, or nothing is in those behind it."""
    for number in files.log_numbers(path):
        if number > position[0] and files.log_tail(path / files.log_name(number), 0).size:
            _require_end(path, position, number)


def _size(path: Path, before: tuple[int, int], where: tuple[int, int]) -> int:
    """Return how many bytes of log are between two positions."""
    skipped = range(before[0] or files.log_numbers(path)[0], where[0])
    return sum((path / files.log_name(number)).stat().st_size for number in skipped) - before[1] + where[1]


def _require_version(file: Path, *, plain: bool) -> None:
    """Refuse a log of another version; where it is encrypted, only the library can tell.

    The library crashes where the length of the first record is damaged.
    """
    with file.open("rb") as log:
        start = log.read(LOG_HEADER.size + _PERSISTENT.size)
    if not any(start):  # it was just begun, and nothing was written yet
        return
    start = start.ljust(LOG_HEADER.size + _PERSISTENT.size, b"\0")
    magic, version = _PERSISTENT.unpack_from(start, LOG_HEADER.size)
    if LOG_HEADER.unpack_from(start)[1] != (_FIRST if plain else _FIRST_ENCRYPTED) or (plain and magic != _MAGIC):
        raise DamagedError(f"{file} is damaged at its beginning: put an undamaged copy back, or restore from a backup")
    if plain and version != _VERSION:
        raise LibraryMismatch(f"{file} has version {version}, not {_VERSION}: use the library that wrote it")
