"""Copies a storage into a directory in which it is encrypted with another key, or with none.

Row by row: a page cannot be taken over, as it holds positions in the log, and the log cannot, as it is encrypted too.
The source is only read, and nobody writes to it meanwhile.

Invariants:

1. Until ``storage.json`` is written, last of all, what is in the target does not open: it is refused.
2. The copy has every row of every table, the identity and the journal among them, and nothing else.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from berkeleydb_storage import failpoints, files
from berkeleydb_storage.directory import CLOSED, LOCK, MANIFEST, OPENED, Description, Directory
from berkeleydb_storage.environment import LIBRARY, NO_SYNC, TABLES, Environment, Table, Transaction, explained, rows
from berkeleydb_storage.errors import (
    BerkeleyDBStorageError,
    RecoveryNeeded,
    StorageNotEmpty,
    StorageNotFound,
)
from berkeleydb_storage.format import ENCRYPTED_VERSION, FORMAT_VERSION
from berkeleydb_storage.keys import make_check, require_key
from berkeleydb_storage.options import DEFAULT_CACHE

logger = logging.getLogger(__name__)

Progress = Callable[[str, int], None]

BATCH, BATCH_BYTES = 1000, 1 << 20
"""Rows, and bytes, of a transaction."""
CHECKPOINT_BYTES = 64 << 20
"""Bytes of rows after which the log that they made is removed."""


def rekey(
    source: Path, key: str | None, target: Path, new_key: str | None, progress: Progress | None = None
) -> Description:
    """Copy a storage that was closed into a new directory, encrypted with another key.

    It takes some 10 seconds for 1 GB, and 64 MiB of memory. Killed at any point, it leaves what does not open.

    Args:
        source: the directory of a storage.
        key: what it is encrypted with; None: it is not.
        target: an empty directory, or the name of one to be made.
        new_key: what the copy is encrypted with; None: nothing.
        progress: called now and then with what is being done and the number of bytes; what it raises ends the work.

    Returns:
        What ``storage.json`` of the copy says.

    Raises:
        StorageNotEmpty: the target is not empty.
        StorageNotFound, NotAStorage, StorageInUse, LibraryMismatch, NewerFormat, DamagedError: the source cannot be
            read. RecoveryNeeded: it was not closed.
        WrongKey, KeyNeeded, OptionError: a key is not right. DiskFullError: there is no room.
    """
    if new_key is not None:
        require_key(new_key)
    report = progress or _silent
    with _closed_storage(source, key) as description, _new_directory(target):
        with explained(source):
            log, offset = _copy(source, key, target, new_key, description.type, report)
        failpoints.reached("rekey.closed")
        return _describe(source, target, description, new_key, log, offset)


@contextmanager
def _closed_storage(source: Path, key: str | None) -> Iterator[Description]:
    """Give what is known of a storage, and let nobody write to it meanwhile."""
    directory = Directory(source)
    locked = directory.has_lock()
    if locked:  # what was just put together has none
        directory.acquire(read_only=True)
    try:
        description = directory.read()
        if description is None:
            raise StorageNotFound(f"{source} holds no storage: give the directory of one")
        directory.verify_library(description, LIBRARY)
        if description.format not in (FORMAT_VERSION, ENCRYPTED_VERSION):
            raise BerkeleyDBStorageError(
                f"{source} has format {description.format}: open it for writing once, which upgrades it"
            )
        directory.verify_key(description, key)
        if description.state != CLOSED:
            raise RecoveryNeeded(f"{source} was not closed by its last owner: open it for writing once")
        directory.verify_files(description, list(TABLES), key)
        yield description
    finally:
        directory.release()


@contextmanager
def _new_directory(target: Path) -> Iterator[None]:
    """Make a directory, unless there is one, and empty it where the block fails."""
    made = not target.exists()
    target.mkdir(exist_ok=True)
    if names := os.listdir(target):
        raise StorageNotEmpty(f"{target} is not empty, it has {names[0]!r}: give a new directory")
    try:
        yield
    except BaseException:
        for name in os.listdir(target):
            (target / name).unlink()
        if made:
            target.rmdir()
        raise


def _copy(
    source: Path, key: str | None, target: Path, new_key: str | None, type: str, report: Progress
) -> tuple[int, int]:
    """Copy all rows; return where the last checkpoint is."""
    old = Environment.read(source, DEFAULT_CACHE, key=key)
    try:
        new = Environment.create(target, DEFAULT_CACHE, type, _nothing, key=new_key)
        try:
            failpoints.reached("rekey.begun")
            _copy_tables(old, new, report)
            _checkpoint(new)
            found = new.last_checkpoint()
            new.close()
        except BaseException:
            new.abandon()
            raise
    finally:
        old.close()
    return found


def _copy_tables(old: Environment, new: Environment, report: Progress) -> None:
    copied = noted = 0
    for name in TABLES:
        for batch in _batches(rows(old.tables[name])):
            copied += _write(new, new.tables[name], batch)
            report("encrypting" if new.key else "decrypting", copied)
            if copied - noted >= CHECKPOINT_BYTES:
                _checkpoint(new)
                noted = copied
                failpoints.reached("rekey.checkpoint")


def _batches(found: Iterator[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    while batch := list(itertools.islice(found, BATCH)):
        yield batch


def _write(environment: Environment, table: Table, batch: list[tuple[bytes, bytes]]) -> int:
    """Store rows in transactions that are not larger than they need to be; return the number of bytes."""
    size = written = 0
    transaction = environment.begin()
    try:
        for key, value in batch:
            table.put(key, value, txn=transaction)
            size += len(key) + len(value)
            if size - written >= BATCH_BYTES:
                written = size
                transaction.commit(NO_SYNC)
                transaction = environment.begin()
        transaction.commit(NO_SYNC)
    except BaseException:
        transaction.abort()
        raise
    return size


def _checkpoint(environment: Environment) -> None:
    """Write all pages, and remove the log files that nobody needs then."""
    environment.checkpoint()
    for number in environment.removable_logs():
        (environment.path / files.log_name(number)).unlink()


def _describe(
    source: Path, target: Path, description: Description, key: str | None, log: int, offset: int
) -> Description:
    """Make a storage of the copy."""
    copy = Directory(target)
    numbers = files.log_numbers(target)
    described = replace(
        description,
        format=FORMAT_VERSION if key is None else ENCRYPTED_VERSION,
        library=LIBRARY,
        first_log=numbers[0],
        last_log=numbers[-1],
        checkpoint_log=log,
        checkpoint_offset=offset,
        sizes=copy.sizes(TABLES),
        encrypted=key is not None,
        key_check="" if key is None else make_check(key),
    )
    (target / LOCK).touch()
    if (source / MANIFEST).exists() or (source / OPENED).exists():
        (target / OPENED).touch()
    failpoints.reached("rekey.described")
    copy.write(described)
    failpoints.reached("rekey.done")
    return described


def _nothing(tables: dict[str, Table], transaction: Transaction) -> None:
    """Leave the tables empty."""


def _silent(activity: str, size: int) -> None:
    """Show no progress."""
