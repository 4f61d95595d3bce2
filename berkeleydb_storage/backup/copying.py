"""One consistent copy of a storage that is in use.

The library allows to copy the tables while they are written, if every page is copied whole, and the log of everything
since the checkpoint before goes with them: recovery then brings all pages to the state at the end of that log.

Invariants:

1. The log in the copy ends where no transaction was under way: at a commit.
2. No page is copied while it is written. Pages are written by a checkpoint, or by who holds the engine's mutex. So
   reading and checkpoints take turns; and each part is read twice, with the mutex held once in between: what was the
   same both times was written by nobody then. A page that was not is read again with the mutex held.
3. Every page that was written meanwhile has changes in the log that is copied, so that recovery looks at its checksum:
   should a page not be whole after all, then there is no backup.

The mutex is held for microseconds at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from berkeleydb_storage import failpoints, files
from berkeleydb_storage.checkpoint import Checkpointer
from berkeleydb_storage.directory import CLOSED, DESCRIPTION, LOCK, Directory
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.environment import LIBRARY_ERRORS, TABLES, Environment, explain
from berkeleydb_storage.errors import BackupError, BerkeleyDBStorageError, DamagedError
from berkeleydb_storage.files import PAGE_SIZE, TABLE_SUFFIX
from berkeleydb_storage.journal import Journal
from berkeleydb_storage.options import DEFAULT_CACHE
from berkeleydb_storage.recovery import roll_forward

PART = 64 * PAGE_SIZE
"""Bytes that are copied at a time."""
READ_AT_ONCE = 16 << 20
"""Bytes that are read between two checkpoints, at most, and kept in memory: what is slow is the writing."""
SYNC_EVERY = 1 << 20
"""Bytes after which the copy is brought to the disk. A commit waits for that: with 8 MiB or 256 KiB, twice as long."""

Report = Callable[[str, int], None]
"""Called with what is being done, and how many bytes of it are; what it raises ends the copying."""


class Moment(NamedTuple):
    """The state of the storage that is in the copy."""

    tid: int
    time: int
    """In microseconds since the epoch."""
    objects: int
    identity: bytes
    log: tuple[int, int]
    """Where the log ends: the number of the file, and the offset in it."""


class Copying:
    """Copies one storage; for one thread, and once."""

    def __init__(self, engine: Engine, checkpointer: Checkpointer, directory: Directory, report: Report) -> None:
        """Copy nothing yet."""
        self._engine = engine
        self._checkpointer = checkpointer
        self._directory = directory
        self._report = report
        self._copied = 0

    def into(self, target: Path) -> Moment:
        """Make `target`, an empty directory, a storage that is closed, with what the storage has at the end.

        Raises:
            CommitRefused: a migration is under way. DiskFullError: the storage has no room for a checkpoint.
            DamagedError, StorageClosed: the storage cannot be used.
            BackupError: the copy cannot be recovered. OSError: it cannot be written, or the storage not be read.
        """
        with self._engine.lock:
            self._engine.require_open()
            self._engine.require_idle()
        with self._checkpointer.keeping_logs() as first:
            for name in TABLES:
                self._copy_table(name + TABLE_SUFFIX, target)
            failpoints.reached("backup.tables")
            moment = self._moment()
            for number in range(first, moment.log[0] + 1):
                end = moment.log[1] if number == moment.log[0] else None
                self._copy_log(files.log_name(number), target, end)
        failpoints.reached("backup.logs")
        self._report("recovering", 0)
        self._close(target, moment)
        failpoints.reached("backup.recovered")
        return moment

    def _moment(self) -> Moment:
        """Note a state of the storage, and bring the log up to there to the disk."""
        engine = self._engine
        with engine.lock:
            engine.require_open()
            engine.require_idle()
            moment = Moment(
                engine.journal.tid, engine.time(), engine.size, engine.identity, engine.environment.end_of_log()
            )
        try:
            engine.environment.flush()
        except LIBRARY_ERRORS as error:
            stopped = engine.environment.distrust(error)
            if stopped is not None:
                with engine.lock:
                    engine.refuse(stopped)
            raise stopped or explain(error, self._directory.path) from error
        return moment

    def _copy_table(self, name: str, target: Path) -> None:
        with _opened(self._directory.path / name) as source, _created(target / name, source) as copy:
            offset = 0
            while parts := self._parts(source, offset):
                for part in parts:
                    offset += self._write(copy, part)

    def _parts(self, source: int, offset: int) -> list[bytes]:
        """Return the next parts of a table, of `READ_AT_ONCE` bytes together; at its end none."""
        parts: list[bytes] = []
        with self._checkpointer.resting():
            for start in range(offset, offset + READ_AT_ONCE, PART):
                parts.append(self._part(source, start))
                if len(parts[-1]) < PART:
                    break
        return [part for part in parts if part]

    def _part(self, source: int, offset: int) -> bytes:
        """Return some whole pages of a table. No checkpoint is under way."""
        first = os.pread(source, PART, offset)
        with self._engine.lock:
            self._engine.require_open()
        part = os.pread(source, PART, offset)
        if part != first:
            part = b"".join(self._settled(source, offset, first, part))
        return part[: len(part) // PAGE_SIZE * PAGE_SIZE]

    def _settled(self, source: int, offset: int, first: bytes, second: bytes) -> Iterator[bytes]:
        for start in range(0, len(second), PAGE_SIZE):
            page = second[start : start + PAGE_SIZE]
            if page != first[start : start + PAGE_SIZE]:
                with self._engine.lock:
                    page = os.pread(source, PAGE_SIZE, offset + start)
            yield page.ljust(PAGE_SIZE, b"\0")

    def _copy_log(self, name: str, target: Path, end: int | None) -> None:
        """Copy a log file up to `end`, None: all of it. It is not written there any more."""
        with _opened(self._directory.path / name) as source, _created(target / name, source) as copy:
            size = os.fstat(source).st_size if end is None else end
            offset = 0
            while part := os.pread(source, min(PART, size - offset), offset):
                offset += self._write(copy, part)
        if offset != size:
            raise BackupError(f"{self._directory.path / name} has {offset} bytes, and {size} were expected")

    def _write(self, copy: int, part: bytes) -> int:
        """Append a part to the copy, and return its length."""
        left = memoryview(part)
        while left:
            left = left[os.write(copy, left) :]
        before = self._copied
        self._copied += len(part)
        if before // SYNC_EVERY != self._copied // SYNC_EVERY:
            os.fsync(copy)
        self._report("copying", self._copied)
        return len(part)

    def _close(self, target: Path, moment: Moment) -> None:
        """Recover the copy, and make it a storage that was closed and needs no log but the newest."""
        try:
            key = self._engine.environment.key
            roll_forward(target, DEFAULT_CACHE, key=key)
            environment = Environment.open(target, DEFAULT_CACHE, key=key)
            try:
                found = Journal(environment.tables)
                if (found.tid, found.state.objects) != (moment.tid, moment.objects):
                    raise BackupError(f"transaction {found.tid} is the last in the copy, instead of {moment.tid}")
                environment.checkpoint()
                log, offset = environment.last_checkpoint()
                for number in environment.removable_logs():
                    (target / files.log_name(number)).unlink()
                environment.close()
            except BaseException:
                environment.abandon()
                raise
        except LIBRARY_ERRORS as error:
            raise BackupError(f"the copy cannot be recovered: {explain(error, target)}") from error
        except BerkeleyDBStorageError as error:
            raise BackupError(f"the copy cannot be recovered: {error}") from error
        self._describe(target, log, offset)

    def _describe(self, target: Path, log: int, offset: int) -> None:
        copy = Directory(target)
        numbers = files.log_numbers(target)
        description = self._directory.read()
        if description is None:
            raise DamagedError(f"{self._directory.path / DESCRIPTION} is gone: restore it from a backup")
        copy.write(
            replace(
                description,
                state=CLOSED,
                first_log=numbers[0],
                last_log=numbers[-1],
                checkpoint_log=log,
                checkpoint_offset=offset,
                sizes=copy.sizes(TABLES),
                durable=True,
            )
        )
        (target / LOCK).touch()


def digests(directory: Path, report: Report) -> dict[str, dict[str, Any]]:
    """Bring the files of a copy to the disk; return the size and the SHA-256 of each, by name."""
    found = {}
    done = 0
    for name in sorted(name for name in os.listdir(directory) if name != LOCK):
        hashed = hashlib.sha256()
        size = 0
        with _opened(directory / name) as file:
            while part := os.read(file, 4 * PART):
                hashed.update(part)
                size += len(part)
                report("verifying", done + size)
            os.fsync(file)
        done += size
        found[name] = {"bytes": size, "sha256": hashed.hexdigest()}
    return found


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _created(path: Path, source: int) -> Iterator[int]:
    """Create a file with the permissions of an open one."""
    mode = os.fstat(source).st_mode & 0o777
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode | 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
