"""The only importer of the Berkeley DB binding: open, recover, flush, checkpoint and close an environment.

Owns the environment and the table handles. Every method may be called from any thread; what keeps concurrent
writers of one table apart is the engine's mutex, because there is no lock subsystem (`DB_INIT_LOCK`) here.

Invariants:

1. Regions are private to the process (`DB_PRIVATE`): nothing is shared with, or left behind for, another process.
   That is safe because the directory's lock admits one owner.
2. Pages are 4 KiB, the unit that a disk writes atomically, and have checksums.

Flags and their meaning: Berkeley DB 5.3's C API reference for DB_ENV->open, DB->open and DB_ENV->txn_checkpoint.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from berkeleydb import _berkeleydb, db

from berkeleydb_storage import files
from berkeleydb_storage.errors import BerkeleyDBStorageError, DamagedError, DiskFullError
from berkeleydb_storage.files import PAGE_SIZE, TABLE_SUFFIX

logger = logging.getLogger(__name__)

OBJECTS, REFCOUNTS, GARBAGE, SUSPECTS, JOURNAL, META = TABLES = (
    "objects",
    "refcounts",
    "garbage",
    "suspects",
    "journal",
    "meta",
)

LIBRARY = ".".join(map(str, db.version()))
LIBRARY_ERRORS: tuple[type[Exception], ...] = (db.DBError, MemoryError)
"""What the binding raises; `explain` tells what it means. Out of cache is the builtin MemoryError."""

NO_SYNC: int = db.DB_TXN_NOSYNC
WRITE_NO_SYNC: int = db.DB_TXN_WRITE_NOSYNC

MERGE: int = 0
"""How to compact: rows of neighbouring pages are put together; the pages that get empty are free, and stay."""
GIVE_BACK: int = db.DB_FREE_SPACE
"""As `MERGE`; and pages at the end of the file move to free ones before them, and what is free there is cut off."""
CUT: int = db.DB_FREELIST_ONLY
"""The pages that are free at the end of the file are cut off, and nothing else."""

PLENTY = 8 << 20
"""Bytes that a disk has not, if a write fails for want of room."""
MODE = 0o644
"""Of the files, less what the umask takes away: as those that Python makes, so that others may be let read them."""
LOG_FILE_SIZE = 16 << 20
"""Bytes of a log file: the unit in which logs are removed."""
LOG_BUFFER = 1 << 20
MUTEXES = 20_000
"""More than the library's default, which runs out; besides one for every page of the cache."""
SMOOTH_PAGES, SMOOTH_PAUSE = 64, 1000
"""A checkpoint rests this many microseconds after this many pages, so that commits get the disk in between."""

_DISK_ERRORS = [(number,) for number in (errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ESTALE)]
_NO_FLUSH: int = 0x1000 if db.version()[:2] == (5, 3) else db.DB_PANIC_ENVIRONMENT
"""What keeps an environment from writing pages when it is closed: DB_NOFLUSH of db.h, which the binding does not name.
In other versions of the library it may have another value; stopping the environment does the same, but leaks memory."""
_TRANSACTIONAL = db.DB_CREATE | db.DB_INIT_MPOOL | db.DB_INIT_LOG | db.DB_INIT_TXN | db.DB_PRIVATE | db.DB_THREAD
_READING = db.DB_CREATE | db.DB_INIT_MPOOL | db.DB_PRIVATE | db.DB_THREAD


class Transaction(Protocol):
    """A transaction of the library."""

    def commit(self, flags: int = 0) -> None:
        """Make it permanent."""

    def abort(self) -> None:
        """Undo it."""


class Cursor(Protocol):
    """A position in a table. Each method returns (key, value), or None where there is nothing."""

    def first(self) -> tuple[bytes, bytes] | None:
        """Go to the first row."""

    def last(self) -> tuple[bytes, bytes] | None:
        """Go to the last row."""

    def next(self) -> tuple[bytes, bytes] | None:
        """Go on to the next row."""

    def set_range(self, key: bytes, *, dlen: int = -1, doff: int = -1) -> tuple[bytes, bytes] | None:
        """Go to the first row whose key is not less than `key`; return `dlen` bytes from `doff` of its value."""

    def close(self) -> None:
        """Free it."""


class Table(Protocol):
    """A table of the library, used bare because each layer around it would cost a load a tenth of its time."""

    def __getitem__(self, key: bytes) -> bytes:
        """Return the value; KeyError where there is none."""

    def get(
        self, key: bytes, default: None = None, *, txn: Transaction | None = None, dlen: int = -1, doff: int = -1
    ) -> bytes | None:
        """Return the value, or `dlen` bytes of it from `doff`, or None."""

    def put(self, key: bytes, value: bytes, txn: Transaction | None = None, flags: int = 0) -> None:
        """Store a row."""

    def delete(self, key: bytes, txn: Transaction | None = None) -> None:
        """Delete a row, which must exist."""

    def exists(self, key: bytes) -> bool:
        """Tell whether there is a row."""

    def cursor(self, *, txn: Transaction | None = None) -> Cursor:
        """Return a new cursor."""

    def truncate(self, *, txn: Transaction | None = None) -> int:
        """Delete all rows."""

    def key_range(self, key: bytes) -> tuple[float, float, float]:
        """Estimate the shares of the rows before, at and behind a key; for a btree."""

    def compact(
        self, *, start: bytes | None, stop: bytes | None, flags: int, compact_fillpercent: int
    ) -> dict[str, int]:
        """Put rows together, in transactions of its own."""

    def stat(self, flags: int = 0) -> dict[str, int]:
        """Return the library's numbers about the table."""

    def close(self, flags: int = 0) -> None:
        """Free the handle."""


class Extent(NamedTuple):
    """How large a table is."""

    pages: int
    """All pages of its file."""
    buckets: int
    """Of a table of type hash; else 0."""


def checksum_function() -> Any:
    """Return the library's C function that finds the checksum of a page, None where it cannot be had.

    It is no part of the library's interface: what it takes is known of 5.3 alone, which is (NULL, the data, their
    length, the key of the checksum or NULL, where to put it). The interpreter's lock is not held while it runs.
    """
    try:
        function = ctypes.CDLL(_berkeleydb.__file__)["__db_chksum"] if db.version()[:2] == (5, 3) else None
    except (AttributeError, OSError):
        return None
    if function is not None:
        function.restype = None
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p]
    return function


def explain(error: Exception, path: Path) -> BerkeleyDBStorageError:
    """Return what an error of the library means for the storage at `path`, and what to do."""
    text = str(error.args[-1]) if error.args else str(error)
    if isinstance(error, MemoryError) and not error.args:
        return BerkeleyDBStorageError(f"out of memory, using {path}")
    if isinstance(error, (db.DBNoSpaceError, MemoryError)) or error.args[:1] == (errno.EDQUOT,):
        return DiskFullError(f"no room on the disk of {path}: free some, then go on ({text})")
    if isinstance(error, (db.DBAccessError, db.DBPermissionsError)):
        return BerkeleyDBStorageError(f"a file in {path} may not be accessed: mend its permissions ({text})")
    if isinstance(error, db.DBPageNotFoundError):
        return DamagedError(f"a table in {path} is cut off, a page is missing: restore from a backup ({text})")
    if error.args[:1] in _DISK_ERRORS:
        return BerkeleyDBStorageError(
            f"the disk of {path} failed: look after it, then try again, or close the storage and open it again ({text})"
        )
    if not path.exists():
        return DamagedError(
            f"{path} is not there any more, it was removed, moved or unmounted: put it back, then close the storage "
            f"and open it again; what was acknowledged is there as far as the files are ({text})"
        )
    named = next((name + TABLE_SUFFIX for name in TABLES if f"{name}{TABLE_SUFFIX}:" in text), None)
    if named is None and isinstance(error, db.DBRunRecoveryError) and not os.access(path, os.W_OK):
        return DamagedError(
            f"{path} may not be written to, and Berkeley DB has stopped: mend its permissions, or mount its file "
            f"system for writing; then close the storage and open it again ({text})"
        )
    if named or isinstance(error, db.DBRunRecoveryError):
        return DamagedError(
            f"{path / named if named else path} is damaged, and Berkeley DB has stopped: close the storage and open "
            f"it again; if this comes back, restore from a backup ({text})"
        )
    return BerkeleyDBStorageError(f"Berkeley DB failed on {path}: {text}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise what an error of the library means for the storage at `path` in its place."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        raise explain(error, path) from error


def _encrypted(handle: Any, key: str | None) -> Any:
    """Have an environment, or a table without one, encrypted; return it. The tables of an environment need a flag."""
    if key is not None:
        handle.set_encrypt(key.encode(), db.DB_ENCRYPT_AES)
    return handle


def _configured(cachesize: int, key: str | None) -> Any:
    environment = _encrypted(db.DBEnv(), key)
    environment.set_cachesize(cachesize >> 30, cachesize & ((1 << 30) - 1), 1)
    environment.set_get_returns_none(2)
    environment.mutex_set_increment(MUTEXES + cachesize // PAGE_SIZE)
    environment.set_mp_max_write(SMOOTH_PAGES, SMOOTH_PAUSE)
    return environment


def _transactional(path: Path, cachesize: int, key: str | None, flags: int = 0) -> Any:
    environment = _configured(cachesize, key)
    environment.set_lg_max(LOG_FILE_SIZE)
    environment.set_lg_bsize(LOG_BUFFER)
    return _opened(environment, path, _TRANSACTIONAL | flags)


def _opened(environment: Any, path: Path, flags: int) -> Any:
    """Open an environment. A handle that is left to Python to free leaves an exception behind where that fails."""
    try:
        environment.open(str(path), flags, MODE)
    except BaseException:
        _quietly(environment.close)
        raise
    return environment


@contextmanager
def scratch_directory(what: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a directory in `parent`, by default the temporary one, for `what`, and remove it afterwards.

    Raises:
        BerkeleyDBStorageError: that, or what is done with it, fails for want of a place or of room.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="berkeleydb_storage-", dir=parent) as name:
            yield Path(name)
    except OSError as error:
        place = parent or "the temporary directory"
        raise BerkeleyDBStorageError(
            f"{what} cannot be made in {place} ({error}): set TMPDIR to a directory with room for it"
        ) from error


def end_of_log(path: Path, key: str | None = None) -> int:
    """Return the offset at which the last whole record of a log file ends, as the library finds it; 0: it has none.

    It is asked about a copy, in the temporary directory: opening a log may write to it.

    Raises:
        BerkeleyDBStorageError: there is no temporary directory, or no room in it.
    """
    if files.first_lengths(path)[0] not in files.FIRST_RECORD:  # the library might crash
        return 0
    with scratch_directory(f"a copy of {path}") as scratch:
        shutil.copyfile(path, scratch / path.name)
        try:
            flags = db.DB_CREATE | db.DB_INIT_LOG | db.DB_PRIVATE | db.DB_THREAD
            environment = _opened(_encrypted(db.DBEnv(), key), scratch, flags)
        except (db.DBRunRecoveryError, db.DBInvalidArgError):
            return 0
        try:
            status = environment.log_stat()
            environment.close()
        except db.DBRunRecoveryError:
            _quietly(environment.close)
            return 0
        return int(status["cur_offset"]) if status["cur_file"] == files.log_number(path.name) else 0


def log_records(
    path: Path, key: str | None = None, start: tuple[int, int] | None = None
) -> Generator[tuple[tuple[int, int], bytes]]:
    """Yield the records of the log files in a directory, a microsecond each, as (where it is, its bytes).

    For a copy that nobody uses, and only if it may be changed: opening a log may write to its last file. Where a record
    is, is the number of the log file and the offset in it.

    Args:
        path: the directory.
        key: the password, if the log is encrypted.
        start: where the first record is that is wanted; None: the first that there is.

    Raises:
        DamagedError: a record that is not in the last file is damaged. Not every damage is found: where the length of
            a record becomes zero, the rest of its file is skipped, and so is a file that is missing.
        BerkeleyDBStorageError: they cannot be read.
    """
    if not files.log_numbers(path):
        return
    with explained(path):
        environment = _encrypted(db.DBEnv(), key)
        environment = _opened(environment, path, db.DB_CREATE | db.DB_INIT_LOG | db.DB_PRIVATE | db.DB_THREAD)
        try:
            cursor = environment.log_cursor()
            try:
                record = cursor.first() if start is None else cursor.set(start)
                if record is not None:
                    yield record
                    yield from iter(cursor.next, None)
            finally:
                cursor.close()
        finally:
            environment.close()


def run_recovery(path: Path, cachesize: int, *, whole_log: bool = False, key: str | None = None) -> None:
    """Let the library recover the environment at `path`.

    Args:
        path: the directory.
        cachesize: bytes.
        whole_log: from the first record of the log that is there on, instead of from the last checkpoint: for tables
            that are older than that.
        key: the right one; a wrong one damages the files.

    Raises:
        LIBRARY_ERRORS: it cannot.
    """
    _transactional(path, cachesize, key, db.DB_RECOVER_FATAL if whole_log else db.DB_RECOVER).close()


class Environment:
    """An open environment with its tables. Make one with `create`, `open` or `read`."""

    def __init__(
        self, path: Path, environment: Any, tables: dict[str, Table], *, writable: bool, key: str | None
    ) -> None:
        """Take over open handles; use the class methods instead."""
        self.path = path
        self.key = key
        """What it is encrypted with; None: it is not."""
        self.writable = writable
        self.tables = tables
        self._environment = environment
        self._guards = 0
        self.begin: Callable[[], Transaction] = environment.txn_begin
        self.flush: Callable[[], None] = environment.log_flush

    @classmethod
    def create(
        cls,
        path: Path,
        cachesize: int,
        type: str,
        fill: Callable[[dict[str, Table], Transaction], None],
        *,
        key: str | None = None,
    ) -> Environment:
        """Create the tables in an empty directory, let `fill` write their first rows, all in one transaction."""
        with explained(path):
            environment = _transactional(path, cachesize, key)
            created = cls(path, environment, {}, writable=True, key=key)
            with _abandoning(created.tables, environment):
                created._create_tables(type, fill)
                created.checkpoint()
            return created

    @classmethod
    def open(cls, path: Path, cachesize: int, *, key: str | None = None) -> Environment:
        """Open an environment that was closed or recovered, for reading and writing."""
        with explained(path):
            environment = _transactional(path, cachesize, key)
            return cls(path, environment, {}, writable=True, key=key)._with_tables(db.DB_AUTO_COMMIT)

    @classmethod
    def read(cls, path: Path, cachesize: int, *, key: str | None = None) -> Environment:
        """Open an environment that was closed, without logs and transactions: nothing is written anywhere."""
        with explained(path):
            environment = _opened(_configured(cachesize, key), path, _READING)
            return cls(path, environment, {}, writable=False, key=key)._with_tables(db.DB_RDONLY)

    def _with_tables(self, flags: int) -> Environment:
        with _abandoning(self.tables, self._environment):
            for name in TABLES:
                handle = self._handle(name)
                handle.open(name + TABLE_SUFFIX, dbtype=db.DB_UNKNOWN, flags=flags | db.DB_THREAD)
        return self

    def _handle(self, name: str) -> Any:
        """Return the handle of a table that is not open yet. What is not encrypted is refused where there is a key."""
        self.tables[name] = handle = db.DB(self._environment)
        handle.set_flags(db.DB_CHKSUM if self.key is None else db.DB_CHKSUM | db.DB_ENCRYPT)
        return handle

    def _create_tables(self, type: str, fill: Callable[[dict[str, Table], Transaction], None]) -> None:
        transaction = self.begin()
        try:
            for name in TABLES:
                method = db.DB_HASH if name == OBJECTS and type == "hash" else db.DB_BTREE
                handle = self._handle(name)
                handle.set_pagesize(PAGE_SIZE)
                flags = db.DB_CREATE | db.DB_THREAD
                handle.open(name + TABLE_SUFFIX, dbtype=method, flags=flags, mode=MODE, txn=transaction)
            fill(self.tables, transaction)
            transaction.commit(db.DB_TXN_SYNC)
        except BaseException:
            _quietly(transaction.abort)
            raise

    def checkpoint(self) -> None:
        """Write every page that was changed, so that recovery needs no log from before this. Takes as long as it takes.

        Raises:
            DiskFullError: there is no room; nothing is lost, it can be tried again.
            DamagedError: the disk failed, and the environment was stopped.
        """
        try:
            with self._guarding():
                self._environment.txn_checkpoint(0, 0, db.DB_FORCE)
        except LIBRARY_ERRORS as error:
            raise self.distrust(error) or explain(error, self.path) from error

    @contextmanager
    def _guarding(self) -> Iterator[None]:
        """Have a transaction of no effect under way, with a record in the log.

        A recovery begins with the first record of the oldest transaction that was under way at the checkpoint. It looks
        for a later record of any transaction, and undoes nothing where there is none: what that first record tells
        would stay, a part of a commit that was never made. Now the later record is there, or the first is this one.
        """
        guard = self.begin()
        self._guards += 1
        try:
            self._environment.log_printf(b"checkpoint", txn=guard)
            yield
        except BaseException:
            _quietly(guard.abort)
            raise
        guard.abort()

    def distrust(self, error: Exception) -> DamagedError | None:
        """Stop the environment if what failed may have been a sync, and return what to say then.

        After a failed sync the system forgets what it could not write, and the next one succeeds without it: a commit
        would be acknowledged that is not on the disk. Only a write that finds no room may be tried again.
        """
        number = error.args[0] if isinstance(error, db.DBError) and error.args else 0
        full = number in (errno.ENOSPC, errno.EDQUOT) and shutil.disk_usage(self.path).free < PLENTY
        if not isinstance(number, int) or number <= 0 or (full and "fsync" not in str(error)):
            return None
        _quietly(partial(self._environment.set_flags, db.DB_PANIC_ENVIRONMENT, 1))
        return DamagedError(
            f"the disk of {self.path} did not take what was written ({error.args[-1]}), so nothing is acknowledged "
            "any more: look after the disk, then close the storage and open it again, which recovers what is there"
        )

    def last_checkpoint(self) -> tuple[int, int]:
        """Return where the record of the last checkpoint is: the number of its log file, and the offset in it."""
        with explained(self.path):
            log, offset = self._environment.txn_stat()["last_ckp"]
        return log, offset

    def removable_logs(self) -> list[int]:
        """Return the numbers of the log files that recovery no longer needs."""
        with explained(self.path):
            found = (files.log_number(Path(name).name) for name in self._environment.log_archive(0))
        return sorted(number for number in found if number is not None)

    def end_of_log(self) -> tuple[int, int]:
        """Return where the next record will be: the number of its log file, and the offset in it."""
        with explained(self.path):
            status = self._environment.log_stat()
        return int(status["cur_file"]), int(status["cur_offset"])

    def log_on_disk(self) -> int:
        """Return the number of the newest log file of which something was brought to the disk; 0: of none yet."""
        with explained(self.path):
            return int(self._environment.log_stat()["disk_file"])

    def log_position(self) -> int:
        """Return how many bytes of log were ever written, as the current log file and the offset in it tell."""
        number, offset = self.end_of_log()
        return number * LOG_FILE_SIZE + offset

    def transactions(self) -> int:
        """Return how many transactions were committed since the environment was opened."""
        with explained(self.path):
            return int(self._environment.txn_stat()["ncommits"])

    def quiet_since(self) -> int | None:
        """Return how many transactions ever began, without those of checkpoints; None where one is under way."""
        with explained(self.path):
            status = self._environment.txn_stat()
        return None if status["nactive"] else int(status["nbegins"]) - self._guards

    def log_statistics(self) -> dict[str, int]:
        """Return the library's numbers about the log; empty when opened for reading only."""
        return cast("dict[str, int]", self._environment.log_stat()) if self.writable else {}

    def lookups(self) -> int:
        """Return how many pages were looked up since the environment was opened."""
        numbers = self.cache_statistics()
        return numbers["cache_hit"] + numbers["cache_miss"]

    def cache_statistics(self) -> dict[str, int]:
        """Return the library's numbers about the cache."""
        with explained(self.path):
            general, _files = self._environment.memp_stat()
        return cast("dict[str, int]", general)

    def extent(self, name: str) -> Extent:
        """Return how large a table is, in microseconds."""
        numbers = self.tables[name].stat(db.DB_FAST_STAT)
        return Extent(numbers["pagecnt"], numbers.get("buckets", 0))

    def free_pages(self, name: str, limit: int) -> int:
        """Return how many pages of a table are free, `limit` if there are more: 2 microseconds each.

        It looks into the file, so that it is right after a checkpoint, and an estimate while others write. Any thread
        may call it without the engine's mutex: the library would walk through the whole table for that number.
        """
        return files.free_pages(self.path / (name + TABLE_SUFFIX), limit)

    def compact(self, name: str, start: bytes | None, stop: bytes | None, how: int, fill: int) -> int:
        """Compact a range of a table, in transactions of its own, of which no one has a begin or an end outside.

        Nobody may read or write the table meanwhile. Cost: 5 microseconds a page that is looked at, 25 one that is
        changed; with `GIVE_BACK` and `CUT` also 0.5 for every free page of the table, 10 if it is not in the cache,
        and a sync of the log.

        Args:
            name: the table.
            start: the first key; None: the table's. In a table of type hash, a bucket as 4 bytes of this machine.
            stop: the last key, or bucket, which must exist; None: the table's.
            how: `MERGE`, `GIVE_BACK` or `CUT`.
            fill: percent of a page that are to be full.

        Returns:
            How many pages merging made free.

        Raises:
            LIBRARY_ERRORS: it could not go on. What was done is done, and no row is lost.
        """
        done = self.tables[name].compact(start=start, stop=stop, flags=how, compact_fillpercent=fill)
        return done["pages_free"]

    def close(self) -> None:
        """Close the tables and the environment, after a checkpoint. Once only."""
        with explained(self.path):
            for table in self.tables.values():
                table.close()
            self._environment.close()

    def disown(self) -> None:
        """Keep a forked child from ever closing the handles, which could write its copy of the cache to the files."""
        for handle in (*self.tables.values(), self._environment):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))

    def abandon(self) -> None:
        """Free what can be freed after a failure, whatever state it is in.

        No page is written. The library would do that, and before its log, where the disk is too full for the log.
        """
        _abandon(self.tables.values(), self._environment)


@contextmanager
def _abandoning(tables: dict[str, Table], environment: Any) -> Iterator[None]:
    """Close everything where the block fails."""
    try:
        yield
    except BaseException:
        _abandon(tables.values(), environment)
        raise


def _abandon(tables: Iterable[Table], environment: Any) -> None:
    _quietly(partial(environment.set_flags, _NO_FLUSH, 1))
    for table in tables:
        _quietly(partial(table.close, db.DB_NOSYNC))
    _quietly(environment.close)


def _quietly(close: Callable[[], None]) -> None:
    try:
        close()
    except LIBRARY_ERRORS:
        logger.debug("a handle could not be closed", exc_info=True)


@contextmanager
def reading(table: Table) -> Iterator[Cursor]:
    """Give a cursor on a table, and close it at the end; the error that counts is that of the reading."""
    cursor = table.cursor()
    try:
        yield cursor
    except BaseException:
        _quietly(cursor.close)
        raise
    cursor.close()


def rows(table: Table) -> Iterator[tuple[bytes, bytes]]:
    """Yield all rows of a table in its order; nobody writes to it meanwhile."""
    with reading(table) as cursor:
        row = cursor.first()
        while row is not None:
            yield row
            row = cursor.next()


def scratch_table(cachesize: int) -> Table:
    """Return a table that no file name leads to: in memory, and in a temporary file beyond `cachesize` bytes.

    It lives until it is closed, or the process ends. The file is encrypted with a key that nobody keeps, as it may hold
    what comes from an encrypted storage.
    """
    handle = _encrypted(db.DB(), os.urandom(32).hex())
    handle.set_flags(db.DB_ENCRYPT)
    handle.set_cachesize(cachesize >> 30, cachesize & ((1 << 30) - 1), 1)
    handle.set_get_returns_none(2)
    handle.open(None, dbtype=db.DB_BTREE, flags=db.DB_CREATE)
    return cast("Table", handle)
