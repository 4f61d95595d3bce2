"""A storage made of the files of a base and the log after it, in a directory that nobody else knows.

Killed at any point: ``storage.json`` is written last, so that there is nothing that opens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from berkeleydb_storage import files
from berkeleydb_storage.directory import CLOSED, LOCK, OPENED, Description, Directory
from berkeleydb_storage.environment import LIBRARY, LIBRARY_ERRORS, TABLES, Environment, explain
from berkeleydb_storage.errors import BerkeleyDBStorageError, DamagedBackup, DiskFullError
from berkeleydb_storage.journal import Journal
from berkeleydb_storage.recovery import cache_for, roll_forward

logger = logging.getLogger(__name__)

CACHE = 1 << 30
"""Bytes for pages, at most, while the log is applied. They are taken as they are used. Where the pages that the log
changes do not fit, the library writes and reads them again and again: 100 MB of log, which change the pages of 380 MB
of tables at random, take 2.7 seconds of processor time with 512 MB, 4.5 with 256 and 26 with 64."""
SMALLEST_CACHE = 16 << 20


class State(NamedTuple):
    """What is in a storage."""

    tid: int
    """The newest transaction."""
    time: int
    """When that was, in microseconds since the epoch."""
    objects: int


def describe(values: dict[str, Any], where: str) -> Description:
    """Return what ``storage.json`` said of a storage that was copied.

    Raises:
        DamagedBackup: it is malformed.
    """
    try:
        return Description(**values)
    except (TypeError, ValueError) as error:
        raise DamagedBackup(
            f"what is noted of the storage in {where} is damaged ({error}): use another backup"
        ) from error


def verify(path: Path, description: Description, key: str | None, where: str) -> None:
    """Look whether the files can be used here, before anything is fetched.

    Args:
        path: where they are to be.
        description: of the storage that was backed up.
        key: what it is to be read with.
        where: the backup, for people.

    Raises:
        LibraryMismatch: another version of the library wrote them. WrongKey, KeyNeeded, OptionError: it takes another
            key, or none.
    """
    copy = Directory(path)
    try:
        copy.verify_library(description, LIBRARY)
        copy.verify_key(description, key)
    except BerkeleyDBStorageError as error:
        raise type(error)(str(error).replace(str(path), where, 1)) from error


def finish(path: Path, description: Description, key: str | None) -> State:
    """Apply the log in a directory to the tables in it, and make it a storage that was closed.

    It has no identity of its own before it is opened for writing. Nobody else may use the directory.

    Args:
        path: the tables, and the log files that go on without a gap from the checkpoint before they were copied.
        description: of the storage that they are of.
        key: of that storage, the right one.

    Raises:
        DamagedBackup: the files do not fit together; nothing of it can be used. DiskFullError: there is no room.
    """
    log_bytes = sum(files.used_bytes(path / files.log_name(number)) for number in files.log_numbers(path))
    cachesize = max(SMALLEST_CACHE, min(CACHE, cache_for(path, log_bytes)))
    try:
        roll_forward(path, cachesize, key=key)
        environment = Environment.open(path, cachesize, key=key)
        try:
            journal = Journal(environment.tables)
            state = State(journal.tid, journal.state.time, journal.state.objects)
            environment.checkpoint()
            log, offset = environment.last_checkpoint()
            _remove(path, environment.removable_logs())
            environment.close()
        except BaseException:
            environment.abandon()
            raise
    except LIBRARY_ERRORS as error:
        raise DamagedBackup(f"the files of the backup do not fit together: {explain(error, path)}") from error
    except DiskFullError:
        raise
    except BerkeleyDBStorageError as error:
        raise DamagedBackup(f"the files of the backup do not fit together: {error}") from error
    _note(path, description, log, offset)
    return state


def _remove(path: Path, numbers: Iterable[int]) -> None:
    for number in numbers:
        (path / files.log_name(number)).unlink(missing_ok=True)


def _note(path: Path, description: Description, log: int, offset: int) -> None:
    directory = Directory(path)
    numbers = files.log_numbers(path)
    (path / LOCK).touch()
    (path / OPENED).touch()
    directory.write(
        replace(
            description,
            state=CLOSED,
            first_log=numbers[0],
            last_log=numbers[-1],
            checkpoint_log=log,
            checkpoint_offset=offset,
            sizes=directory.sizes(TABLES),
            durable=True,
        )
    )
