"""The directory of a storage: who owns it, and what is known about its files before Berkeley DB opens them.

Owns two files: ``lock``, held with flock by the owner, with its pid inside; and ``storage.json``, replaced whole.
May be called by any thread; one `Directory` belongs to one storage.

Invariants:

1. While a process writes to any file of the storage, it holds the lock exclusively; readers hold it shared.
2. ``storage.json`` says "closed" only if nothing was written since a checkpoint that completed; it is changed to
   "open", and that is on the disk, before the first write.
3. A directory whose state is "creating" never held a commit.
4. Nothing is written to a directory that is not a storage, or that is refused.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from berkeleydb_storage import files
from berkeleydb_storage.errors import (
    BerkeleyDBStorageError,
    DamagedError,
    LibraryMismatch,
    NewerFormat,
    NotAStorage,
    StorageInUse,
    StorageNotFound,
)
from berkeleydb_storage.files import TABLE_SUFFIX
from berkeleydb_storage.format import FORMAT_VERSION

LOCK = "lock"
DESCRIPTION = "storage.json"

CREATING, OPEN, CLOSED = "creating", "open", "closed"


@dataclass(frozen=True)
class Description:
    """What ``storage.json`` says."""

    format: int
    """Version of the layout of the tables."""
    library: str
    """Version of the Berkeley DB library that wrote the files, "major.minor.patch"."""
    type: str
    """Access method of the objects: "btree" or "hash"."""
    state: str
    """"creating", "open" (an owner has it, or did when it died) or "closed"."""
    first_log: int = 0
    """Number of the oldest log file that recovery may need; 0 when there is none yet."""
    last_log: int = 0
    """Number of the newest log file known; there may be newer ones when the state is "open"."""


class Directory:
    """A directory that is, or is to become, a storage. It is locked from `acquire` to `release`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Look at the path, without touching it.

        Raises:
            StorageNotFound: there is nothing at `path`.
            NotAStorage: it is not a directory.
        """
        self.path = Path(path)
        self._lock: int | None = None
        self._owner: int | None = None
        if not self.path.exists():
            raise StorageNotFound(f"{self.path} does not exist: create the directory first, for example with mkdir")
        if not self.path.is_dir():
            raise NotAStorage(f"{self.path} is not a directory: a storage is a directory{self._hint()}")

    def _hint(self) -> str:
        try:
            with self.path.open("rb") as file:
                start = file.read(16)
        except OSError:
            return ""
        if start.startswith((b"SHELF-1\n", b"DFS20\0", b"SQLite format ")):
            return f"; this is a Durus storage file, which `durus-bdb migrate {self.path} DIRECTORY` copies into one"
        return ""

    def acquire(self, *, read_only: bool) -> None:
        """Lock the directory: for this process alone, or shared with other readers.

        Raises:
            StorageInUse: another opener holds it; its pid is named.
            StorageNotFound: `read_only`, and there is no storage in it.
            NotAStorage: it holds files of something else.
        """
        self._refuse_foreign(read_only)
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        try:
            lock = os.open(self.path / LOCK, flags | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            raise StorageNotFound(f"{self.path} holds no storage yet: open it for writing once") from None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise BerkeleyDBStorageError(
                    f"{self.path} is not writable for this process ({error.strerror}): "
                    "open it with read_only=True, or mend its permissions"
                ) from error
            raise
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            pid = _read_pid(lock)
            os.close(lock)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise self._in_use(pid) from None
        self._lock = lock
        if not read_only:
            os.ftruncate(lock, 0)
            os.pwrite(lock, b"%d\n" % os.getpid(), 0)
            self._owner = os.getpid()

    def _in_use(self, pid: int | None) -> StorageInUse:
        if pid == os.getpid():
            who = f"this process ({pid}), which has opened it already"
        else:
            who = f"process {pid}" if pid is not None else "another process that reads it"
        return StorageInUse(
            f"{self.path} is in use by {who}: close it there, or share it between processes through a server", pid
        )

    def _refuse_foreign(self, read_only: bool) -> None:
        names = set(os.listdir(self.path))
        if DESCRIPTION in names:
            return
        if not read_only and LOCK in names:
            return
        foreign = sorted(name for name in names if not name.startswith(".") and name not in ("lost+found", LOCK))
        if not foreign:
            return
        if any(name.startswith(("__db.", "log.")) or name.endswith(TABLE_SUFFIX) for name in foreign):
            what = (
                "a Berkeley DB environment that this package did not write; a directory of the durus-berkeleydbstorage "
                "of 2007 is migrated as UPGRADING says"
            )
        else:
            what = "files of something else"
        raise NotAStorage(
            f"{self.path} holds {what} ({', '.join(foreign[:3])}): a new storage needs an empty directory"
        )

    def release(self) -> None:
        """Unlock the directory. Does nothing when it is not locked."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if self._owner == os.getpid():
            os.ftruncate(lock, 0)
        os.close(lock)

    def read(self) -> Description | None:
        """Return what ``storage.json`` says; None where there is no storage yet.

        Raises:
            NewerFormat: a later version of this package wrote it.
            DamagedError: it is not what this package writes.
        """
        where = self.path / DESCRIPTION
        try:
            text = where.read_bytes()
        except FileNotFoundError:
            return None
        try:
            values = json.loads(text)
            version = int(values["format"])
            if version > FORMAT_VERSION:
                raise NewerFormat(
                    f"{self.path} has format {version}, and this version of the package reads up to {FORMAT_VERSION}: "
                    "install a newer durus-berkeleydbstorage"
                )
            return Description(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{where} is damaged ({error}): restore it from a backup") from error

    def write(self, description: Description) -> None:
        """Replace ``storage.json``; when this returns, the new one is on the disk."""
        fresh = self.path / (DESCRIPTION + ".new")
        with fresh.open("w") as file:
            json.dump(asdict(description), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path / DESCRIPTION)
        self.sync()

    def update(self, **changes: object) -> Description:
        """Replace single values of ``storage.json``, and return all of them."""
        current = self.read()
        if current is None:
            raise DamagedError(f"{self.path / DESCRIPTION} is gone: restore it from a backup")
        changed = replace(current, **changes)  # type: ignore[arg-type]
        if changed != current:
            self.write(changed)
        return changed

    def sync(self) -> None:
        """Bring the names of the files in the directory to the disk."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Remove what an interrupted creation left behind: every table and log, never anything else."""
        for name in os.listdir(self.path):
            if files.log_number(name) is not None or name.endswith(TABLE_SUFFIX):
                (self.path / name).unlink()

    def copy_to(self, target: Path) -> None:
        """Copy the files of the storage, without its lock, into the existing directory `target`."""
        for name in os.listdir(self.path):
            if files.log_number(name) is not None or name.endswith(TABLE_SUFFIX) or name == DESCRIPTION:
                shutil.copyfile(self.path / name, target / name)

    def verify_library(self, description: Description, library: str) -> None:
        """Compare the version of the library with the one that wrote the files; the patch level may differ.

        Raises:
            LibraryMismatch: they differ.
        """
        if description.library.split(".")[:2] != library.split(".")[:2]:
            raise LibraryMismatch(
                f"{self.path} was written by Berkeley DB {description.library}, and this is {library}: open it with "
                f"{description.library}, or migrate it there with `durus-bdb export` and here with `durus-bdb migrate`"
            )

    def verify_files(self, description: Description, tables: list[str]) -> None:
        """Look whether every file is there that the library will need.

        Raises:
            DamagedError: one is missing or too short; it is named.
        """
        for name in tables:
            where = self.path / (name + TABLE_SUFFIX)
            if not where.exists():
                raise DamagedError(f"{where} is missing: restore the storage from a backup")
            if where.stat().st_size < files.PAGE_SIZE:
                raise DamagedError(f"{where} is cut off: restore the storage from a backup")
        present = set(files.log_numbers(self.path))
        last = max(present | {description.last_log})
        for number in range(description.first_log, last + 1):
            if number and number not in present:
                raise DamagedError(
                    f"{self.path / files.log_name(number)} is missing, and log files {description.first_log} to {last} "
                    "are needed: put it back, or restore the storage from a backup"
                )


def _read_pid(descriptor: int) -> int | None:
    """Return the owner's pid; None where there is none, or only that of one who died while readers hold the lock."""
    digits = os.pread(descriptor, 32, 0).strip()
    if not digits.isdigit():
        return None
    pid = int(digits)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return pid
