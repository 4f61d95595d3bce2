"""Recovers a storage that its last owner did not close, and says what may be lost.

Nobody else has it open, and the library has not touched it yet.

Invariants:

1. A failing recovery changes no file: its cache is large enough to hold every page that the log can have touched, up
   to `CACHE_LIMIT`, so that nothing is written back before it is complete; and the end of the log is put back.
2. Behind the end of the log are zeros: what was dropped is not met again, as if it had been written after the crash.
3. The tables hold nothing that happened behind the end of the log.

Invariant 3 follows from the log being on the disk before the pages, unless the log was damaged afterwards. The library
does not look at it, nor does it care for 2.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from berkeleydb_storage import files
from berkeleydb_storage.directory import Directory
from berkeleydb_storage.environment import LIBRARY_ERRORS, TABLES, end_of_log, explain, run_recovery
from berkeleydb_storage.errors import BerkeleyDBStorageError, DamagedError, DiskFullError
from berkeleydb_storage.files import LOG_HEADER, PAGE_SIZE, TABLE_SUFFIX
from berkeleydb_storage.vectors import verify_vectors

logger = logging.getLogger(__name__)

RESTORE = "restore the storage from a backup, or get out what is left with `durus-bdb salvage`"

RECOVERY_ERRORS: tuple[type[Exception], ...] = (BerkeleyDBStorageError, *LIBRARY_ERRORS)
CACHE_LIMIT = 4 << 30
LOOKED_AT = 256 << 20
"""Bytes of a table whose pages are all looked at after a recovery, a quarter of a second; of a larger one the holes."""
SMALLEST_RECORD = 64
"""Bytes of log that change a page, at the least."""
ROOM = 32 << 20
"""Bytes on the disk that are enough for a recovery."""
REPORT_EVERY = 5.0
"""Seconds between two log lines while a recovery runs."""


def rehearse(directory: Directory, cachesize: int, shortened: list[Path], *, key: str | None = None) -> None:
    """Recover a copy of a storage whose tables are shorter than they were, which may mean that they were cut off.

    Raises:
        DamagedError: they were; the files are as they were.
    """
    logger.warning("%s is shorter than it was: a copy is recovered first, to see whether it is whole", shortened[0])
    with tempfile.TemporaryDirectory(prefix="berkeleydb_storage-") as name:
        copy = Path(name)
        try:
            directory.copy_to(copy)
        except OSError as error:
            logger.warning("no copy was made (%s): %s is recovered itself", error, directory.path)
            return
        recover_copy(directory, copy, cachesize, key=key)


def roll_forward(path: Path, cachesize: int, *, key: str | None = None) -> None:
    """Bring the tables of a copy that was made of a storage in use to the end of the log that is with them.

    The log must go back to the checkpoint before the copying began. `cachesize` is in bytes; `key` is the right one.

    Raises:
        DamagedError: they do not fit together, or a page was not copied whole. The copy is of no use then.
        DiskFullError: there is no room.
    """
    sizes = {where: where.stat().st_size for where in _table_files(path)}
    if key is not None:
        verify_vectors(path, key, files.log_numbers(path))
    try:
        run_recovery(path, cachesize, whole_log=True, key=key)
    except LIBRARY_ERRORS as error:
        raise _diagnosis(path, error, key) from error
    _require_whole_tables(sizes, key)


def recover_copy(directory: Directory, copy: Path, cachesize: int, *, key: str | None = None) -> None:
    """Recover a copy of a storage.

    Raises:
        DamagedError: it cannot be; what is named is the original, which is as it was.
    """
    try:
        recover(copy, cachesize, f"is a copy of {directory.path}, which was not closed", key=key)
    except DamagedError as error:
        raise DamagedError(str(error).replace(str(copy), str(directory.path))) from error


def recover(
    path: Path, cachesize: int, reason: str, doubt: Callable[[bool], object] = bool, *, key: str | None = None
) -> None:
    """Bring the tables at `path` to the state of the last transaction that is whole in the log.

    Args:
        path: the directory.
        cachesize: bytes, at least.
        reason: why, for the log line, after the path.
        doubt: called with True before the log is cut off at a damaged record, and with False if that is put back.
        key: the right one: with another one all is damage.

    Logs how long it took; while it runs, a line every `REPORT_EVERY` seconds; and a warning where the log was cut
    off at a damaged record, because acknowledged commits may have been behind it.

    Raises:
        DamagedError: the files cannot be recovered; they are as they were, and the one at fault is named. Or they
            could, and then a table turned out to be cut off.
        DiskFullError: there is no room to recover; it can be tried again.
    """
    started = time.monotonic()
    log_bytes = sum(files.used_bytes(path / files.log_name(number)) for number in Directory(path).needed_logs())
    logger.warning("%s %s: recovering from %.1f MB of log", path, reason, log_bytes / 1e6)
    sizes = {where: where.stat().st_size for where in _table_files(path)}
    _require_beginning(path)
    dropped = _drop_tail(path, doubt, key)
    with _reporting(path, started, log_bytes), Directory(path).only_needed_logs():
        try:
            if key is not None:
                verify_vectors(path, key, Directory(path).needed_logs())
            run_recovery(path, max(cachesize, cache_for(path, log_bytes)), key=key)
        except RECOVERY_ERRORS as error:
            explained = error if isinstance(error, BerkeleyDBStorageError) else _diagnosis(path, error, key)
            if dropped is not None and isinstance(explained, DamagedError):
                dropped.put_back()
                doubt(False)
            raise explained from error
    _require_whole_tables(sizes, key)
    require_pages_in_place(path)
    logger.warning("%s is recovered, in %.2f s", path, time.monotonic() - started)


def _require_beginning(path: Path) -> None:
    """Look at the first records of the log, if it has several files.

    Where one of them has no length, the library finds no log, recovers nothing and says nothing, or crashes. Other
    damage it finds; and of a single file `_drop_tail` looks at all.
    """
    logs = [path / files.log_name(number) for number in Directory(path).needed_logs()]
    while len(logs) > 1 and not any(logs[-1].read_bytes()):
        logs.pop()  # it was just begun
    if len(logs) > 1:
        first, second = files.first_lengths(logs[0])
        if first not in files.FIRST_RECORD or second <= LOG_HEADER.size:
            offset = first if first in files.FIRST_RECORD else 0
            raise DamagedError(
                f"{logs[0]} is damaged at offset {offset}: put an undamaged copy back, or restore from a backup"
            )


def _require_whole_tables(sizes: dict[Path, int], key: str | None) -> None:
    """Look whether the log had all pages that were missing at the ends of the tables; `sizes`: before the recovery.

    Otherwise they are pages of zeros now, which the library takes for new ones, and is lost in forever.
    """
    for table, size in sizes.items():
        missing = files.missing_pages(table) + sum(1 for _ in files.bad_pages(table, key, start=size // PAGE_SIZE))
        if missing:
            raise DamagedError(f"{table} was cut off, {missing} pages are missing: restore the storage from a backup")


def require_pages_in_place(path: Path, looked_at: int = LOOKED_AT) -> None:
    """Look for pages of zeros, as a file system may leave them: the library would search in them forever.

    All pages are in the files: the storage was closed, or recovered. Of a table that is larger than `looked_at` bytes
    only what has no place on the disk is looked at, which takes microseconds.

    Raises:
        DamagedError: there is one, or one that is another's.
        BerkeleyDBStorageError: a table may not be read.
    """
    for table in _table_files(path):
        try:
            whole = table.stat().st_size <= looked_at
            page = next(files.strange_pages(table) if whole else files.holes(table), None)
        except PermissionError as error:
            raise BerkeleyDBStorageError(f"{table} may not be read by this process: mend its permissions") from error
        if page is not None:
            raise DamagedError(f"page {page} of {table} is not what belongs there: {RESTORE}")


def _table_files(path: Path) -> Iterator[Path]:
    for name in TABLES:
        yield path / (name + TABLE_SUFFIX)


def cache_for(path: Path, log_bytes: int) -> int:
    """Return how much cache holds every page that the log can have touched; it is taken as it is used."""
    touched = log_bytes // SMALLEST_RECORD * PAGE_SIZE
    existing = sum(where.stat().st_size for where in _table_files(path)) + 4 * log_bytes
    return min(touched, existing, CACHE_LIMIT)


@dataclass(frozen=True)
class _Dropped:
    """What was behind the last whole record of a log file."""

    path: Path
    start: int
    contents: bytes

    def put_back(self) -> None:
        """Undo the cut, unless something was written there."""
        if self.path.stat().st_size == self.start:
            with self.path.open("r+b") as file:
                file.seek(self.start)
                file.write(self.contents)


def _drop_tail(path: Path, doubt: Callable[[bool], object], key: str | None) -> _Dropped | None:
    """Cut the log after its last whole record, and log what that means.

    Raises:
        DamagedError: the tables hold what happened after that, so that the log was whole once. Nothing was changed.
    """
    for number in reversed(Directory(path).needed_logs()):
        last = path / files.log_name(number)
        end = end_of_log(last, key)
        tail = files.log_tail(last, end)
        if not end and not tail.size:
            continue
        if not tail.size:
            return None
        if end and tail.unfinished:
            logger.warning(
                "%s ends in %d bytes of a record that was being written when the owner stopped; it is dropped. With "
                "durable=True no acknowledged commit can be in it, unless the disk did not keep what it had synced",
                last,
                tail.size,
            )
        else:
            _refuse_newer_pages(path, number, end)
            logger.error(
                "%s is damaged at offset %d: the %d bytes from there on are dropped, and ACKNOWLEDGED COMMITS MAY BE "
                "LOST with them. If the storage has a backup or an archive of its logs, restore from there",
                last,
                end,
                tail.size,
            )
            doubt(True)
        return _cut(last, end)
    return None


def _refuse_newer_pages(path: Path, number: int, end: int) -> None:
    for table in _table_files(path):
        if files.newest_position(table) >= (number, end):
            raise DamagedError(
                f"{path / files.log_name(number)} is damaged at offset {end}, and {table} holds what happened after "
                "that: put an undamaged copy of the log file back, or restore the storage from a backup"
            )


def _cut(path: Path, end: int) -> _Dropped:
    with path.open("r+b") as file:
        file.seek(end)
        dropped = _Dropped(path, end, file.read())
        file.truncate(end)
        os.fsync(file.fileno())
    return dropped


@contextmanager
def _reporting(path: Path, started: float, log_bytes: int) -> Iterator[None]:
    done = threading.Event()

    def report() -> None:
        while not done.wait(REPORT_EVERY):
            elapsed = time.monotonic() - started
            logger.warning("%s: recovering for %.0f s now, from %.1f MB of log", path, elapsed, log_bytes / 1e6)

    reporter = threading.Thread(target=report, name="recovery progress", daemon=True)
    reporter.start()
    try:
        yield
    finally:
        done.set()
        reporter.join()


def _diagnosis(path: Path, error: Exception, key: str | None) -> BerkeleyDBStorageError:
    """Return what made a recovery fail; the library does not tell a full disk from damage then."""
    explained = explain(error, path)
    if isinstance(explained, DiskFullError):
        return explained
    if found := _damage(path, key):
        return DamagedError(f"{found}, or restore from a backup ({error})")
    if (free := shutil.disk_usage(path).free) < ROOM:
        return DiskFullError(
            f"{path} cannot be recovered while its disk has only {free:,} bytes free: free some ({error})"
        )
    return DamagedError(
        f"the tables in {path} do not fit to its log: one of its files was cut off, or is from another storage or "
        f"time: put the right one back, or restore from a backup ({error})"
    )


def _damage(path: Path, key: str | None) -> str | None:
    """Return what is damaged and what to do, None where there is nothing."""
    for where in _table_files(path):
        for page in files.bad_pages(where, key, zeros=True):
            return f"page {page} of {where} is damaged, so that it cannot be recovered: put an undamaged copy back"
    for log, offset in _damaged_logs(path, key):
        return f"{log} is damaged at offset {offset}: put an undamaged copy back"
    return None


def _damaged_logs(path: Path, key: str | None) -> Iterator[tuple[Path, int]]:
    """Yield the log files, but for the last, that are not whole, and where their last whole record ends."""
    numbers = Directory(path).needed_logs()
    for number, following in pairwise(numbers):
        log = path / files.log_name(number)
        end = end_of_log(log, key)
        with (path / files.log_name(following)).open("rb") as file:
            header = file.read(LOG_HEADER.size).ljust(LOG_HEADER.size, b"\0")
        if files.log_tail(log, end).size or end <= LOG_HEADER.unpack(header)[0]:
            yield log, end
