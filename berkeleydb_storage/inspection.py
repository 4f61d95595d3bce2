"""What the commands tell about a storage: its figures, its classes, its records; and records back into one.

These functions read, and return or yield what they found; they never print. None of them imports a class of the
application, or runs anything that a record says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pyroaring import BitMap64

from berkeleydb_storage.control.asking import ControlSource
from berkeleydb_storage.directory import CLOSED, CREATING, Description, Directory
from berkeleydb_storage.errors import BerkeleyDBStorageError, MigrationError, StorageInUse, StorageNotFound
from berkeleydb_storage.figures import Inside, take_figures
from berkeleydb_storage.files import TABLE_SUFFIX, log_number
from berkeleydb_storage.format import pack_uint64, unpack_uint64
from berkeleydb_storage.garbage.policy import GarbageManual
from berkeleydb_storage.holding import Held, Holds
from berkeleydb_storage.records import class_name, from_json, to_json, to_text
from berkeleydb_storage.session import Session
from berkeleydb_storage.storage import BerkeleyDBStorage

REPORT_EVERY = 2000
"""Records between two calls of `progress`."""

PATIENCE = 5.0
"""Seconds that a process which has a storage open may take to tell its figures."""

Progress = Callable[[str, int], None]

logger = logging.getLogger(__name__)


class FileSize(NamedTuple):
    """A file of a storage."""

    name: str
    bytes: int
    """Its length."""
    disk: int
    """Bytes that it takes on the disk."""


@dataclass(frozen=True)
class Outside:
    """What the files of a storage tell without being opened."""

    path: str
    format: int
    """Version of the layout."""
    library: str
    """Version of the Berkeley DB library that wrote the files."""
    type: str
    """Access method of the objects: "btree" or "hash"."""
    encrypted: bool
    state: str
    """"closed"; "open": a process has it, or did when it died; "creating": it holds nothing yet."""
    pid: int | None
    """The process that has it open for writing, None where there is none, or where it was not looked for."""
    tables: tuple[FileSize, ...]
    logs: tuple[FileSize, ...]
    holds: tuple[Held, ...] = ()
    """The backups and archives that log files are kept for, which recovery does not need; who holds most first."""

    @property
    def disk(self) -> int:
        """Bytes that tables and logs take on the disk."""
        return sum(file.disk for file in (*self.tables, *self.logs))


def figures(storage: BerkeleyDBStorage) -> Inside:
    """Return the figures of a storage that is open in this process. Any thread may call it.

    It reads all suspects, if they are not more than `figures.SUSPECTS`.

    Raises:
        StorageClosed, DamagedError: it cannot be read.
    """
    return take_figures(storage.engine, storage.statistics())


def outside(path: str | Path, pid: int | None = None) -> Outside:
    """Return what the files of the storage at `path` tell; works on one that is in use.

    Args:
        path: the directory.
        pid: who has it open, if that is known.

    Raises:
        StorageNotFound, NotAStorage, NewerFormat, DamagedError: there is no storage that could be looked at.
    """
    directory = Directory(path)
    description = _description(directory)
    sizes = sorted(_sizes(directory.path))
    return Outside(
        path=str(directory.path),
        format=description.format,
        library=description.library,
        type=description.type,
        encrypted=description.encrypted,
        state=description.state,
        pid=pid,
        tables=tuple(size for size in sizes if size.name.endswith(TABLE_SUFFIX)),
        logs=tuple(size for size in sizes if log_number(size.name) is not None),
        holds=Holds(directory, writable=False).figures(),
    )


def _description(directory: Directory) -> Description:
    description = directory.read()
    if description is None:
        raise StorageNotFound(f"{directory.path} holds no storage")
    return description


def _sizes(path: Path) -> Iterator[FileSize]:
    for file in path.iterdir():
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        yield FileSize(file.name, status.st_size, status.st_blocks * 512)


def stat(path: str | Path, *, key: str | None = None) -> tuple[Outside, Inside | None]:
    """Return what there is to know about the storage at `path`; nothing is written to it.

    Where its last owner did not close it, a recovered copy is made in the temporary directory, for as long as this
    takes.

    Returns:
        What the files tell, and the figures, which a process that has it open is asked for; None in their place where
        that does not answer, or where it holds nothing yet.

    Raises:
        StorageNotFound, NotAStorage, NewerFormat, LibraryMismatch, RecoveryNeeded, DamagedError: it cannot be read.
    """
    seen = outside(path)
    if seen.state == CREATING:
        return seen, None
    try:
        with BerkeleyDBStorage(path, read_only=True, key=key) as storage:
            return seen, figures(storage)
    except StorageInUse as error:
        return outside(path, error.pid), _asked(path)


def _asked(path: str | Path) -> Inside | None:
    """Return the figures of the process that has a storage open; None where it does not answer."""
    try:
        return ControlSource(path, timeout=PATIENCE).statistics().inside
    except BerkeleyDBStorageError as error:
        logger.debug("%s: %s", path, error)
        return None


def open_gently(
    path: str | Path, *, read_only: bool, cachesize: int, repair: bool = False, key: str | None = None
) -> BerkeleyDBStorage:
    """Open a storage to look at it: no garbage is collected, and what is clean is not written to.

    Args:
        path: the directory.
        read_only: never write to it. Otherwise one that was not closed is recovered in place, if that is possible.
        cachesize: bytes of memory for pages.
        repair: it is to be written to.
        key: what it is encrypted with.

    Raises:
        BerkeleyDBStorageError: as ``BerkeleyDBStorage`` does.
    """
    directory = Directory(path)
    clean = _description(directory).state == CLOSED
    reading = read_only or (clean and not repair)
    return BerkeleyDBStorage(path, read_only=reading, cachesize=cachesize, garbage_collection=GarbageManual(), key=key)


class ClassCount(NamedTuple):
    """A line of a census."""

    name: str
    """Module and name of the class."""
    objects: int
    bytes: int
    """In the records of these objects."""


def census(storage: Session, progress: Progress | None = None) -> list[ClassCount]:
    """Count the objects of each class, garbage included. Memory: in proportion to the number of classes.

    Args:
        storage: any session; it may be written to meanwhile.
        progress: called now and then with "counting" and the number of objects so far.

    Returns:
        The classes, the one with most bytes first.
    """
    counts: dict[str, list[int]] = {}
    for seen, (_, record) in enumerate(storage.gen_oid_record(batch_size=1000), 1):
        entry = counts.setdefault(class_name(record), [0, 0])
        entry[0] += 1
        entry[1] += len(record)
        if progress is not None and seen % REPORT_EVERY == 0:
            progress("counting", seen)
    found = [ClassCount(name, objects, size) for name, (objects, size) in counts.items()]
    return sorted(found, key=lambda line: (-line.bytes, line.name))


def select(storage: Session, numbers: Iterable[int] | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Return (oid, record) of the objects with these oids, or of all in the order of their oids, as an iterator.

    Raises:
        DurusKeyError: while iterating: there is no such object.
        ValueError: while iterating: there can be no such oid.
    """
    if numbers is None:
        return storage.gen_oid_record(batch_size=1000)
    return ((oid, storage.load(oid)) for oid in map(_oid, numbers))


def _oid(number: int) -> bytes:
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{number} is not an oid: they have 64 bits")
    return pack_uint64(number)


def dump(rows: Iterable[tuple[bytes, bytes]], write: Callable[[str], object], *, text: bool = False) -> int:
    """Write objects as lines of JSON, from which `loaded` gets them back exactly, or as text for people.

    Args:
        rows: (oid, record) of each, such as `select` returns.
        write: called with each object's line or lines.
        text: two lines for each, with its state, in place of JSON.

    Returns:
        The number of objects.
    """
    shape = to_text if text else to_json
    count = 0
    for oid, record in rows:
        write(shape(oid, record))
        count += 1
    return count


def loaded(lines: Iterable[bytes | str], name: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (oid, record) of what `dump` wrote as JSON, for ``migrate``. Empty lines are passed over.

    Args:
        lines: the lines of the dump.
        name: what errors call it.

    Raises:
        MigrationError: a line is malformed, or has an object that came before; its number is in the message.
    """
    seen = BitMap64()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            oid, record = from_json(line)
        except ValueError as error:
            raise MigrationError(f"{name}, line {number}: {error}") from error
        if unpack_uint64(oid) in seen:
            raise MigrationError(f"{name}, line {number}: object {unpack_uint64(oid)} comes twice")
        seen.add(unpack_uint64(oid))
        yield oid, record
